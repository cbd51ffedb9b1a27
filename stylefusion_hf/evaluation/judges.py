"""Judges: networks used only for evaluation; no generator or fusion net was trained with them.

    judges = load_judges()                          # those of the checkout: stylefusion_hf/assets/evaluation
    found = judges.portrait.judge(images)           # pose, attributes, colors and features of (B, 3, H, W)

`training/judges.py` trains them on separate data and seeds. The segmenter locates regions, the portrait judge
classifies their contents (avatars only, for which the renderer provides labels), and the discriminator rates realism.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from stylefusion_hf.models.config_checks import register_to_config
from stylefusion_hf.models.discriminator import StyleGAN2Discriminator
from stylefusion_hf.models.layers import check_images, to_fast_layout
from stylefusion_hf.models.loading import StrictModelMixin
from stylefusion_hf.models.segmenter import ConvBlock, RegionSegmenter

SHIPPED = Path(__file__).resolve().parents[1] / "assets" / "evaluation"
HOW_TO = "train judges with `stylefusion train judges --model MODEL --output_dir DIR` and name DIR"


# --- The portrait judge ----------------------------------------------------------------------------------------------


@dataclass
class JudgeOutput(BaseOutput):
    """Output of a portrait judge for B pictures.

    `points`: (B, P, 2), the pose: x and y of the points `config.point_names` in the coordinates of `affine_grid` (-1
    to 1 from edge to edge). `attributes`: {name: logits (B, classes)} in the order of
    `config.attributes[name]["classes"]`. `colours`: {name: (B, 3)}, RGB in [-1, 1]. `features`: (B, D), the layer
    below points and attributes.
    """

    points: Tensor
    attributes: dict[str, Tensor]
    colours: dict[str, Tensor]
    features: Tensor


def portrait_channels(resolution: int) -> list[int]:
    """Return widths of a portrait judge whose coarsest map has 8 to 15 cells per side, whatever the resolution."""
    widths, cells = [24, 40, 96, 160], resolution // 8
    while cells >= 16 and cells % 2 == 0:
        widths.append(160)
        cells //= 2
    return widths


class PortraitJudge(StrictModelMixin, ConfigMixin):
    """Images (B, 3, H, W) in [-1, 1] -> points, attributes and colors of a portrait.

    Args:
        domain: name of the training domain, for reports.
        point_names: named points of the canonical portrait; two suffice for a similarity.
        attributes: {name: {"region": its region, "classes": [names]}}.
        colours: {name: its region}.
        resolution: images of another size are resized to it; a multiple of the coarsest map's stride.
        channels: widths at 1/2 of the resolution (before and after its convolutions), 1/4, 1/8 and so on, four or
            more. `portrait_channels` adds levels to large pictures, so that the coarsest map has 8 to 15 cells per
            side and each cell sees the whole picture at any resolution.
        reduced: channels of the coarsest map that the features are computed from, cell by cell.
        features: number of features D.
        groups: groups of the group normalization; must divide every width. There are no batch statistics: the output
            for a picture does not depend on the rest of its batch.

    Raises:
        ValueError: a resolution that is not a multiple of the stride, fewer than four widths, widths that `groups`
            does not divide, no point, or an attribute with fewer than two classes.
    """

    @register_to_config
    def __init__(
        self,
        domain: str = "avatars",
        point_names: Sequence[str] = ("crown", "chin"),
        attributes: Mapping[str, Mapping] | None = None,
        colours: Mapping[str, str] | None = None,
        resolution: int = 64,
        channels: Sequence[int] = (24, 40, 96, 160),
        reduced: int = 32,
        features: int = 160,
        groups: int = 8,
    ):
        super().__init__()
        # Sorted by name, as in config.json, so that the rows of the heads keep their meaning after loading.
        attributes, colours = dict(sorted((attributes or {}).items())), dict(sorted((colours or {}).items()))
        if len(channels) < 4 or any(c < 1 or c % groups for c in channels):
            raise ValueError(f"expected four or more widths, multiples of groups={groups}, got {list(channels)}")
        stride = 2 ** (len(channels) - 1)
        if resolution < 2 * stride or resolution % stride:
            raise ValueError(
                f"the resolution of a portrait judge with {len(channels)} widths must be a multiple of {stride}, at"
                f" least {2 * stride}; got {resolution}"
            )
        if not point_names:
            raise ValueError("a portrait judge needs at least one point, got none")
        self.class_counts = {name: len(about["classes"]) for name, about in attributes.items()}
        few = [name for name, count in self.class_counts.items() if count < 2]
        if few:
            raise ValueError(f"every attribute needs two classes or more; {few[0]!r} has {self.class_counts[few[0]]}")
        self.register_to_config(attributes=attributes, colours=colours)
        self.stem = nn.Conv2d(3, channels[0], 4, stride=2, padding=1)
        self.levels = nn.ModuleList(ConvBlock(i, o, groups) for i, o in pairwise(channels))
        self.reduce = nn.Conv2d(channels[-1], reduced, 1)
        # Not pooled: pose depends on where things are.
        self.to_features = nn.Linear(reduced * (resolution // stride) ** 2, features)
        self.to_points = nn.Linear(features, 2 * len(point_names))
        self.to_attributes = nn.Linear(features, sum(self.class_counts.values())) if attributes else None
        self.look_near = nn.Conv2d(channels[-2], len(colours), 1) if colours else None
        self.look_far = nn.Conv2d(channels[-1], len(colours), 1) if colours else None

    def judge(self, images: Tensor, painted: Tensor | None = None) -> JudgeOutput:
        """Return points, attributes, colors and features of images (B, 3, H, W) of any size.

        A color is a mean of the picture's own pixels, weighted by an attention map, not a regression. `painted`
        (default: `images`) are the pixels it is read from, of the same shape; the trainer passes the picture without
        degradations there. ValueError for images of another shape.
        """
        check_images(images, 3)
        x = self._resized(images)
        pixels = x if painted is None else self._resized(painted)
        x = F.silu(self.stem(to_fast_layout(x)))
        maps = []
        for k, block in enumerate(self.levels):
            x = block(F.avg_pool2d(x, 2) if k else x)
            maps.append(x)
        features = F.silu(self.to_features(F.silu(self.reduce(x)).flatten(1)))
        logits = {}
        if self.to_attributes is not None:
            parts = self.to_attributes(features).split(list(self.class_counts.values()), dim=1)
            logits = dict(zip(self.class_counts, parts, strict=True))
        colours = self._colours(pixels, *maps[-2:]) if self.look_near is not None else {}
        return JudgeOutput(self.to_points(features).unflatten(1, (-1, 2)), logits, colours, features)

    def forward(self, images: Tensor, painted: Tensor | None = None, return_dict: bool = True) -> JudgeOutput | tuple:
        """Return the output of `judge`, as a `JudgeOutput` or as a tuple of its fields."""
        found = self.judge(images, painted)
        return found if return_dict else (found.points, found.attributes, found.colours, found.features)

    def _resized(self, images: Tensor) -> Tensor:
        size = self.config.resolution
        if images.shape[-2:] == (size, size):
            return images
        return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True)

    def _colours(self, pixels: Tensor, near: Tensor, far: Tensor) -> dict[str, Tensor]:
        """Average pixels (B, 3, H, W) under the attention of the two coarsest maps: {name: (B, 3)}."""
        assert self.look_near is not None and self.look_far is not None
        looks = self.look_near(near) + F.interpolate(self.look_far(far), scale_factor=2, mode="nearest")
        weight = looks.flatten(2).softmax(dim=2)  # (B, colors, cells)
        cells = F.adaptive_avg_pool2d(pixels, (near.shape[2], near.shape[3])).flatten(2)  # (B, 3, cells)
        found = torch.einsum("bnc,bkc->bnk", weight, cells)
        return dict(zip(self.config.colours, found.unbind(dim=1), strict=True))


# --- Loading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judges:
    """The judges, in float32, in eval mode, without parameter gradients.

    `portrait` is None if there are no labels to train it (pose then comes from masks), `discriminator` if none was
    trained (its column is then missing). `folder`: where they were loaded from.
    """

    segmenter: RegionSegmenter
    portrait: PortraitJudge | None
    discriminator: StyleGAN2Discriminator | None
    folder: Path


def load_judges(folder: str | os.PathLike[str] | None = None, device: str | torch.device = "cpu") -> Judges:
    """Load the judges in `folder`: segmenter/ and, if present, portrait/ and discriminator/.

    Args:
        folder: an output folder of `stylefusion train judges`; None means the judges of this checkout.
        device: device of the networks.

    Raises:
        FileNotFoundError: there is no segmenter; the message says how to train one.
        OSError, ValueError: a judge is damaged or incomplete.
    """
    root = SHIPPED if folder is None else Path(folder)
    if not (root / "segmenter" / "config.json").is_file():
        if folder is None:
            problem = f"this installation has no judges (wheels do not carry them, a checkout does, in {root})"
        else:
            problem = f"{root} holds no judges (there is no segmenter/config.json)"
        raise FileNotFoundError(f"{problem}: {HOW_TO}")

    def load(kind, name: str):
        if name != "segmenter" and not (root / name).is_dir():
            return None
        model = kind.from_pretrained(root, subfolder=name, torch_dtype=torch.float32)
        return model.eval().requires_grad_(False).to(device)

    return Judges(
        load(RegionSegmenter, "segmenter"),
        load(PortraitJudge, "portrait"),
        load(StyleGAN2Discriminator, "discriminator"),
        root,
    )
