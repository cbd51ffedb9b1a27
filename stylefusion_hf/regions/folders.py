"""A folder of regions that were found or taught: what `stylefusion regions` writes and `train fusion --regions` reads.

tree.json           the tree; its names may be edited by hand, or its shape, one at a time
regions.png         samples, tinted by region, and the tree
regions.json        how they were found, and how well the segmenters know them
segmenter/          for the pipeline
judges/segmenter/   another one, for `stylefusion evaluate --judges`
labeller/           what reads them off feature maps
samples.png         the pictures in regions.png, in a row
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from stylefusion_hf.core.checks import listed, shown
from stylefusion_hf.core.codes import random_labels
from stylefusion_hf.core.files import save_image, write_json, write_text
from stylefusion_hf.core.json_files import read_json, read_object
from stylefusion_hf.core.region_tree import LARGEST_TREE, RegionTree
from stylefusion_hf.imaging.images import open_image, pixels_to_tensor
from stylefusion_hf.imaging.modes import check_viewable
from stylefusion_hf.imaging.sheets import image_grid
from stylefusion_hf.models.labeller import FeatureLabeller
from stylefusion_hf.models.layers import chunk_size
from stylefusion_hf.models.segmenter import RegionSegmenter
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.regions.discovery import Discovery, discover, sample_codes
from stylefusion_hf.regions.distillation import SAMPLES, Teacher, distil, label_samples, labeller_teacher
from stylefusion_hf.regions.naming import named_tree
from stylefusion_hf.regions.sheet import region_sheet
from stylefusion_hf.regions.working_size import LARGEST, working_size

NETWORKS = {"segmenter": RegionSegmenter, "judges/segmenter": RegionSegmenter, "labeller": FeatureLabeller}
SHOWN = 16  # samples in the picture
JUDGE_CHANNELS = (24, 32, 64, 96), (8, 24, 48, 96)  # unlike the segmenter's; for full pictures and for previews


def find_regions(
    folder: str | Path,
    generator: StyleGenerator,
    samples: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
    resolution: int | None = None,
    **how: Any,
) -> Path:
    """Discover regions, distil them, and write the folder; `how` goes to `discover`.

    ValueError for a generator whose pictures cannot be images, since the folder shows some.
    """
    check_viewable(generator.config.img_channels)
    found = discover(generator, seed=seed, progress=progress, resolution=resolution, **how)
    return write_found(folder, generator, found, samples, steps, seed, progress, resolution)


def write_found(
    folder: str | Path,
    generator: StyleGenerator,
    found: Discovery,
    samples: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
    resolution: int | None = None,
) -> Path:
    """`write_regions` of a labeller that was found or taught, which is kept in labeller/."""
    names, teacher = list(found.labeller.config.regions), labeller_teacher(found.labeller)
    labeller: Any = found.labeller  # mypy does not see through its wraps
    labeller.save_pretrained(Path(folder) / "labeller")
    size = working_size(generator, resolution, found.labeller.config.resolutions)
    return write_regions(
        folder, generator, found.tree, teacher, names, found.report, samples, steps, seed, progress, size, size
    )


def write_regions(
    folder: str | Path,
    generator: StyleGenerator,
    tree: RegionTree,
    teacher: Teacher,
    names: Sequence[str],
    report: Mapping[str, Any],
    samples: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
    resolution: int | None = None,
    teacher_resolution: int | None = None,
) -> Path:
    """Distil a teacher twice, for the pipeline and for its judge, and write everything; regions.json comes last.

    Args:
        folder: made where it is not there; what is in it is replaced.
        generator: whose pictures the teacher labels.
        tree: its leaves are among `names`.
        teacher, names: what labels, and the regions of its maps.
        report: of how the regions were found.
        samples, steps, seed: of the distillation.
        resolution: of the pictures that the segmenters see; None for `working_size`.
        teacher_resolution: of the pictures and feature maps that the teacher sees; None for full ones.
    """
    folder, report = Path(folder), dict(report)
    check_viewable(generator.config.img_channels)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "regions.json").unlink(missing_ok=True)
    size = working_size(generator, resolution)
    previews = size < generator.config.resolution
    samples = SAMPLES[previews] if samples is None else samples
    labelled = label_samples(generator, teacher, samples, size, teacher_resolution, 2 * seed, progress)
    for part, number, channels in (("segmenter", 0, None), ("judges/segmenter", 1, JUDGE_CHANNELS[previews])):
        student, iou = distil(
            generator,
            teacher,
            names,
            samples,
            steps,
            channels=channels,
            seed=2 * seed + number,
            progress=progress,
            resolution=size,
            labelled=labelled,
        )
        student.cpu().save_pretrained(folder / part)
        report[f"IoU of {part} with what it learned from"] = {k: round(v, 3) for k, v in iou.items()}
    save_image(sample_strip(generator, SHOWN, seed), folder / "samples.png")
    write_text(folder / "tree.json", tree.to_json(indent=1) + "\n")
    _finish(folder, tree, report)
    return folder


@torch.no_grad()
def tree_by_looking(generator: StyleGenerator, segmenter: Any, seed: int = 0, samples: int = 64) -> RegionTree:
    """A tree of a segmenter's regions, by what they touch and move with in samples."""
    codes = sample_codes(generator, samples, torch.Generator().manual_seed(seed))
    parts = codes.split(chunk_size(generator.mean_side, 16))
    maps = []
    for s in parts:
        labels = segmenter.segment(generator.synthesis(s).clamp(-1, 1))
        if labels.shape[-2] > LARGEST:  # a tree needs no finer maps
            labels = F.adaptive_avg_pool2d(labels, generator.size_at(LARGEST))
        maps.append(labels.argmax(1).cpu())
    names = list(segmenter.config.regions)
    return named_tree(torch.cat(maps), len(names), names)[0]


def read_regions(folder: str | Path) -> tuple[RegionTree, RegionSegmenter]:
    """The tree and the segmenter of a folder, once the names in tree.json have been taken up.

    Raises:
        ValueError: the folder is incomplete, or tree.json does not fit the segmenter.
    """
    tree = update_regions(folder)
    return tree, RegionSegmenter.from_pretrained(folder, subfolder="segmenter").eval().requires_grad_(False)


def update_regions(folder: str | Path) -> RegionTree:
    """Take up what tree.json says after editing: new names in the same tree, or another tree of the same names.

    Names go into the networks' configs and the picture is drawn again. Returns the tree.

    Raises:
        ValueError: the folder is incomplete, or names and shape have both changed.
    """
    folder = Path(folder)
    try:
        report = read_object(folder / "regions.json")
        old = RegionTree.parse(report["tree"])
        edited = read_json(folder / "tree.json", largest=LARGEST_TREE)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} holds no finished regions ({error}): make them with `stylefusion regions"
            f" discover --out {folder}`"
        ) from None
    try:
        tree = RegionTree.from_dict(edited)
    except ValueError as error:
        raise ValueError(f"{folder / 'tree.json'}: {error}") from None
    if tree == old:
        return tree
    known = set(old.leaves)
    if shape(tree) == shape(old):
        names = dict(zip(old.nodes, tree.nodes, strict=True))
    elif set(tree.leaves) <= known:
        names = {n: n for n in old.nodes}
    else:
        new = listed(n for n in tree.leaves if n not in known)
        raise ValueError(
            f"{folder / 'tree.json'} has another shape and new names ({new}): change the names first, run `stylefusion"
            f" regions update {folder}`, then the shape; the tree was {shown(str(old), 400)}"
        )
    for part, kind in NETWORKS.items():
        if not (folder / part).is_dir():  # a segmenter that was distilled has no labeller
            continue
        network = kind.from_pretrained(folder / part)  # type: ignore[attr-defined]
        network.register_to_config(regions=[names.get(n, n) for n in network.config.regions])
        network.save_pretrained(folder / part)
    for key, value in report.items():
        if isinstance(value, dict):
            report[key] = {names.get(k, k): v for k, v in value.items()}
    _finish(folder, tree, report)
    return tree


def shape(tree: RegionTree) -> Any:
    """The tree without its names: nested pairs, and whether each has a net."""

    def below(name: str) -> Any:
        children = tree.children(name)
        return (name in tree.fused, *map(below, children)) if children else ()

    return below(tree.root)


@torch.no_grad()
def sample_strip(generator: StyleGenerator, count: int, seed: int) -> Image.Image:
    """Plain samples at the model's own truncation, side by side."""
    draw = torch.Generator().manual_seed(seed + 1)
    z = torch.randn(count, generator.config.z_dim, generator=draw, dtype=torch.float32).to(generator.w_avg)
    labels = random_labels(generator.config.label_dim, count, draw)
    w = generator.mapping(z, None if labels is None else labels.to(z))
    s = generator.to_style(generator.truncate(w, generator.config.truncation_psi))
    pictures = [generator.synthesis(part).cpu() for part in s.split(chunk_size(generator.mean_side, 4))]
    if pictures[0].shape[-2] > LARGEST:  # the strip is for looking at, a full one would take megabytes
        pictures = [F.adaptive_avg_pool2d(x, generator.size_at(LARGEST)) for x in pictures]
    return image_grid(torch.cat(pictures), count)


def _finish(folder: Path, tree: RegionTree, report: Mapping[str, Any]) -> None:
    """Draw regions.png and write regions.json."""
    segmenter = RegionSegmenter.from_pretrained(folder, subfolder="segmenter").eval()
    strip = open_image(folder / "samples.png", segmenter.config.img_channels)
    side = strip.width // SHOWN
    pictures = [strip.crop((x, 0, x + side, strip.height)) for x in range(0, strip.width, side)]
    with torch.no_grad():
        x = torch.stack([pixels_to_tensor(p) for p in pictures])
        labels = segmenter.segment(x).argmax(1).numpy().astype(np.uint8)
    notes = {name: _note(name, report) for name in tree.leaves}
    save_image(region_sheet(pictures, labels, segmenter.config.regions, tree, notes), folder / "regions.png")
    write_json(folder / "regions.json", {**report, "tree": str(tree)})


def _note(name: str, report: Mapping[str, Any]) -> str:
    parts = []
    if name in report.get("area", {}):
        parts.append(f"{100 * report['area'][name]:.1f} % of the pictures")
    if name in report.get("stability", {}):
        parts.append(f"found again: {report['stability'][name]:.2f}")
    return ", ".join(parts)
