"""HubSegmenter: any semantic-segmentation network of the transformers library as a region segmenter."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin
from torch.utils.checkpoint import checkpoint

from stylefusion_hf.core.checks import check_choice, check_path, short
from stylefusion_hf.core.hub_files import is_hub_id, snapshot, weight_patterns
from stylefusion_hf.core.region_mapping import RegionMap
from stylefusion_hf.models.config_checks import checked_config, positive, register_to_config
from stylefusion_hf.models.layers import check_images, chunk_size
from stylefusion_hf.models.loading import StrictModelMixin
from stylefusion_hf.models.segmenter import SegmenterOutput
from stylefusion_hf.models.transformers_networks import (
    CONFIG,
    MEAN,
    PREPROCESSING,
    RESAMPLING,
    STD,
    build_network,
    input_size,
    load_network,
    plain_config,
    read_labels,
    read_preprocessing,
)

LARGEST_SIDE = 4096  # pixels of a network's input
MIN_SHARE = 1e-6  # smallest class share: lower scores of a mask network are rounding noise


class HubSegmenter(StrictModelMixin, ConfigMixin):
    """Images (B, 3, H, W) in [-1, 1] -> region logits (B, R, H, W), from a pretrained semantic-segmentation network.

    A region's logit is the logsumexp of its classes' logits at the resolution of the network's output, so a region's
    probability is the sum of its classes'. The maps are then resized to the picture. Classes assigned to no region are
    ignored. The network stays in evaluation mode, even after `train()`; images and weights still get gradients.

    `from_hub` wraps a transformers model, `save_pretrained` writes config and weights in diffusers' layout, and
    `from_pretrained` loads these without the original.

    Args:
        network: the config of a transformers model with `model_type`, a JSON object.
        regions: names of the regions, in the order of the logits.
        classes: class numbers of each region.
        size: pixels of the network's input: [height, width], [shortest side], or [] to keep the pictures' size.
        multiple: round the input's sides up to multiples of this.
        mean, std: mean and standard deviation of each input channel.
        white: value of a white pixel before mean and std: 1, or 255 for networks trained on that range.
        resample: "bilinear", "bicubic" or "nearest-exact", with antialiasing.
        flip_channels: whether the network takes BGR.
        source: origin of the network, a Hub id with its commit; for the record only.

    Raises:
        ImportError: transformers is not installed; names the extra.
        ValueError: fewer than two regions, a duplicate name or class, a class that the network does not have, or a
            network that transformers cannot build.
    """

    @register_to_config
    @checked_config
    def __init__(
        self,
        network: dict[str, Any],
        regions: Sequence[str],
        classes: Sequence[Sequence[int]],
        size: Sequence[int] = (512, 512),
        multiple: int = 1,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        white: float = 1.0,
        resample: str = "bilinear",
        flip_channels: bool = False,
        source: str | None = None,
    ):
        super().__init__()
        regions, size = list(regions), list(size)
        if not isinstance(network, Mapping):
            raise ValueError(f"network must be a transformers config, a JSON object, got {short(network)}")
        if len(regions) < 2 or len(set(regions)) != len(regions):
            raise ValueError(f"a segmenter needs at least two distinct region names, got {regions}")
        positive(multiple=multiple, white=white, **{f"std[{i}]": value for i, value in enumerate(std)})
        if len(mean) != 3 or len(std) != 3:
            raise ValueError(f"mean and std need three numbers, one per channel, got {list(mean)} and {list(std)}")
        if len(size) > 2 or any(not 8 <= side <= LARGEST_SIDE for side in [*size, max(multiple, 8)]):
            raise ValueError(f"size must be one or two sides from 8 to {LARGEST_SIDE} pixels, got {short(size)}")
        check_choice("resample", resample, RESAMPLING.values())
        config = plain_config(network)
        self.register_to_config(network=config)
        _check_classes(regions, classes, len(read_labels(config)))
        self.net = build_network(config)
        self.net.eval()
        self.counts = [len(numbers) for numbers in classes]
        for name, values in (("shift", [m / white for m in mean]), ("scale", [s / white for s in std])):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("order", torch.tensor([n for numbers in classes for n in numbers]), persistent=False)

    @classmethod
    def from_hub(
        cls,
        name: str | os.PathLike,
        region_map: RegionMap | Mapping[str, Any] | str | os.PathLike,
        *,
        revision: str | None = None,
        **options: Any,
    ) -> Self:
        """Load a transformers model from the Hub or a folder, with a region map; float32, in evaluation mode.

        Args:
            name: a Hub id or a folder, with config.json, preprocessor_config.json (without it, ImageNet's values) and
                safetensors weights.
            region_map: a region map as in `core.region_mapping`: a JSON file, the name of a built-in map, or a dict.
            revision: branch, tag or commit on the Hub.
            options: `cache_dir`, `token`, `force_download`, `local_files_only`, as in huggingface_hub.

        Raises:
            ImportError: transformers is not installed.
            OSError: no such model, a damaged file, or pickles instead of safetensors.
            ValueError: an incomplete segmenter, or a region map that does not fit its classes.
        """
        table, where = RegionMap.of(region_map), check_path(name)
        if os.path.isdir(where):
            return cls._from_folder(where, where, None, table)
        if not is_hub_id(where):
            raise OSError(f"{where!r} is neither a folder nor a model name on the Hub (user/name)")
        with snapshot(where, CONFIG, revision, options) as (folder, fetch):
            fetch([PREPROCESSING, *weight_patterns("", None)])
        return cls._from_folder(os.fspath(folder), where, f"{where}@{folder.name}", table)

    @classmethod
    def _from_folder(cls, folder: str, where: str, source: str | None, table: RegionMap) -> Self:
        config, weights = load_network(folder, where)
        found = table.classes(read_labels(config))
        preprocessing = read_preprocessing(folder, config, where)
        model = cls(network=config, regions=list(found), classes=list(found.values()), source=source, **preprocessing)
        model.net.load_state_dict(weights)
        return model.eval()

    def train(self, mode: bool = True) -> Self:
        """Set the mode as for any module; the network itself stays in evaluation mode."""
        super().train(mode)
        self.net.eval()
        return self

    def segment(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (B, R, H, W); large batches are split into parts that fit into memory."""
        return self(images, return_dict=False)[0]

    def _segment(self, images: torch.Tensor) -> torch.Tensor:
        check_images(images, 3)
        size = input_size(images.shape[-2], images.shape[-1], self.config.size, self.config.multiple)
        most = chunk_size(max(size), 64)
        if len(images) <= most:
            return self._logits(images, size)
        parts = images.split(most)
        if torch.is_grad_enabled() and images.requires_grad:  # recompute in backward to hold only one part
            return torch.cat([checkpoint(self._logits, part, size, use_reentrant=False) for part in parts])
        return torch.cat([self._logits(part, size) for part in parts])

    def _logits(self, images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        x = resize(images.clamp(-1, 1).add(1).div(2), size, self.config.resample)
        x = (x - self.shift.to(x)) / self.scale.to(x)
        scores = class_logits(self.net(pixel_values=x.flip(1) if self.config.flip_channels else x))
        parts = scores.index_select(1, self.order).split(self.counts, dim=1)
        logits = torch.cat([part.logsumexp(dim=1, keepdim=True) for part in parts], dim=1)
        return resize(logits, (images.shape[-2], images.shape[-1]), "bilinear")

    def forward(self, images: torch.Tensor, return_dict: bool = True) -> SegmenterOutput | tuple:
        """Return `logits` (B, R, H, W) of images (B, 3, H, W) in [-1, 1]."""
        logits = self._segment(images)
        return SegmenterOutput(logits=logits) if return_dict else (logits,)

    @classmethod
    def _describe_missing(cls, model: Any, keys: Sequence[str]) -> str:
        from transformers import __version__

        saved = short(model.config.network.get("transformers_version", "an unknown version"), 40)
        return (
            f"{super()._describe_missing(model, keys)}; it was saved with transformers {saved}, this is {__version__}"
        )


def _check_classes(regions: Sequence[str], classes: Sequence[Sequence[int]], count: int) -> None:
    """Raise ValueError unless every region has classes in 0 ... count - 1 and no class is in two regions."""
    if len(classes) != len(regions):
        raise ValueError(f"classes must have one list per region, {len(regions)} in all, got {len(classes)}")
    seen: dict[int, str] = {}
    for region, numbers in zip(regions, classes, strict=True):
        if not numbers:
            raise ValueError(f"the region {region!r} has no class")
        for number in numbers:
            if number >= count:
                raise ValueError(f"the region {region!r} names class {number}, but the network's are 0 to {count - 1}")
            if number in seen:
                raise ValueError(f"class {number} is both in {seen[number]!r} and in {region!r}")
            seen[number] = region


def class_logits(output: Any) -> torch.Tensor:
    """Return logits (B, C, h, w) from a transformers model's output.

    For networks that predict masks and their classes, the logit is the logarithm of the class score of MaskFormer's
    semantic inference (Cheng et al., arXiv 2107.06278): the sum over queries of class times mask probability.
    """
    if (masks := getattr(output, "masks_queries_logits", None)) is None:
        return output.logits
    shares = output.class_queries_logits.softmax(dim=-1)[..., :-1]  # the last class is "no object"
    return torch.einsum("bqc,bqhw->bchw", shares, masks.sigmoid()).clamp_min(MIN_SHARE).log()


def resize(x: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Resize (B, C, H, W), antialiased when shrinking; half precision is resampled in float32."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    if mode == "nearest-exact":
        return F.interpolate(x, size=size, mode=mode)
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    smooth = x.shape[-2] > size[0] or x.shape[-1] > size[1]
    return F.interpolate(wide, size=size, mode=mode, align_corners=False, antialias=smooth).to(x.dtype)


HubSegmenter.__module__ = "stylefusion_hf"
