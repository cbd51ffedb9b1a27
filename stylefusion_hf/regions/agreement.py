"""How well a segmenter agrees with given label maps."""

from __future__ import annotations

import torch

from stylefusion_hf.core.memory import RENDER_SHARE, chunk_size, memory_budget
from stylefusion_hf.models.segmenter import RegionSegmenter
from stylefusion_hf.regions.clustering import contingency, jaccard


@torch.no_grad()
def region_iou(
    model: RegionSegmenter, images: torch.Tensor, labels: torch.Tensor, batch: int | None = None
) -> dict[str, float]:
    """IoU of every region over all pixels of images (N, 3, H, W) with maps (N, H, W), and their mean.

    batch: pictures at once; what memory allows if left out.
    """
    n = len(model.config.regions)
    if batch is None:  # eight of the top level's maps: its features, those of the way up, and working copies
        each = 4 * 8 * model.config.channels[0] * images[0, 0].numel()
        batch = chunk_size(each, memory_budget(model.device) * RENDER_SHARE, 64)
    counts = torch.zeros(n, n)
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        guess = model.segment(x.to(model.device)).argmax(1).cpu()
        counts += contingency(y, guess, n, n)
    iou = jaccard(counts).diag()
    return {**dict(zip(model.config.regions, iou.tolist(), strict=True)), "mean": iou.mean().item()}
