"""What an export says about itself: `export.json`, from which others run the graphs, and the command line's table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stylefusion_hf import __version__
from stylefusion_hf.conversion.writing import check_destination
from stylefusion_hf.core.versions import version
from stylefusion_hf.export.graph_files import OPSET, Graph
from stylefusion_hf.pipelines.fuse import StyleFusionPipeline

DESCRIPTION, MARK = "export.json", "stylefusion-export"
CHECKED = (1, 3)  # batch sizes of the check; different from the traced one


@dataclass(frozen=True)
class Exported:
    """An exported graph with its check; the figures are None if it was not checked.

    Attributes:
        path, size: the file, and its size in bytes including external weights.
        error, deviation: largest error over all checked batches, and the standard deviation of the expected output.
        latency, exported_latency: seconds for a batch of one, in PyTorch and for the exported file.
    """

    name: str
    path: Path
    size: int
    error: float | None = None
    deviation: float | None = None
    latency: float | None = None
    exported_latency: float | None = None


def describe(
    pipe: StyleFusionPipeline, form: str, chosen: Sequence[Graph], written: Sequence[Exported], files: Sequence[str]
) -> dict[str, Any]:
    """Return the content of `export.json`: everything needed to run the graphs without this package."""
    generator, config, tree = pipe.generator, pipe.generator.config, pipe.fusion.tree
    packages = ["torch", *(["onnx", "onnxscript", "onnxruntime"] if form == "onnx" else [])]
    graphs = {}
    for graph, item in zip(chosen, written, strict=True):
        compared = item.error is not None
        graphs[graph.name] = {
            "file": item.path.name,
            "inputs": [port.to_dict() for port in graph.inputs],
            "outputs": [graph.output.to_dict()],
            "check": {"batches": CHECKED, "max_error": item.error, "output_std": item.deviation} if compared else None,
        }
    return {
        "format": MARK,
        "version": 1,
        "kind": form,
        **({"opset": OPSET} if form == "onnx" else {}),
        "dtype": "float32",
        "graphs": graphs,
        "resolution": config.resolution,
        "picture_size": list(generator.picture_size),  # height, width
        "img_channels": config.img_channels,
        "z_dim": config.z_dim,
        "label_dim": config.label_dim,
        "style_dim": generator.style_dim,
        "style_sizes": generator.style_sizes,
        "noise": "constant, in the synthesis graph" if generator.has_noise else "none",
        "truncation_psi": config.truncation_psi,
        "w_avg": generator.w_avg.tolist(),
        "tree": tree.to_dict(),
        "nodes": list(tree.nodes),
        "active_nodes": list(tree.active),
        "regions": list(pipe.segmenter.config.regions) if pipe.segmenter is not None else None,
        "files": list(files),
        "made_with": {"stylefusion-hf": __version__, **{name: version(name) for name in packages}},
    }


def check_target(out: Path, overwrite: bool, sources: Iterable[Path] = ()) -> None:
    """Raise ValueError unless an export can be written there; files of other origin are never removed."""
    check_destination(out, overwrite, sources)
    found = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if not found:
        return
    try:
        description = json.loads((out / DESCRIPTION).read_text(encoding="utf-8"))
        ours = {DESCRIPTION, *description["files"]} if description["format"] == MARK else set()
    except (OSError, ValueError, TypeError, KeyError):
        ours = set()
    if not ours:
        raise ValueError(f"{out}: not an export, and --overwrite only replaces exports; give another name")
    if others := [name for name in found if name not in ours]:
        raise ValueError(f"{out}: contains {', '.join(others[:4])} next to an export; move that, or give another name")


def table(exported: Sequence[Exported]) -> str:
    """Format the exported files as a text table; latencies are for a batch of one, in milliseconds."""
    rows: list[tuple[str, ...]] = [("file", "MiB", "max error", "of std", "PyTorch ms", "graph ms", "ratio")]
    for item in exported:
        figures: tuple[str, ...] = ("not checked", "", "", "", "")
        if item.error is not None and item.deviation and item.latency and item.exported_latency:
            figures = (
                f"{item.error:.1e}",
                f"{item.error / item.deviation:.1e}",
                f"{item.latency * 1e3:.2f}",
                f"{item.exported_latency * 1e3:.2f}",
                f"{item.latency / item.exported_latency:.1f}x",
            )
        rows.append((item.path.name, f"{item.size / 2**20:.2f}", *figures))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)
