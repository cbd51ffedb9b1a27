"""The ruler's figures as tables (markdown, on screen and in a file), as JSON and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from stylefusion_hf.core import files
from stylefusion_hf.evaluation.statistics import Estimate

# --- Tables ----------------------------------------------------------------------------------------------------------


def cell(value: Any) -> str:
    """A figure as text: `0.143 [0.131, 0.156]`; undefined ones and missing ones say so."""
    if isinstance(value, Estimate):
        if not math.isfinite(value.value):
            return "undefined"
        places = 0 if abs(value.value) >= 100 else 3
        return f"{value.value:.{places}f} [{value.low:.{places}f}, {value.high:.{places}f}]"
    if isinstance(value, float):
        return f"{value:.3f}" if math.isfinite(value) else "undefined"
    return "" if value is None else str(value)


def table(corner: str, rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Rows {name: {column: figure}} as a markdown table; columns in order of appearance if not given."""
    if columns is None:
        columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    lines = [f"| {corner} | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    lines += [f"| {name} | {' | '.join(cell(row.get(c)) for c in columns)} |" for name, row in rows.items()]
    return "\n".join(lines)


def not_reached(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows in which an undefined figure means that a method never gets there."""

    def text(value: Any) -> Any:
        missing = isinstance(value, Estimate) and not math.isfinite(value.value)
        return "not reached" if missing else value

    return {name: {c: text(v) for c, v in row.items()} for name, row in rows.items()}


# --- JSON ------------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Anything of a report as JSON's types; NaN is null."""
    if isinstance(value, Estimate):
        return value.to_json()
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(report: Mapping[str, Any], path: Path) -> None:
    """The whole report."""
    files.write_json(path, plain(report), allow_nan=False)


# --- The picture -----------------------------------------------------------------------------------------------------

AXES = {"specific": "specific transfer S", "transfer": "transfer T"}
Points = Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]


def draw(
    path: Path,
    curves: Points,
    swaps: Mapping[str, Any],
    poses: Mapping[str, Sequence[Mapping[str, float]]],
    title: str,
    axes: Sequence[str] = ("specific", "transfer"),
) -> None:
    """Outside change against S and against T, a panel per region and a curve per method; then the model's own figures.

    Args:
        curves: {method: {region: [{"outside", "specific", "transfer"}, ...]}}; may be empty.
        swaps: {region: {figure: Estimate}} of the model's own swaps; may be empty.
        poses: {way: [{"pose", "looks kept"}, ...]} of the common codes; may be empty.
        axes: which transfers; keys of AXES.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the report's picture needs matplotlib: pip install stylefusion-hf[evaluation]") from error
    regions = list(swaps or (next(iter(curves.values())) if curves else ()))
    panels = len(regions) * len(axes) * bool(curves) + 2 * bool(swaps) + bool(poses)
    columns = min(3, panels)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(4.6 * columns, 3.6 * rows + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    free = list(figure.subplots(rows, columns, squeeze=False).flatten())
    figure.suptitle(title)
    if curves:
        first = free[0]
        for x in axes:
            for region in regions:
                draw_curves(free.pop(0), {name: by.get(region, []) for name, by in curves.items()}, x, region)
        handles, labels = first.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    if swaps:
        bars(free.pop(0), swaps, ["specific", "recognition", "transfer"], "what arrives")
        bars(free.pop(0), swaps, ["outside", "leak", "noticed", "flips"], "outside the region")
    if poses:
        draw_poses(free.pop(0), poses)
    for axis in free:
        axis.set_axis_off()
    with files.atomic_path(path) as part:
        figure.savefig(part, dpi=110)


def draw_curves(axis: Any, methods: Mapping[str, Sequence[Mapping[str, float]]], x: str, region: str) -> None:
    """One region: O of every method, from (0, 0) on. A method that transfers nothing stands at 0."""
    for i, (name, found) in enumerate(methods.items()):
        points = sorted((p for p in found if math.isfinite(p[x])), key=lambda p: p[x])
        at, outside = [0.0, *(p[x] for p in points)], [0.0, *(p["outside"] for p in points)]
        ours = name == "stylefusion"
        style = {"color": "black", "linewidth": 2.5, "zorder": 5} if ours else {"color": f"C{i % 10}"}
        dashes = "--" if name.startswith("limit") else ":" if i > 10 else "-"
        axis.plot(at, outside, dashes, marker="o", markersize=3, label=name, **style)
    axis.set(title=region, xlabel=AXES[x], ylabel="outside change O", xlim=(-0.02, 1))
    axis.set_yscale("symlog", linthresh=0.01)
    axis.set_ylim(0, 1.5)
    axis.grid(alpha=0.3)


def draw_poses(axis: Any, poses: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Pose error against looks kept, a curve per way, from (1, 1) on."""
    for name, points in poses.items():
        kept, pose = [1.0, *(p["looks kept"] for p in points)], [1.0, *(p["pose"] for p in points)]
        axis.plot(kept, pose, marker="o", markersize=3, label=name)
    axis.set(title="common codes", xlabel="looks kept", ylabel="pose error G")
    axis.invert_xaxis()
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)


def bars(axis: Any, rows: Mapping[str, Mapping[str, Estimate]], names: Sequence[str], title: str) -> None:
    """Groups of bars with their intervals, a group per region."""
    for i, name in enumerate(names):
        found = [
            (k, row[name]) for k, row in enumerate(rows.values()) if name in row and math.isfinite(row[name].value)
        ]
        at = [k + 0.8 * (i + 0.5) / len(names) - 0.4 for k, _ in found]
        values = [e.value for _, e in found]
        errors = [[max(0.0, e.value - e.low) for _, e in found], [max(0.0, e.high - e.value) for _, e in found]]
        axis.bar(at, values, width=0.8 / len(names), yerr=errors, capsize=2, label=name.replace("_", ", "))
    axis.set_xticks(range(len(rows)), list(rows), rotation=20)
    axis.set_title(title)
    axis.legend(fontsize=7)
    axis.grid(axis="y", alpha=0.3)
