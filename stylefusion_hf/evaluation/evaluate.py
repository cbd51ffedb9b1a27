"""`stylefusion evaluate`: settings of a run, the model under test, and the report files."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from stylefusion_hf import __version__
from stylefusion_hf.evaluation.backbone import Backbone
from stylefusion_hf.evaluation.curves import require_ours
from stylefusion_hf.evaluation.fusion_swaps import REFINE_STEPS, StaticGates
from stylefusion_hf.evaluation.judges import SHIPPED, Judges
from stylefusion_hf.evaluation.measurement import LARGEST_SIZE
from stylefusion_hf.evaluation.measuring import Subject
from stylefusion_hf.evaluation.registry import ALWAYS_COMPARED, BY_DEFAULT, SAME_OBJECTIVE, build_methods
from stylefusion_hf.evaluation.report import draw, to_json_types
from stylefusion_hf.evaluation.ruler import Ruler
from stylefusion_hf.evaluation.run import SECTIONS, Run, points_of
from stylefusion_hf.evaluation.sections import IGNORE_SOURCE, SWAP_ROWS
from stylefusion_hf.models.layers import chunk_size
from stylefusion_hf.models.style_generator import StyleGenerator

LARGEST_BATCH = 32  # pairs at once; of pictures above 128 pixels fewer, so that memory does not grow with them
MAX_SEED = 200  # of `measuring.SEED_STRIDE` each, below 2^32


@dataclass(frozen=True)
class Settings:
    """Settings of a run. `methods`: names in `registry.METHODS`; `real`: "avatars", a folder, or None; `model`: name
    in the report; `swap_rows`: names in `sections.SWAP_ROWS` besides "leaf"; `static_gates`: folder of nets of
    constant gates; `refine_steps`: of the method stylefusion-refined.
    """

    model: str = "the embedded model"
    pairs: int = 500
    validation_pairs: int = 48
    curve_pairs: int = 128
    global_pairs: int = 64
    limit_pairs: int = 16
    limit_steps: int = 150
    walks: int = 32
    diversity_bases: int = 6
    calibration_pairs: int = 64
    realism_count: int = 5000
    real: str | None = None
    methods: tuple[str, ...] = BY_DEFAULT
    swap_rows: tuple[str, ...] = ("wider", *IGNORE_SOURCE)
    static_gates: str | None = None
    refine_steps: int = REFINE_STEPS
    seed: int = 0
    quick: bool = False

    def quick_version(self) -> Settings:
        """Return settings for a few minutes on two cores: wide intervals, few methods, no limits."""
        few = ("stylefusion", "mean", "random-code", "interpolation", "editing-in-style-simultaneous")
        return replace(
            self, pairs=32, validation_pairs=8, curve_pairs=16, global_pairs=8, limit_pairs=0, walks=4,
            diversity_bases=2, calibration_pairs=16, realism_count=256, methods=few, quick=True,
        )  # fmt: skip


def measuring_size(resolution: int, judges: Judges, wanted: int | None = None) -> int:
    """Return the measuring size, a height: `wanted`, or the smallest of the model's resolution, the judges' and 256.

    ValueError if the judges' resolution exceeds the model's, or if the size is above the model's or below 16.
    """
    known = [j.config.resolution for j in (judges.portrait, judges.discriminator) if j is not None]
    if known and max(known) > resolution:
        raise ValueError(
            f"the judges in {judges.folder} were trained at {max(known)} pixels, this model has {resolution}: make"
            " judges of its size with `stylefusion train judges` and name their folder with --judges"
        )
    least = min(16, resolution)
    if wanted is not None and not least <= wanted <= resolution:
        raise ValueError(
            f"pictures of {resolution} pixels are measured at {least} to {resolution} pixels, not at {wanted}"
        )
    return wanted or min(resolution, LARGEST_SIZE, *known)


def check_pictures(generator: StyleGenerator, judges: Judges) -> None:
    """Raise ValueError unless the judges see pictures of the generator's channels and aspect ratio."""
    channels, folder = generator.config.img_channels, judges.folder
    known = {"segmenter": getattr(judges.segmenter.config, "img_channels", 3)}
    known |= {} if judges.portrait is None else {"portrait": 3}
    if judges.discriminator is not None:
        known["discriminator"] = judges.discriminator.config.img_channels
        if (base := tuple(judges.discriminator.config.get("base_size") or (4, 4))) != generator.base_size:
            raise ValueError(
                f"the discriminator in {folder} judges pictures that grow from {base[0]} x {base[1]} pixels, this"
                f" model's grow from {generator.base_size[0]} x {generator.base_size[1]}: use judges without it"
            )
    if wrong := [name for name, seen in known.items() if seen != channels]:
        raise ValueError(
            f"this model's pictures have {channels} channels (img_channels), the {wrong[0]} in {folder} sees"
            f" {known[wrong[0]]}: judges that fit come with `stylefusion regions discover`"
        )


def build_subject(
    pipe,
    judges: Judges,
    seed: int = 0,
    batch: int | None = None,
    backbone: Backbone | None = None,
    size: int | None = None,
) -> Subject:
    """Return the pipeline with its judges and ruler.

    batch: pairs that are drawn and judged at once, by default 32 up to 128 pixels and fewer above.
    size: see `measuring_size`.

    Raises:
        ValueError: the pipeline has no segmenter or no regions, the judges' resolution is too large, they do not know
            the tree's leaves, or the seed is not from 0 to 200.
    """
    if pipe.segmenter is None:
        raise ValueError("this model has no segmenter, which evaluation needs to locate regions: add segmenter/")
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed chooses one of {MAX_SEED + 1} sets of pairs, 0 to {MAX_SEED}; got {seed}")
    tree = pipe.fusion.tree
    if dead := [leaf for leaf in tree.leaves if leaf not in tree.active or leaf == tree.root]:
        raise ValueError(
            f"{', '.join(dead)} cannot be swapped, since there is no fusion net above: train nets for the tree {tree}"
        )
    for name, network in (("evaluation segmenter", judges.segmenter), ("model's segmenter", pipe.segmenter)):
        known = list(network.config.regions)
        if missing := [leaf for leaf in tree.leaves if leaf not in known]:
            raise ValueError(
                f"the {name} knows {', '.join(known)}, not the tree's {', '.join(missing)}: make judges for these"
                " regions with `stylefusion train judges` and name their folder with --judges"
            )
    check_pictures(pipe.generator, judges)
    size = measuring_size(pipe.generator.config.resolution, judges, size)
    batch = batch or chunk_size(pipe.generator.mean_side, LARGEST_BATCH)
    posing = [n for n in tree.subtree(tree.children(tree.root)[0]) if n in tree.leaves]
    return Subject(pipe, judges, Ruler(judges.segmenter, judges.portrait, posing, backbone, size), seed, batch)


def evaluate(
    subject: Subject, settings: Settings, names: Sequence[str], out: str | os.PathLike[str]
) -> dict[str, Any]:
    """Run sections in order, print their tables, and write report.json, report.md and plots into `out`.

    The section `limits` needs `curves`, which is run with it. The reports are rewritten after every section, so that
    an interrupted run keeps its results.

    Raises:
        ValueError: an unknown section, row or method, methods without ours, or static gates that are not constant.
    """
    out = Path(out)
    if unknown := [n for n in names if n not in SECTIONS]:
        raise ValueError(f"unknown section {unknown[0]!r}: choose from {', '.join(SECTIONS)}")
    if unknown := [n for n in settings.swap_rows if n not in SWAP_ROWS]:
        raise ValueError(f"unknown row of swaps {unknown[0]!r}: choose from {', '.join(SWAP_ROWS)}")
    if min(settings.pairs, settings.curve_pairs, settings.validation_pairs, settings.global_pairs) < 2:
        raise ValueError("an interval needs at least two pairs")
    if "limits" in names and not settings.limit_pairs:
        raise ValueError("--quick measures no limits without a number of pairs: give --limit-pairs")
    run = Run(subject, settings, out)
    if "limits" in names:  # the strengths that it measures are chosen by the curves
        names = [*names, "curves"]
    if "curves" in names:  # reject unknown names before long computations
        run.methods = require_ours(build_methods(subject.pipe, settings.methods, subject.batch, settings.refine_steps))
        absent = [name for name in ALWAYS_COMPARED if name not in run.methods]
        run.methods |= build_methods(subject.pipe, absent, subject.batch)
        if settings.static_gates:
            run.methods[SAME_OBJECTIVE] = StaticGates.load(subject.pipe, settings.static_gates)
    out.mkdir(parents=True, exist_ok=True)
    run.report |= report_head(subject, settings)
    model, run.report["seconds"] = strip_folders(settings.model), {}
    if settings.quick:
        kind = "QUICK run: few pairs, wide intervals, not for publication"
    else:
        kind = "95 % intervals in brackets"
    run.show(f"# stylefusion evaluate {model} ({kind})", "")
    heads = "; ".join(f"{leaf}: {', '.join(found) or 'none'}" for leaf, found in subject.heads.items())
    run.show(f"Measured at {subject.ruler.size} pixels. Heads used for S and T: {heads}.", "")
    for name in [n for n in SECTIONS if n in names]:
        started = time.monotonic()
        about = (SECTIONS[name].__doc__ or "").strip().split("\n")[0]
        run.show(f"## {name}", about, "")
        SECTIONS[name](run)
        seconds = time.monotonic() - started
        run.report["seconds"][name] = round(seconds, 1)
        run.show("", f"({seconds:.0f} s)", "")
        run.save()
    title = model + (" (quick run)" if settings.quick else "")
    if run.swaps or run.curves_kept or run.poses:
        draw(out / "report.png", points_of(run.curves_kept), run.swaps, run.poses, title)
    if run.limited:
        limit_title = f"{title}: upper bounds, {settings.limit_pairs} pairs"
        draw(out / "limits.png", points_of(run.limited), {}, {}, limit_title, ("transfer",))
    result: dict[str, Any] = to_json_types(run.report)
    return result


def report_head(subject: Subject, settings: Settings) -> dict[str, Any]:
    """Return what was measured and how, without local paths."""
    backbone, model = subject.ruler.backbone, strip_folders(settings.model)
    real = settings.real if settings.real in (None, "avatars") else strip_folders(settings.real)
    static_gates = settings.static_gates and strip_folders(settings.static_gates)
    return {
        "settings": asdict(replace(settings, model=model, real=real, static_gates=static_gates)),
        "measuring size": subject.ruler.size,
        "picture size": subject.pipe.generator.config.resolution,
        "truncation_psi": subject.pipe.generator.config.truncation_psi,
        "judges": {"folder": describe_judges(subject.judges), "there": list(list_judges(subject.judges))},
        "features": getattr(backbone, "name", "the judges'"),
        "heads of transfer": subject.heads,
        "versions": {"stylefusion-hf": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def strip_folders(name: str) -> str:
    """Return a name for the report: the last part of a local path, or the full Hub id."""
    return Path(os.path.abspath(name)).name if os.path.exists(name) else name


def describe_judges(judges: Judges) -> str:
    """Return where the judges came from, without local paths."""
    return "those of the checkout" if Path(judges.folder) == SHIPPED else strip_folders(str(judges.folder))


def list_judges(judges: Judges) -> Iterator[str]:
    """Yield the names of the judges that are present."""
    return (n for n in ("segmenter", "portrait", "discriminator") if getattr(judges, n) is not None)
