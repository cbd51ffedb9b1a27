"""The judges: networks that only the evaluation uses, and that no generator and no fusion net was trained with.

    judges = load_judges()                          # those of the checkout: stylefusion_hf/assets/evaluation
    found = judges.portrait.judge(images)           # pose, attributes, colors and features of (B, 3, H, W)

`training/judges.py` makes them, on data and seeds of their own. The segmenter says where regions are, the portrait
judge what is in them (avatars only: the renderer knows every label), the discriminator how real a picture looks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from stylefusion_hf.models.discriminator import StyleGAN2Discriminator
from stylefusion_hf.models.layers import to_fast_layout
from stylefusion_hf.models.loading import StrictModelMixin
from stylefusion_hf.models.segmenter import ConvBlock, RegionSegmenter

SHIPPED = Path(__file__).resolve().parents[1] / "assets" / "evaluation"
HOW_TO = "make judges with `stylefusion train judges --model MODEL --output_dir DIR` and name DIR"


# --- What is in a portrait -------------------------------------------------------------------------------------------


@dataclass
class JudgeOutput(BaseOutput):
    """What a portrait judge sees in B pictures.

    `points`: (B, P, 2), x and y of the points `config.point_names`, in `affine_grid`'s units (-1 to 1 from edge to
    edge): the pose. `attributes`: {name: logits (B, classes)} in the order of `config.attributes[name]["classes"]`.
    `colours`: {name: (B, 3)}, RGB in [-1, 1]. `features`: (B, D), the layer that points and attributes are read from.
    """

    points: Tensor
    attributes: dict[str, Tensor]
    colours: dict[str, Tensor]
    features: Tensor


class PortraitJudge(StrictModelMixin, ConfigMixin):
    """Images (B, 3, H, W) in [-1, 1] -> where a portrait's points lie, which parts it is made of, in which colors.

    Args:
        domain: what it was trained on, for reports.
        point_names: named points of the canonical portrait; two suffice for a similarity.
        attributes: {name: {"region": the region it belongs to, "classes": [names]}}.
        colors: {name: the region it belongs to}.
        resolution: pixels; images of another size are resized inside. A multiple of 8.
        channels: widths at 1/2 (before and after its convolutions), 1/4 and 1/8 of the resolution.
        reduced: channels of the map at 1/8 of the resolution that the features see, place by place.
        features: D, how many numbers the features are.
        groups: of the group normalization; must divide every width. There are no batch statistics: what is said of a
            picture does not depend on the rest of its batch.

    Raises:
        ValueError: a resolution that is no multiple of 8, four widths that `groups` does not divide, no point, an
            attribute with fewer than two classes.
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
        # By name: config.json sorts its keys, and the heads' rows must mean the same after loading.
        attributes, colours = dict(sorted((attributes or {}).items())), dict(sorted((colours or {}).items()))
        if resolution < 16 or resolution % 8:
            raise ValueError(f"a portrait judge's resolution must be a multiple of 8 from 16, got {resolution}")
        if len(channels) != 4 or any(c < 1 or c % groups for c in channels):
            raise ValueError(f"expected four widths that are multiples of groups={groups}, got {list(channels)}")
        if not point_names:
            raise ValueError("a portrait judge needs one point or more, got none")
        self.class_counts = {name: len(about["classes"]) for name, about in attributes.items()}
        few = [name for name, count in self.class_counts.items() if count < 2]
        if few:
            raise ValueError(f"every attribute needs two classes or more; {few[0]!r} has {self.class_counts[few[0]]}")
        self.register_to_config(attributes=attributes, colours=colours)
        self.stem = nn.Conv2d(3, channels[0], 4, stride=2, padding=1)
        self.levels = nn.ModuleList(ConvBlock(i, o, groups) for i, o in pairwise(channels))
        self.reduce = nn.Conv2d(channels[-1], reduced, 1)
        # By place, not pooled: where a thing is makes the pose, and two eyes are not one.
        self.to_features = nn.Linear(reduced * (resolution // 8) ** 2, features)
        self.to_points = nn.Linear(features, 2 * len(point_names))
        self.to_attributes = nn.Linear(features, sum(self.class_counts.values())) if attributes else None
        self.look_near = nn.Conv2d(channels[-2], len(colours), 1) if colours else None
        self.look_far = nn.Conv2d(channels[-1], len(colours), 1) if colours else None

    def judge(self, images: Tensor, painted: Tensor | None = None) -> JudgeOutput:
        """Points, attributes, colors and features of images (B, 3, H, W); H and W may be any.

        A color is a mean of the picture's own pixels, weighted by where the judge finds the thing: it is read, not
        guessed. `painted` (default: `images`) are the pixels it is read from, of the same shape; the trainer gives the
        undamaged picture there. ValueError for images of another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected images (batch, 3, H, W), got {tuple(images.shape)}")
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
        """`judge`, as a `JudgeOutput` or as the tuple of its fields."""
        found = self.judge(images, painted)
        return found if return_dict else (found.points, found.attributes, found.colours, found.features)

    def _resized(self, images: Tensor) -> Tensor:
        size = self.config.resolution
        if images.shape[-2:] == (size, size):
            return images
        return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True)

    def _colours(self, pixels: Tensor, near: Tensor, far: Tensor) -> dict[str, Tensor]:
        """{name: (B, 3)}: pixels (B, 3, H, W) averaged where the maps at 1/4 and 1/8 of the resolution point to."""
        assert self.look_near is not None and self.look_far is not None
        looks = self.look_near(near) + F.interpolate(self.look_far(far), scale_factor=2, mode="nearest")
        weight = looks.flatten(2).softmax(dim=2)  # (B, colors, cells)
        cells = F.adaptive_avg_pool2d(pixels, (near.shape[2], near.shape[3])).flatten(2)  # (B, 3, cells)
        found = torch.einsum("bnc,bkc->bnk", weight, cells)
        return dict(zip(self.config.colours, found.unbind(dim=1), strict=True))


# --- All judges of a folder ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judges:
    """The networks that judge, ready to use: float32, in eval mode, without gradients of their own.

    `portrait` is None where nothing knows the labels (then pose comes from masks), `discriminator` where none was
    trained (then nothing is said about it). `folder`: where they came from.
    """

    segmenter: RegionSegmenter
    portrait: PortraitJudge | None
    discriminator: StyleGAN2Discriminator | None
    folder: Path


def load_judges(folder: str | os.PathLike[str] | None = None, device: str | torch.device = "cpu") -> Judges:
    """The judges in `folder`: segmenter/ and, where they are there, portrait/ and discriminator/.

    Args:
        folder: an output folder of `stylefusion train judges`; None means those of this checkout.
        device: where they are put.

    Raises:
        FileNotFoundError: there is no segmenter; says how to make one.
        OSError, ValueError: a judge is there, but damaged or incomplete.
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
