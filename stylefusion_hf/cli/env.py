"""Show the information for a bug report: versions, devices, threads, native operators, and the embedded model."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from stylefusion_hf.core.versions import version

PACKAGES = (
    "torch",
    "diffusers",
    "huggingface-hub",
    "accelerate",
    "safetensors",
    "numpy",
    "pillow",
    "gradio",
    "imageio-ffmpeg",
    "python-avatars",
    "resvg-py",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--build-ops",
        action="store_true",
        help="first compile or repair the native operators (half a minute, once; needs a C++ compiler)",
    )


def run(args: argparse.Namespace) -> None:
    if args.build_ops:
        _build_ops()
    found = environment()
    if args.json:
        print(json.dumps(found, indent=2))
        return
    lines = dict(_flatten(found))
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}")


def environment() -> dict[str, Any]:
    """Return everything that is shown, as JSON values; None for packages that are not installed."""
    from stylefusion_hf import __version__

    return {
        "stylefusion-hf": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "packages": {name: version(name) for name in PACKAGES},
        "torch": _torch(),
        "native operators": _native_operators(),
        "embedded model": _embedded(),
    }


def _build_ops() -> None:
    """Compile the native operators for every device type that torch has here, and print where; OSError on failure."""
    from stylefusion_hf.ops import native

    for device in native.devices():
        began = time.monotonic()
        try:
            library = native.build_and_load(device)
        except OSError as error:
            raise OSError(f"the native operators for {device} could not be built: {error}") from error
        seconds = time.monotonic() - began
        # On stderr, so that --json stays JSON.
        print(f"native operators for {device}: {library} ({seconds:.1f} s)", file=sys.stderr)


def _native_operators() -> dict[str, str] | None:
    """Describe, per device type, which operators run and why; None if torch cannot be imported."""
    try:
        from stylefusion_hf.ops import native
    except (ImportError, OSError):
        return None
    return {device: native.describe(device) for device in native.devices()}


def _torch() -> dict[str, Any]:
    """Describe torch's threads and devices, or the error if torch cannot be imported."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return {"error": f"torch cannot be imported: {' '.join(str(error).split())}"}
    cuda = torch.cuda.is_available()
    return {
        "threads": torch.get_num_threads(),
        "built for CUDA": torch.version.cuda,
        "CUDA devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "MPS": torch.backends.mps.is_available(),
    }


def _embedded() -> dict[str, Any] | None:
    """Return the sizes of the embedded model's components, read from the files' headers; None if it is missing."""
    folder = Path(str(files("stylefusion_hf") / "assets"))
    if not (folder / "model_index.json").is_file():
        return None
    components = sorted(entry for entry in folder.iterdir() if any(entry.glob("*.safetensors")))
    found: dict[str, Any] = {"folder": str(folder)}
    for component in components:
        weights = list(component.glob("*.safetensors"))
        size = sum(file.stat().st_size for file in weights)
        found[component.name] = {"bytes": size, "parameters": sum(map(_count_numbers, weights))}
    return found


def _count_numbers(weights: Path) -> int:
    """Count the numbers in a safetensors file from its header: 8 bytes of length, then JSON."""
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested values to (name, text) pairs."""
    lines: list[tuple[str, str]] = []
    for name, value in values.items():
        if not isinstance(value, dict):
            lines.append((prefix + name, _format_value(value)))
        elif set(value) == {"bytes", "parameters"}:
            lines.append((prefix + name, f"{value['parameters']:,} parameters, {value['bytes'] / 2**20:.1f} MiB"))
        else:
            lines += _flatten(value, "" if name == "packages" else f"{name}: ")
    return lines


def _format_value(value: Any) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
