"""The regions of avatars as the embedded model's judge sees them."""

import torch
import torch.nn.functional as F

from stylefusion_hf.evaluation.judges import load_judges

SIZE = 64  # of the pictures that the judge learned from


@torch.no_grad()
def judged_regions(images: torch.Tensor) -> torch.Tensor:
    """Return label maps (B, H, W) of images (B, 3, H, W) of the judge's size or a multiple."""
    factor = images.shape[-1] // SIZE
    labels = load_judges().segmenter.segment(F.avg_pool2d(images, factor)).argmax(1)
    return labels.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
