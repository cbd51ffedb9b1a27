"""Sections of `stylefusion evaluate`: each one measures, adds to the report and prints its tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stylefusion_hf.core.files import write_text
from stylefusion_hf.evaluation import curves, global_control, limit_curves, sections
from stylefusion_hf.evaluation.measuring import Subject
from stylefusion_hf.evaluation.methods import Method
from stylefusion_hf.evaluation.realism import realism_rows
from stylefusion_hf.evaluation.report import mark_not_reached, table, write_json

if TYPE_CHECKING:
    from stylefusion_hf.evaluation.evaluate import Settings

MAIN_COLUMNS = ("specific", "recognition", "outside", "leak", "transfer")
SWAP_COLUMNS = (
    *MAIN_COLUMNS, "specific_colour", "specific_texture", "specific_outline", "transfer, noisy", "transfer_colour",
    "transfer_texture", "transfer_outline", "response", "dead", "flips", "noticed", "area", "became", "stayed",
    "agree", "agree_plain",
)  # fmt: skip
PUBLISHED_COLUMNS = ("MSE_src", "MSE_ref", "AD", "max AD", "AD target")
SYMBOLS = {"specific": "S", "transfer": "T"}


@dataclass
class Run:
    """State of a run: sections add to `report` and to `text` (markdown), which `save` writes into the folder `out`."""

    subject: Subject
    settings: Settings
    out: Path
    report: dict[str, Any] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    methods: dict[str, Method] = field(default_factory=dict)
    curves_kept: dict[str, dict[str, curves.Curve]] = field(default_factory=dict)
    limited: dict[str, dict[str, curves.Curve]] = field(default_factory=dict)
    swaps: dict[str, Any] = field(default_factory=dict)
    poses: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def show(self, *lines: str) -> None:
        """Print lines and append them to the report."""
        print(*lines, sep="\n", flush=True)
        self.text += lines

    def save(self) -> None:
        """Write report.json and report.md, as far as they go."""
        write_json(self.report, self.out / "report.json")
        write_text(self.out / "report.md", "\n".join(self.text) + "\n")

    # --- Sections, in the order of the report ---

    def calibration(self) -> None:
        """Swaps rendered exactly (avatars only): what the ruler reads when the correct result is known."""
        from stylefusion_hf.evaluation.calibration import calibrate

        found = calibrate(self.subject.ruler, self.settings.calibration_pairs)
        self.report["calibration"] = found
        for name in ("true swap", "recoloured", "unchanged", "random region"):
            rows = {region: kinds[name] for region, kinds in found.items()}
            self.show(table(name, rows, MAIN_COLUMNS), "")
        noisy = {region: {"transfer": kinds["true swap"]["transfer, noisy"]} for region, kinds in found.items()}
        self.show(table("true swap, noise not subtracted", noisy))

    def swaps_section(self) -> None:
        """One region from b: specific transfer S, recognition among 16 sources, outside change O, leak, transfer T.

        `wider` is the authors' expansion: the leaf code and its parent's common code. `refined` is the leaf code with
        the pipeline's `refine_steps`; it is measured where `--methods` names stylefusion-refined.
        """
        names = {"leaf", *self.settings.swap_rows}
        names |= {"refined"} if "stylefusion-refined" in self.settings.methods else set()
        steps = self.settings.refine_steps
        found = sections.swap_rows(self.subject, self.settings.pairs, names=names, refine_steps=steps)
        self.report["swaps"], self.swaps = found, found["leaf"]
        self.show(table("leaf code only", found["leaf"], SWAP_COLUMNS), "")
        for name in ("refined", "wider", "mean", "mean look", "random code"):
            if name in found:
                self.show(table(name, found[name], (*MAIN_COLUMNS, "response")), "")
        self.show("Figures of other papers (evaluation/published.py):", "")
        self.show(table("leaf code only", found["leaf"], PUBLISHED_COLUMNS), "")
        quartiles = [f"transfer q{q}" for q in range(1, 5)]
        self.show(table("transfer by quartile of the pose gap", found["leaf"], quartiles))

    def global_section(self) -> None:
        """Common codes from a third picture c. Pose error: 0 is c's pose, 1 a's; regions: share of a's look kept."""
        count = self.settings.global_pairs
        found = global_control.pose_curves(self.subject, count)
        rows = global_control.full_strength_rows(found, count)
        equal = global_control.at_equal_looks(found, count)
        self.poses = global_control.curve_points(found, count)
        self.report["global"] = {"full strength": rows, "at equal looks": equal, "points": self.poses}
        self.show(table("from c", rows))
        for level, by_way in equal.items():
            kept = "as many looks as all our common codes keep" if level == "ours" else f"{level} of the looks kept"
            self.show("", table(f"pose error at {kept}", mark_not_reached(by_way)))

    def realism(self) -> None:
        """KID against real pictures, density, coverage, kinds, and the share an unseen discriminator rejects."""
        found = realism_rows(self.subject, self.settings.realism_count, self.settings.real)
        self.report["realism"] = found
        self.show(f"{found['count']} pictures per set; real: {found['real']}", "")
        columns = list(dict.fromkeys(c for row in reversed(found["rows"].values()) for c in row))
        self.show(table("pictures", found["rows"], columns))

    def interpolation(self) -> None:
        """A region interpolated in 16 steps: largest O; largest step inside divided by the mean step."""
        found = sections.interpolation_rows(self.subject, self.settings.walks)
        error = sections.identity_error(self.subject)
        self.report["interpolation"], self.report["identity"] = found, error
        self.show(table("region", found), "", f"identity: equal codes give that code to within {error:.1e} (relative)")

    def gates(self) -> None:
        """Segment gates per node and style vector: 0 keeps the first child, 1 takes the second."""
        found = sections.gate_table(self.subject, min(64, self.settings.pairs))
        self.report["gates"] = found
        tree = self.subject.pipe.fusion.tree
        for figure in ("mean", "spread"):
            rows = {
                f"{node} ({' | '.join(tree.children(node))})".replace("|", "/"): {v: g[figure] for v, g in by.items()}
                for node, by in found.items()
            }
            self.show(table(f"gates, {figure}", rows), "")

    def diversity(self) -> None:
        """Diversity of a region's looks over 64 sources, relative to the sources' own."""
        found = sections.diversity_rows(self.subject, self.settings.diversity_bases)
        self.report["diversity"] = found
        self.show(table("region", found))

    def curves(self) -> None:
        """All methods at equal transfer: O, and the geometric mean over regions of O divided by ours (paired)."""
        settings = self.settings
        validated: dict[str, Any] = {}

        def save_validated(found: dict[str, dict[str, curves.Curve]]) -> None:
            validated.update((by, curves.compare(found, settings.validation_pairs, by)) for by in curves.KINDS)
            self.report["curves"] = {"on the validation pairs": validated}
            self.show(
                f"On {settings.validation_pairs} validation pairs, on which strengths are chosen, so that methods with"
                " many of them look better than they are:"
            )
            for by, at_levels in validated.items():
                self._show_levels(at_levels, by)
            self.show("", f"On {settings.curve_pairs} test pairs:", "")
            self.save()

        pairs = settings.validation_pairs, settings.curve_pairs
        swept = curves.sweep(self.subject, self.methods, *pairs, save_validated)
        self.curves_kept = swept.curves
        local = curves.local_rows(swept, settings.curve_pairs)
        compared = {by: curves.compare(swept.curves, settings.curve_pairs, by) for by in curves.KINDS}
        self.report["curves"] = {
            "on the validation pairs": validated,
            "as local as ours": local,
            "at equal specific transfer": compared["specific"],
            "at equal transfer": compared["transfer"],
            "chosen on validation pairs": swept.kept,
            "points": points_of(swept.curves),
        }
        self.show("Means over regions; each method at its highest specific transfer with at most 1.1 times our O:", "")
        self.show(table("as local as ours", local), "")
        for by, found in compared.items():
            self._show_levels(found, by)

    def limits(self) -> None:
        """Upper bounds: gates and codes optimized for the test pairs, and each method's share of the possible gain."""
        s = self.settings
        found = limit_curves.limits(self.subject, self.methods, self.curves_kept, s.limit_pairs, steps=s.limit_steps)
        compared = curves.compare(found, s.limit_pairs)
        gained = limit_curves.shares(found, s.limit_pairs)
        self.report["limits"] = {"at": compared, "share": gained, "points": points_of(found)}
        self.limited = found
        self._show_levels(compared, "transfer")
        for level, rows in gained.items():
            self.show("", table(f"share of the limit's gain at T = {level}", rows))

    def _show_levels(self, found: dict[str, Any], by: str) -> None:
        symbol = SYMBOLS[by]
        self.show("", table("ours at full strength", {symbol: found[f"{by}, ours"]}))
        for level, by_method in found.items():
            if level != f"{by}, ours":
                self.show("", table(f"O at {symbol} = {level}", mark_not_reached(by_method)))


def points_of(kept: Any) -> dict[str, Any]:
    """Return {method: {region: [{"strength", "outside", "leak", "specific", "transfer"}]}}."""
    return {name: {leaf: c.points() for leaf, c in by_leaf.items()} for name, by_leaf in kept.items()}


SECTIONS: dict[str, Callable[[Run], None]] = {
    "calibration": Run.calibration,
    "swaps": Run.swaps_section,
    "global": Run.global_section,
    "realism": Run.realism,
    "interpolation": Run.interpolation,
    "gates": Run.gates,
    "diversity": Run.diversity,
    "curves": Run.curves,
    "limits": Run.limits,
}
