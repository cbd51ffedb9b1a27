"""Reports: tables in markdown, JSON, and plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from stylefusion_hf.core import files
from stylefusion_hf.core.installing import install_command
from stylefusion_hf.core.region_names import spell_out
from stylefusion_hf.evaluation.statistics import Estimate

# --- Tables ----------------------------------------------------------------------------------------------------------


def format_cell(value: Any) -> str:
    """Format a figure: `0.143 [0.131, 0.156]`, "undefined", or nothing for None."""
    if isinstance(value, Estimate):
        if not math.isfinite(value.value):
            return "undefined"
        places = 0 if abs(value.value) >= 100 else 3
        return f"{value.value:.{places}f} [{value.low:.{places}f}, {value.high:.{places}f}]"
    if isinstance(value, float):
        return f"{value:.3f}" if math.isfinite(value) else "undefined"
    return "" if value is None else str(value)


def table(corner: str, rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Format rows {name: {column: figure}} as a markdown table; columns default to order of appearance."""
    if columns is None:
        columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    lines = [f"| {corner} | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    lines += [f"| {name} | {' | '.join(format_cell(row.get(c)) for c in columns)} |" for name, row in rows.items()]
    return "\n".join(lines)


def mark_not_reached(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Replace undefined figures by "not reached"."""

    def text(value: Any) -> Any:
        missing = isinstance(value, Estimate) and not math.isfinite(value.value)
        return "not reached" if missing else value

    return {name: {c: text(v) for c, v in row.items()} for name, row in rows.items()}


# --- JSON ------------------------------------------------------------------------------------------------------------


def to_json_types(value: Any) -> Any:
    """Convert a report to JSON types; NaN becomes null."""
    if isinstance(value, Estimate):
        return value.to_json()
    if is_dataclass(value) and not isinstance(value, type):
        return to_json_types(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): to_json_types(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_types(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(report: Mapping[str, Any], path: Path) -> None:
    """Write the report as JSON."""
    files.write_json(path, to_json_types(report), allow_nan=False)


# --- Plots ---------------------------------------------------------------------------------------------------------

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
    """Plot outside change against S and T, one panel per region and one curve per method, then the model's figures.

    Args:
        curves: {method: {region: [{"outside", "specific", "transfer"}, ...]}}; may be empty.
        swaps: {region: {figure: Estimate}} of the model's own swaps; may be empty.
        poses: {way: [{"pose", "looks kept"}, ...]} of the common codes; may be empty.
        axes: keys of AXES, the transfers to plot against.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"the report's plots need matplotlib: {install_command('evaluation')}") from error
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
        draw_bars(free.pop(0), swaps, ["specific", "recognition", "transfer"], "what arrives")
        draw_bars(free.pop(0), swaps, ["outside", "leak", "noticed", "flips"], "outside the region")
    if poses:
        draw_poses(free.pop(0), poses)
    for axis in free:
        axis.set_axis_off()
    with files.atomic_path(path) as part:
        figure.savefig(part, dpi=110)


def draw_curves(axis: Any, methods: Mapping[str, Sequence[Mapping[str, float]]], x: str, region: str) -> None:
    """Plot O of every method for one region, starting at (0, 0)."""
    for i, (name, found) in enumerate(methods.items()):
        points = sorted((p for p in found if math.isfinite(p[x])), key=lambda p: p[x])
        at, outside = [0.0, *(p[x] for p in points)], [0.0, *(p["outside"] for p in points)]
        ours = name == "stylefusion"
        style = {"color": "black", "linewidth": 2.5, "zorder": 5} if ours else {"color": f"C{i % 10}"}
        dashes = "--" if name.startswith("limit") else ":" if i > 10 else "-"
        axis.plot(at, outside, dashes, marker="o", markersize=3, label=name, **style)
    axis.set(title=spell_out(region), xlabel=AXES[x], ylabel="outside change O", xlim=(-0.02, 1))
    axis.set_yscale("symlog", linthresh=0.01)
    axis.set_ylim(0, 1.5)
    axis.grid(alpha=0.3)


def draw_poses(axis: Any, poses: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Plot pose error against looks kept, one curve per way, starting at (1, 1)."""
    for name, points in poses.items():
        kept, pose = [1.0, *(p["looks kept"] for p in points)], [1.0, *(p["pose"] for p in points)]
        axis.plot(kept, pose, marker="o", markersize=3, label=name)
    axis.set(title="common codes", xlabel="looks kept", ylabel="pose error G")
    axis.invert_xaxis()
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)


def draw_bars(axis: Any, rows: Mapping[str, Mapping[str, Estimate]], names: Sequence[str], title: str) -> None:
    """Draw bars with intervals, grouped by region."""
    for i, name in enumerate(names):
        found = [
            (k, row[name]) for k, row in enumerate(rows.values()) if name in row and math.isfinite(row[name].value)
        ]
        at = [k + 0.8 * (i + 0.5) / len(names) - 0.4 for k, _ in found]
        values = [e.value for _, e in found]
        errors = [[max(0.0, e.value - e.low) for _, e in found], [max(0.0, e.high - e.value) for _, e in found]]
        axis.bar(at, values, width=0.8 / len(names), yerr=errors, capsize=2, label=name.replace("_", ", "))
    axis.set_xticks(range(len(rows)), list(map(spell_out, rows)), rotation=20)
    axis.set_title(title)
    axis.legend(fontsize=7)
    axis.grid(axis="y", alpha=0.3)
