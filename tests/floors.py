"""The fast tests in an environment of every lower bound in pyproject.toml: `python -m tests.floors FOLDER`.

Needs a network and gigabytes: PyPI's torch brings CUDA. `--torch_index https://download.pytorch.org/whl/cpu` takes a
build for CPUs instead. `--print` prints the constraints and installs nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("train", "evaluation", "export", "render", "segmenter", "space", "faces", "video", "dev")
BOUND = re.compile(r"(?P<name>[A-Za-z0-9._-]+)\s*>=\s*(?P<version>[0-9][\w.]*)")


def lower_bounds(project: dict) -> dict[str, str]:
    """{package: the lowest version that every requirement on it allows}, of the package and its extras.

    ValueError for a requirement without a lower bound.
    """
    extras = project["optional-dependencies"]
    bounds: dict[str, str] = {}
    for requirement in [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra])]:
        found = BOUND.match(requirement)
        if found is None:
            raise ValueError(f"{requirement!r} in pyproject.toml has no lower bound")
        name, version = found["name"].lower(), found["version"]
        bounds[name] = max(bounds.get(name, "0"), version, key=_numbers)
    return bounds


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=".venv-floors", help="environment to make or reuse")
    parser.add_argument("--torch_index", help="package index with other builds of torch")
    parser.add_argument("--print", action="store_true", help="print the constraints only")
    args, rest = parser.parse_known_args(argv)
    with open(ROOT / "pyproject.toml", "rb") as file:
        bounds = lower_bounds(tomllib.load(file)["project"])
    lines = [f"{name}=={version}" for name, version in sorted(bounds.items())]
    if args.print:
        print("\n".join(lines))
        return 0
    folder = Path(args.folder).resolve()
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    constraints = folder / "floors.txt"
    constraints.write_text("\n".join(lines) + "\n", encoding="utf-8")
    index = ["--extra-index-url", args.torch_index] if args.torch_index else []
    install = [python, "-m", "pip", "install", "--constraint", constraints, *index]
    subprocess.run([*install, "--editable", f"{ROOT}[{','.join(EXTRAS)}]"], check=True)
    tests = [python, "-m", "pytest", "-n", "auto", "--dist", "loadfile", "-m", "not slow", *rest]
    return subprocess.run(tests, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
