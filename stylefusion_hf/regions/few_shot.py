"""Regions from a few painted samples: a head on the generator's features learns the painted regions.

    paint = PaintFolder.create("painted", generator, ["sky", "road", "car", "wheels"], count=8)
    ...  # paint labels/*.png, in any program or on the page of `regions label`
    found = learn(generator, PaintFolder("painted"))  # .tree, .labeller, .report, as from `discover`

Like DatasetGAN (arXiv 2104.06490) and RepurposeGAN (arXiv 2103.04379): an ensemble of small networks reads the
features of all layers at a painted place and then labels any number of samples. Strokes are enough; areas need not be
filled.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stylefusion_hf.core.checks import listed
from stylefusion_hf.core.files import save_image, write_json
from stylefusion_hf.core.json_files import read_json
from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.evaluation.pairs import style_codes
from stylefusion_hf.imaging.images import open_labels
from stylefusion_hf.imaging.modes import check_viewable, to_picture
from stylefusion_hf.models.labeller import FeatureLabeller, describe, readable_layers
from stylefusion_hf.models.layers import chunk_size
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.regions.clustering import contingency, jaccard
from stylefusion_hf.regions.discovery import Discovery, sample_codes
from stylefusion_hf.regions.naming import named_tree
from stylefusion_hf.regions.sheet import region_colours
from stylefusion_hf.regions.working_size import working_size

UNPAINTED = 255
FINEST = 128  # pixels of the finest feature maps in use
MAX_PLACES = 6_000  # painted places used for fitting


class PaintFolder:
    """A folder of samples and their paint: images/, labels/ (palette PNGs, 255 for unpainted) and dataset.json with
    the names of the regions and the seeds of the samples.

    Raises:
        ValueError: the folder has no such files, or dataset.json is unusable.
    """

    def __init__(self, root: str | os.PathLike[str]):
        self.root = Path(root)
        try:
            about = read_json(self.root / "dataset.json")
            self.regions = [str(name) for name in about["regions"]]
            self.seeds = [int(seed) for seed in about["seeds"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{root} has no samples to paint ({error}): make them with `stylefusion regions label`"
            ) from None
        if not 2 <= len(self.regions) <= 20 or len(set(self.regions)) != len(self.regions):
            raise ValueError(f"{root}: expected 2 to 20 distinct region names, got {listed(self.regions)}")

    @classmethod
    def create(
        cls, root: str | os.PathLike[str], generator: StyleGenerator, regions: Sequence[str], count: int
    ) -> PaintFolder:
        """Write samples of the seeds 0 .. count - 1 with empty labels. An existing folder with the same regions and at
        least as many samples is used as it is.

        Raises:
            ValueError: the folder has samples of other regions, or other files; or the generator's pictures cannot be
                images.
        """
        check_viewable(generator.config.img_channels)
        folder = Path(root)
        if (folder / "dataset.json").is_file():
            found = cls(folder)
            if found.regions != list(regions) or len(found.seeds) < count:
                raise ValueError(
                    f"{root} has {len(found.seeds)} samples of the regions {', '.join(found.regions)}: name another"
                    " folder, or use these regions and at most as many samples"
                )
            return found
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{root} is not empty and has no samples to paint: name a new folder")
        for name in ("images", "labels"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        about = {"regions": list(regions), "seeds": list(range(count)), "unpainted": UNPAINTED}
        write_json(folder / "dataset.json", about)
        found = cls(folder)
        for seed, image in zip(found.seeds, sample_images(generator, found.seeds), strict=True):
            save_image(as_picture(image), found.image_file(seed), sync=False)
            found.paint(seed, np.full(generator.picture_size, UNPAINTED, np.uint8))
        return found

    def image_file(self, seed: int) -> Path:
        return self.root / "images" / f"seed-{seed}.png"

    def label_file(self, seed: int) -> Path:
        return self.root / "labels" / f"seed-{seed}.png"

    def paint(self, seed: int, labels: np.ndarray) -> None:
        """Save labels (H, W), uint8: region numbers, or UNPAINTED."""
        image = Image.fromarray(labels)
        palette = [c for colour in region_colours(len(self.regions)) for c in colour]
        image.putpalette(palette + [255] * (768 - len(palette)))
        save_image(image, self.label_file(seed))

    def labels(self, seed: int) -> np.ndarray:
        """Read labels (H, W), uint8; ValueError for values other than the regions' numbers and UNPAINTED."""
        file = self.label_file(seed)
        try:
            found = open_labels(file)
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error}") from None
        known = (found < len(self.regions)) | (found == UNPAINTED)
        if not known.all():
            raise ValueError(
                f"{file} has the value {found[~known][0]}: expected 0 to {len(self.regions) - 1} for"
                f" {listed(self.regions)}, or {UNPAINTED} for unpainted"
            )
        return found

    def painted(self) -> list[int]:
        """Return the seeds of the samples that have any paint."""
        return [seed for seed in self.seeds if (self.labels(seed) != UNPAINTED).any()]


@torch.no_grad()
def sample_images(generator: StyleGenerator, seeds: Sequence[int]) -> Tensor:
    """Generate images (N, C, H, W) in [-1, 1] from seeds."""
    parts = style_codes(generator, seeds).split(chunk_size(generator.mean_side, 16))
    return torch.cat([generator.synthesis(s).float().clamp(-1, 1).cpu() for s in parts])


def as_picture(image: Tensor) -> Image.Image:
    """Convert (C, H, W), of 1 to 4 channels, in [-1, 1] to a PIL image."""
    return to_picture(image.add(1).mul(127.5).round().to(torch.uint8).permute(1, 2, 0).numpy())


@torch.no_grad()
def painted_places(generator: StyleGenerator, codes: Tensor, labels: Sequence[np.ndarray], regions: int):
    """Return features (P, D), region numbers (P,) and picture numbers (P,) of all painted places; codes are (N, S)."""
    layers = readable_layers(generator, FINEST)
    size, seen = max(layers), working_size(generator, layers=layers)
    features, targets, pictures = [], [], []
    for n, (code, label) in enumerate(zip(codes, labels, strict=True)):
        known = torch.from_numpy(label.astype(np.int64))
        votes = torch.stack([known == r for r in range(regions)])[None].float()
        if votes.shape[-2] != size:
            votes = F.adaptive_avg_pool2d(votes, generator.size_at(size))
        votes = votes[0].flatten(1)
        painted = votes.amax(0) > 0
        _, maps = generator.synthesis(code[None], return_features=True, up_to=seen)
        features.append(describe(maps, layers, size)[0].flatten(1).t()[painted.to(code.device)])
        targets.append(votes.argmax(0)[painted].to(code.device))
        pictures.append(torch.full_like(targets[-1], n))
    return torch.cat(features), torch.cat(targets), torch.cat(pictures)


def fit_head(
    generator: StyleGenerator,
    x: Tensor,
    y: Tensor,
    regions: Sequence[str],
    hidden: Sequence[int] = (64,),
    members: int = 5,
    steps: int = 200,
    seed: int = 0,
) -> FeatureLabeller:
    """Fit a labeler to features (P, D) of painted places and their regions (P,), with equal weight per region."""
    layers = readable_layers(generator, FINEST)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = FeatureLabeller.of(generator, regions, layers, hidden=list(hidden), members=members)
        chosen = torch.randperm(len(x))[:MAX_PLACES].to(x.device)
        # Every member drops a fifth of the places, so that members disagree where the data do not decide.
        kept = (torch.rand(members, len(chosen)) < 0.8).to(x)
    head = head.to(x.device).train()
    x, y = x[chosen], y[chosen]
    counts = torch.bincount(y, minlength=len(regions)).float()
    weight = kept * (1 / counts.clamp_min(1))[y]
    weight = weight / weight.sum(1, keepdim=True)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(steps):
        found = head.read(x.t()[None])[0]  # (M, R, P)
        loss = -(found.gather(1, y.expand(members, 1, -1))[:, 0] * weight).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.eval().requires_grad_(False)


def learn(
    generator: StyleGenerator, paint: PaintFolder, check: bool = True, seed: int = 0, progress: bool = True
) -> Discovery:
    """Fit a labeler to painted samples, and build the tree of its regions from fresh samples.

    Args:
        generator: the generator of the samples, in eval mode.
        paint: the samples.
        check: leave each painted picture out once, and report the IoU on its painted places.
        seed: seed of weights and fresh samples.

    Raises:
        ValueError: nothing is painted, a region is not painted anywhere, or labels have another size.
    """
    seeds = paint.painted()
    labels = [paint.labels(s) for s in seeds]
    missing = [n for i, n in enumerate(paint.regions) if not any((label == i).any() for label in labels)]
    if missing:
        raise ValueError(f"nothing is painted for {', '.join(missing)} yet: a stroke in one or two samples will do")
    height, width = generator.picture_size
    for s, label in zip(seeds, labels, strict=True):
        if label.shape != (height, width):
            raise ValueError(
                f"{paint.label_file(s)} is {label.shape[1]} x {label.shape[0]}, its sample {width} x {height}"
            )
    x, y, picture = painted_places(generator, style_codes(generator, seeds), labels, len(paint.regions))
    head = fit_head(generator, x, y, paint.regions, seed=seed)
    report: dict[str, Any] = {"painted": seeds, "places": len(x), "seed": seed, "num_regions": len(paint.regions)}
    if check and len(seeds) > 2:
        report["IoU on painted pictures left out"] = _cross_validate(generator, x, y, picture, paint.regions, progress)
    codes = sample_codes(generator, 64, torch.Generator().manual_seed(seed))
    maps = predict_labels(generator, head, codes, working_size(generator, layers=head.config.resolutions))
    tree, _ = named_tree(maps, len(paint.regions), paint.regions)
    share = torch.bincount(maps.flatten(), minlength=len(paint.regions)).float() / maps.numel()
    report |= {"tree": str(tree), "area": {n: round(float(a), 4) for n, a in zip(paint.regions, share, strict=True)}}
    return Discovery(tree, head, report)


@torch.no_grad()
def predict_labels(
    generator: StyleGenerator, labeller: FeatureLabeller, codes: Tensor, size: int | None = None
) -> Tensor:
    """Predict label maps (N, size, width) for style codes (N, S), on the CPU; size: None for full pictures' height."""
    size, seen = size or generator.config.resolution, working_size(generator, layers=labeller.config.resolutions)
    found = []
    for s in codes.split(chunk_size(max(size, seen), 16)):
        _, maps = generator.synthesis(s, return_features=True, up_to=seen)
        found.append(labeller.label(maps, size).argmax(1).cpu())
    return torch.cat(found)


def _cross_validate(
    generator: StyleGenerator, x: Tensor, y: Tensor, picture: Tensor, regions: Sequence[str], progress: bool
) -> dict[str, float]:
    n = len(regions)
    counts = torch.zeros(n, n)
    for k in tqdm(range(int(picture.max()) + 1), desc="leaving one out", disable=not progress, leave=False):
        out = picture == k
        head = fit_head(generator, x[~out], y[~out], regions, steps=100)
        guess = head.read(x[out].t()[None])[0].exp().mean(0).argmax(0)
        counts += contingency(y[out], guess, n, n).cpu()
    iou = jaccard(counts).diag()
    rows = {name: round(float(v), 3) for name, v in zip(regions, iou, strict=True)}
    return rows | {"mean": round(float(iou.mean()), 3)}
