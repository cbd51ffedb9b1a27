"""Features of a vision transformer from the Hub, for pictures that no judge of ours knows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# ImageNet's statistics, which DINOv2 (Oquab et al., arXiv 2304.07193) and most such models were trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone:
    """Images (B, 3, H, W) in [-1, 1] -> features (B, 2 D): the class token and the mean of the patch tokens.

    Args:
        name: a transformers vision model, such as facebook/dinov2-small, or a folder that holds one.
        size: pixels that images are brought to; a multiple of the patch size.

    Raises:
        ImportError: transformers is not installed. OSError: no such model. ValueError: it gives no patch tokens.
    """

    def __init__(self, name: str, device: str | torch.device = "cpu", size: int = 224):
        try:
            from transformers import AutoModel
        except ImportError as error:
            raise ImportError("a backbone needs transformers: pip install stylefusion-hf[evaluation]") from error
        self.name, self.size = name, size
        self.model = AutoModel.from_pretrained(name).eval().requires_grad_(False).to(device)
        patch = getattr(self.model.config, "patch_size", None)
        if not isinstance(patch, int):
            raise ValueError(f"{name} is no vision transformer with patches: give one such as facebook/dinov2-small")
        if size % patch:
            raise ValueError(f"size must be a multiple of the patch size {patch} of {name}, got {size}")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        x = F.interpolate(images, size=(self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        mean, std = (torch.tensor(v, device=x.device, dtype=x.dtype).view(3, 1, 1) for v in (MEAN, STD))
        tokens = self.model(pixel_values=((x + 1) / 2 - mean) / std).last_hidden_state
        return torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)
