"""The contrastive objective, as the paper describes it: a region-contrastive loss on the generator's feature maps.

The fused picture is pulled toward each input code's own picture in that code's region, and pushed away from it
elsewhere. InfoNCE (van den Oord et al., arXiv 1807.03748) on feature maps does both, pixel by pixel:

    anchor      the fused picture's feature at a pixel of region r
    positive    that pixel in the picture of r's own code, moved into the pose of the global code's picture
    negatives   that pixel in the pictures of the sample's other codes, including the global code's own picture

Every inner node of the tree, on each level, gets a code of its own from a normal z (`choices.CONTRASTIVE_SHARES`): the
global dials. The paper's training code is not public, so temperature, weighting and maps are ours
(docs/research/objective.md). This loss does not notice a net whose gates ignore an input, so `collapse.py` watches
every dial.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.evaluation.measurement import dilate


def spatial_contrast(
    anchor: Tensor,
    references: Tensor,
    masks: Tensor,
    others: Tensor | None = None,
    temperature: float = 0.1,
    max_cosine: float = 0.9,
) -> Tensor:
    """Return the region-contrastive loss, (B,).

    It is the mean over pixels, each weighted by 1 - max cos(positive, negative): where all codes look the same there
    is nothing to learn.

    Args:
        anchor: (B, C, h, w), the fused picture's map, channels in units of their deviation.
        references: (B, R, C, h, w), the maps of each region's own code, in the wanted pose.
        masks: (B, R, h, w), where a region is in both the fused picture and its own reference. They do not overlap.
        others: (B, N, C, h, w), maps that serve as negatives only.
        max_cosine: negatives more similar to the positive are left out, since two regions may share a code.
    """
    a = F.normalize(anchor.flatten(2), dim=1, eps=1e-6)
    refs = F.normalize(references.flatten(3), dim=2, eps=1e-6)  # (B, R, C, P)
    m = masks.flatten(2)
    positive = torch.einsum("brcp,brp->bcp", refs, m)
    if others is not None:
        refs = torch.cat([refs, F.normalize(others.flatten(3), dim=2, eps=1e-6)], dim=1)
    same = torch.einsum("bcp,bcp->bp", a, positive)
    negative = torch.einsum("bcp,brcp->brp", a, refs)
    similarity = torch.einsum("bcp,brcp->brp", positive, refs)
    dropped = similarity > max_cosine
    logits = torch.cat([same[:, None], negative.masked_fill(dropped, -torch.inf)], dim=1) / temperature
    weight = m.sum(dim=1) * (1 - similarity.masked_fill(dropped, 0.0).amax(dim=1)).clamp(0, 1) * ~dropped.all(dim=1)
    return (-logits.log_softmax(dim=1)[:, 0] * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)


def contrastive_terms(c, sample, references, found, weight: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Return {"spatial": (values (B,), None)}, the mean over the maps; arguments as in `composed.composed_terms`."""
    if not references.maps:
        return {}
    both = ~dilate(~(found.masks & references.masks), c.border)  # eroded, to leave out the regions' borders
    frame = c.pool.feature_maps(sample.frame)
    each = []
    for r, refs in references.maps.items():
        inner = (F.adaptive_avg_pool2d(both.float(), (refs.shape[-2], refs.shape[-1])) > 0.99).float()
        each.append(spatial_contrast(found.maps[r], refs, inner, frame[r][:, None].float(), c.temperature))
    return {"spatial": (torch.stack(each).mean(dim=0), None)}
