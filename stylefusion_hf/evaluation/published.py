"""Figures as defined in other papers, for comparison across papers.

StyleMapGAN (Kim et al., arXiv 2104.14754), local editing; pictures in [-1, 1], U the union of the region in a and b:

    MSE_src = mean over pixels outside U of (I1 - I0)^2       MSE_ref = mean over pixels inside U of (I1 - Ib)^2

The reference is not aligned with the base's pose, so MSE_ref also counts differences in pose.

StyleSpace (Wu et al., arXiv 2011.12799), attribute dependency: change of the other attributes' logits, in standard
deviations over plain samples; mean over those attributes (AD) and maximum (max AD). The paper groups edits by the
change of the target attribute in the same unit: `AD target`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FIGURES = ("MSE_src", "MSE_ref", "AD", "max AD", "AD target")


def masked_errors(image: Tensor, source: Tensor, reference: Tensor, region: Tensor) -> dict[str, Tensor]:
    """Return columns of MSE_src and MSE_ref, (B,) each: summed squared errors and the number of values.

    image, source, reference: (B, 3, H, W), StyleMapGAN's names for I1, I0 and Ib; region: boolean (B, H, W).
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
    """Return columns of the attribute dependency, (B,) each.

    The change of an attribute is the mean over its classes of |change of the logit| / deviation.

    Args:
        before, after: {attribute: logits (B, classes)}.
        deviations: {attribute: (classes,)}.
        regions: {attribute: its region}; attributes of the region `swapped` are targets, the others should not change.
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
