"""`stylefusion evaluate`: which sections there are, how large they are by default, and what each one prints."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from stylefusion_hf import __version__
from stylefusion_hf.core.files import write_text
from stylefusion_hf.evaluation import curves as at_equal_transfer
from stylefusion_hf.evaluation import sections
from stylefusion_hf.evaluation.backbone import Backbone
from stylefusion_hf.evaluation.baselines import METHODS, build_methods
from stylefusion_hf.evaluation.judges import Judges
from stylefusion_hf.evaluation.measuring import Subject
from stylefusion_hf.evaluation.methods import Method
from stylefusion_hf.evaluation.realism import realism_rows
from stylefusion_hf.evaluation.report import draw, not_reached, plain, table, write_json
from stylefusion_hf.evaluation.ruler import Ruler

MAX_SEED = 200  # of `measuring.SEED_STRIDE` each, below 2^32
SWAP_COLUMNS = (
    "outside", "transfer", "transfer, noisy", "transfer_colour", "transfer_texture", "transfer_outline", "response",
    "dead", "leak", "flips", "noticed", "area", "became", "stayed", "agree", "agree_plain",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Sizes of a run. `methods` are names of `baselines.METHODS`; `real` is "avatars", a folder, or None; `model` is
    its name in the report.
    """

    model: str = "the embedded model"
    pairs: int = 500
    validation_pairs: int = 48
    curve_pairs: int = 128
    limit_pairs: int = 16
    limit_steps: int = 150
    walks: int = 32
    diversity_bases: int = 6
    calibration_pairs: int = 64
    realism_count: int = 5000
    real: str | None = None
    methods: tuple[str, ...] = tuple(METHODS)
    seed: int = 0
    quick: bool = False

    def quickened(self) -> Settings:
        """A look of about two minutes on two cores: wide intervals, three methods, no limits."""
        few = ("stylefusion", "interpolation", "editing-in-style-simultaneous")
        return replace(
            self, pairs=32, validation_pairs=8, curve_pairs=16, limit_pairs=0, walks=4, diversity_bases=2,
            calibration_pairs=16, realism_count=256, methods=few, quick=True,
        )  # fmt: skip


@dataclass
class Run:
    """A run in progress: sections add to `report` and to `text` (markdown)."""

    subject: Subject
    settings: Settings
    report: dict[str, Any] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    methods: dict[str, Method] = field(default_factory=dict)
    kept: dict[str, dict[str, at_equal_transfer.Curve]] = field(default_factory=dict)
    limited: dict[str, dict[str, at_equal_transfer.Curve]] = field(default_factory=dict)
    swaps: dict[str, Any] = field(default_factory=dict)

    def show(self, *lines: str) -> None:
        """Print, and keep for the report."""
        print(*lines, sep="\n", flush=True)
        self.text += lines

    # --- sections, in the order of the report ---

    def calibration(self) -> None:
        """Swaps that the renderer draws exactly (avatars only): what the ruler reads where the answer is known."""
        from stylefusion_hf.evaluation.calibration import calibrate

        size = self.subject.pipe.generator.config.resolution
        found = calibrate(self.subject.ruler, self.settings.calibration_pairs, size)
        self.report["calibration"] = found
        rows = {
            region: {f"{figure}, {swap}": kinds[swap][figure] for swap in kinds for figure in ("transfer", "outside")}
            for region, kinds in found.items()
        }
        self.show(table("region", rows), "")
        noisy = {region: {"transfer": kinds["true swap"]["transfer, noisy"]} for region, kinds in found.items()}
        self.show(table("true swap, the noise left in", noisy))

    def swaps_section(self) -> None:
        """One region from b: outside change O, transfer T (see the head of ruler.py), and what stands beside them.

        `wider` is the authors' expansion: the leaf and its parent's common code.
        """
        found = sections.swap_rows(self.subject, self.settings.pairs)
        self.report["swaps"], self.swaps = found, found["leaf"]
        self.show(table("leaf code only", found["leaf"], SWAP_COLUMNS), "")
        self.show(table("wider", found["wider"], ("outside", "transfer", "response", "leak", "stayed")), "")
        quartiles = [f"transfer q{q}" for q in range(1, 5)]
        self.show(table("transfer by quartile of the pose gap", found["leaf"], quartiles))

    def global_section(self) -> None:
        """Common codes from a third picture c: pose 0 is c's, 1 still a's; regions: how much of a's look stays."""
        found = sections.global_rows(self.subject, self.settings.pairs // 2 or 1)
        self.report["global"] = found
        self.show(table("from c", found))

    def realism(self) -> None:
        """KID against real pictures, precision, recall, and the share implausible to an unseen discriminator."""
        found = realism_rows(self.subject, self.settings.realism_count, self.settings.real)
        self.report["realism"] = found
        self.show(f"{found['count']} pictures on each side; real: {found['real']}", "")
        self.show(table("pictures", found["rows"]))

    def interpolation(self) -> None:
        """A region moved in 16 steps: O at its largest; the largest step inside over the mean step."""
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
        """Looks of a region over 64 sources, as a share of the sources' own diversity."""
        found = sections.diversity_rows(self.subject, self.settings.diversity_bases)
        self.report["diversity"] = found
        self.show(table("region", found))

    def curves(self) -> None:
        """Every method at equal transfer: O, and the geometric mean over regions of O divided by ours (paired)."""
        settings = self.settings
        self.kept, chosen = at_equal_transfer.sweep(
            self.subject, self.methods, settings.validation_pairs, settings.curve_pairs
        )
        found = at_equal_transfer.compare(self.kept, settings.curve_pairs)
        self.report["curves"] = {"at": found, "chosen on validation pairs": chosen, "points": points_of(self.kept)}
        self._show_levels(found)

    def limits(self) -> None:
        """The limit of S: gates and codes optimised for the very pairs at hand, and each method's share of it."""
        if not self.kept:
            self.curves()
        s = self.settings
        found = at_equal_transfer.limits(self.subject, self.methods, self.kept, s.limit_pairs, steps=s.limit_steps)
        compared = at_equal_transfer.compare(found, s.limit_pairs)
        gained = at_equal_transfer.shares(found, s.limit_pairs)
        self.report["limits"] = {"at": compared, "share": gained, "points": points_of(found)}
        self.limited = found
        self._show_levels(compared)
        for level, rows in gained.items():
            self.show("", table(f"share of the limit's gain at T = {level}", rows))

    def _show_levels(self, found: dict[str, Any]) -> None:
        rows = {"T": found["transfer, ours"]}
        self.show(table("ours at full strength", rows))
        for level, by_method in found.items():
            if level != "transfer, ours":
                self.show("", table(f"O at T = {level}", not_reached(by_method)))


def points_of(curves: Any) -> dict[str, Any]:
    """{method: {region: [{"strength", "outside", "transfer"}]}}."""
    return {name: {leaf: c.points() for leaf, c in by_leaf.items()} for name, by_leaf in curves.items()}


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


def build_subject(pipe, judges: Judges, seed: int = 0, batch: int = 32, backbone: Backbone | None = None) -> Subject:
    """The pipeline with its ruler.

    Raises:
        ValueError: the pipeline has no segmenter or no regions, the judges are of another size or know other regions
            than the tree's leaves, or the seed is not from 0 to 200.
    """
    if pipe.segmenter is None:
        raise ValueError("this model has no segmenter, so there is no telling inside from outside: add segmenter/")
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed chooses one of {MAX_SEED + 1} sets of pairs, 0 to {MAX_SEED}; got {seed}")
    tree, size = pipe.fusion.tree, pipe.generator.config.resolution
    if dead := [leaf for leaf in tree.leaves if leaf not in tree.active or leaf == tree.root]:
        raise ValueError(
            f"{', '.join(dead)} cannot be swapped, since no fusion net stands above: train nets for the tree {tree}"
        )
    for name, network in (("evaluation segmenter", judges.segmenter), ("model's segmenter", pipe.segmenter)):
        known = list(network.config.regions)
        if missing := [leaf for leaf in tree.leaves if leaf not in known]:
            raise ValueError(
                f"the {name} knows {', '.join(known)}, not the tree's {', '.join(missing)}: make judges for these"
                " regions with `stylefusion train judges` and name their folder with --judges"
            )
    for judge in (judges.portrait, judges.discriminator):
        if judge is not None and judge.config.resolution != size:
            raise ValueError(
                f"the judges in {judges.folder} were trained at {judge.config.resolution} pixels, this model has"
                f" {size}: make judges of its size with `stylefusion train judges` and name their folder with --judges"
            )
    posing = [n for n in tree.subtree(tree.children(tree.root)[0]) if n in tree.leaves]
    return Subject(pipe, judges, Ruler(judges.segmenter, judges.portrait, posing, backbone), seed, batch)


def evaluate(subject: Subject, settings: Settings, names: Sequence[str], out: Path) -> dict[str, Any]:
    """Run sections in order, print their tables, and write report.json, report.md and pictures into `out`.

    The files are written anew after every section, so that an interrupted run leaves what it measured.

    Raises:
        ValueError: an unknown section or method, or methods without our own.
    """
    if unknown := [n for n in names if n not in SECTIONS]:
        raise ValueError(f"unknown section {unknown[0]!r}: choose from {', '.join(SECTIONS)}")
    if min(settings.pairs, settings.curve_pairs) < 2:
        raise ValueError("an interval needs two pairs or more")
    if "limits" in names and not settings.limit_pairs:
        raise ValueError("a quick look has no limits unless it is told how many pairs: give --limit-pairs")
    out.mkdir(parents=True, exist_ok=True)
    run = Run(subject, settings)
    if "curves" in names or "limits" in names:  # an unknown name is told now, not after the other sections
        run.methods = at_equal_transfer.checked(build_methods(subject.pipe, settings.methods))
    backbone = subject.ruler.backbone
    run.report |= {
        "settings": asdict(settings),
        "truncation_psi": subject.pipe.generator.config.truncation_psi,
        "judges": {"folder": str(subject.judges.folder), "there": list(judge_names(subject.judges))},
        "features": backbone.name if isinstance(backbone, Backbone) else "the judges'",
        "heads of transfer": subject.heads,
        "versions": {"stylefusion-hf": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    kind = (
        "a QUICK look: few pairs, wide intervals, not for publication"
        if settings.quick
        else "95 % intervals in brackets"
    )
    run.show(f"# stylefusion evaluate {settings.model} ({kind})", "")
    heads = "; ".join(f"{leaf}: {', '.join(found) or 'none'}" for leaf, found in subject.heads.items())
    run.show(f"Heads that make the transfer: {heads}.", "")
    run.report["seconds"] = {}
    for name in [n for n in SECTIONS if n in names]:
        started = time.monotonic()
        about = (SECTIONS[name].__doc__ or "").strip().split("\n")[0]
        run.show(f"## {name}", about, "")
        SECTIONS[name](run)
        seconds = time.monotonic() - started
        run.report["seconds"][name] = round(seconds, 1)
        run.show("", f"({seconds:.0f} s)", "")
        write_json(run.report, out / "report.json")
        write_text(out / "report.md", "\n".join(run.text) + "\n")
    title = settings.model + (" (quick look)" if settings.quick else "")
    if run.swaps or run.kept:
        draw(out / "report.png", points_of(run.kept), run.swaps, title)
    if run.limited:
        draw(out / "limits.png", points_of(run.limited), {}, f"{title}: the limit of S, {settings.limit_pairs} pairs")
    result: dict[str, Any] = plain(run.report)
    return result


def judge_names(judges: Judges) -> Iterator[str]:
    """Which judges there are."""
    return (n for n in ("segmenter", "portrait", "discriminator") if getattr(judges, n) is not None)
