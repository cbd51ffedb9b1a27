"""Figures as other papers define them, so that numbers can be compared across papers.

StyleMapGAN (Kim et al., arXiv 2104.14754), local editing, pictures in [-1, 1], U where the region is in a or in b:

    MSE_src = mean over pixels outside U of (I1 - I0)^2       MSE_ref = mean over pixels inside U of (I1 - Ib)^2

The reference is not brought into the base's pose, so MSE_ref also counts a mere difference in pose.

StyleSpace (Wu et al., arXiv 2011.12799), attribute dependency: the change of the other attributes' logits, each in
units of its deviation over plain samples, averaged over those attributes (AD) or the largest of them (max AD). The
paper groups edits by how far the target attribute moved, in the same unit: `AD target`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FIGURES = ("MSE_src", "MSE_ref", "AD", "max AD", "AD target")


def masked_errors(image: Tensor, source: Tensor, reference: Tensor, region: Tensor) -> dict[str, Tensor]:
    """Columns of MSE_src and MSE_ref, (B,) each: squared errors and how many numbers they are of.

    image, source, reference: (B, 3, H, W), StyleMapGAN's names for I1, I0 and Ib; region: (B, H, W) booleans.
    """
    m = region[:, None].to(image.dtype)

    def total(x: Tensor) -> Tensor:
        return x.flatten(1).sum(dim=1)

    inside = image.shape[1] * total(m)
    return {
        "MSE_src": total((1 - m) * (image - source).square()),
        "MSE_src_of": image[0].numel() - inside,
        "MSE_ref": total(m * (image - reference).square()),
        "MSE_ref_of": inside,
    }


def attribute_change(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    deviations: Mapping[str, Tensor],
    regions: Mapping[str, str],
    swapped: str,
) -> dict[str, Tensor]:
    """Columns of the attribute dependency, (B,) each.

    An attribute of several classes changes by the mean over its classes of |change of the logit| / deviation.

    Args:
        before, after: {attribute: logits (B, classes)}.
        deviations: {attribute: (classes,)}.
        regions: {attribute: its region}; those of the region `swapped` are the targets, all others should stay.
    """
    moved = {n: ((after[n] - x).abs() / deviations[n].clamp_min(1e-6)).mean(dim=1) for n, x in before.items()}
    own = [x for n, x in moved.items() if regions[n] == swapped]
    others = [x for n, x in moved.items() if regions[n] != swapped]
    out: dict[str, Tensor] = {}
    if others:
        stacked = torch.stack(others)
        out |= {"AD": stacked.mean(dim=0), "max AD": stacked.amax(dim=0)}
    if own:
        out["AD target"] = torch.stack(own).mean(dim=0)
    return out | {f"{k}_of": torch.ones_like(v) for k, v in out.items()}
