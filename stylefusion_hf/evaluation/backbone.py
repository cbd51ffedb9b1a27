"""Features of a vision transformer from the Hub, for domains that the shipped judges were not trained on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.core.installing import install_command

# ImageNet's statistics, which DINOv2 (Oquab et al., arXiv 2304.07193) and most such models were trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone:
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
