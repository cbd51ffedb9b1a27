"""Validation of a generator by judges: how many kinds of each attribute it draws, and KID.

A loss does not reveal a collapse; the number of kinds does, within one validation. The judges of
`evaluation/judges.py` take no part in training.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stylefusion_hf.core.codes import seeds_to_z
from stylefusion_hf.evaluation.judges import PortraitJudge, load_judges
from stylefusion_hf.evaluation.statistics import effective_number, kid, share_on_manifold
from stylefusion_hf.models.stylegan2 import StyleGAN2Generator

REAL_START = 3_000_000  # avatars from here on are used by no training and no evaluation
FIRST_SEED = 7_000_000  # of the judged codes, always the same ones, so that figures are comparable
NEAREST = 2000  # pictures that precision and recall compare


@torch.no_grad()
def describe(
    judge: PortraitJudge, images: Callable[[range], Tensor], count: int, batch: int = 50
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return features (N, D) and each attribute's most likely class (N,) of the first `count` images."""
    features: list[Tensor] = []
    found: dict[str, list[Tensor]] = {name: [] for name in judge.class_counts}
    for start in range(0, count, batch):
        seen = judge.judge(images(range(start, min(start + batch, count))))
        features.append(seen.features.float().cpu())
        for name, logits in seen.attributes.items():
            found[name].append(logits.argmax(dim=1).cpu())
    return torch.cat(features), {name: torch.cat(parts) for name, parts in found.items()}


def load_judge(folder: str | Path, count: int) -> PortraitJudge:
    """Return the portrait judge in `folder`, to judge `count` pictures.

    Raises:
        FileNotFoundError: the folder has no judges. ValueError: none is a portrait judge, or the count is below 10.
    """
    if count < 10:
        raise ValueError(f"--validation_samples must be at least 10, got {count}")
    judge = load_judges(folder).portrait
    if judge is None:
        raise ValueError(
            f"the judges in {folder} have no portrait/, which counts kinds: train them with `stylefusion train judges"
            " --avatars N`"
        )
    return judge


class SampleJudge:
    """Compares a generator's samples (psi 1) with real pictures.

    Args:
        judge: the network that describes pictures.
        real: returns the real pictures (n, 3, H, W) in [-1, 1] of a range of numbers.
        count: number of real and of generated pictures.
        device: of the judge.
    """

    def __init__(
        self, judge: PortraitJudge, real: Callable[[range], Tensor], count: int, device: torch.device | str = "cpu"
    ):
        judge = judge.to(device)
        self.judge, self.count, self.device = judge, count, device
        features, classes = describe(judge, lambda numbers: real(numbers).to(device), count)
        self.mean, self.std = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
        self.features = (features - self.mean) / self.std
        self.kinds = {name: float(effective_number(classes[name])) for name in judge.class_counts}

    @torch.no_grad()
    def figures(self, g: StyleGAN2Generator) -> dict[str, float]:
        """Return KID x 1000, precision, recall, and the effective number of kinds of each attribute.

        "kinds, share of the data's" is their mean ratio to the kinds of the real pictures.
        """

        def images(numbers: range) -> Tensor:
            z = seeds_to_z(range(FIRST_SEED + numbers.start, FIRST_SEED + numbers.stop), g.config.z_dim)
            return g.synthesis(g.to_style(g.mapping(z.to(g.w_avg)))).clamp(-1, 1).to(self.device)

        features, classes = describe(self.judge, images, self.count)
        features = (features - self.mean) / self.std
        some = slice(0, NEAREST)
        kinds = {name: float(effective_number(classes[name])) for name in self.judge.class_counts}
        shares = [min(kinds[name] / self.kinds[name], 1.0) for name in kinds]  # noise may look like many kinds
        return {
            "KID x 1000": 1000 * kid(features, self.features),
            "precision": share_on_manifold(self.features[some], features[some]),
            "recall": share_on_manifold(features[some], self.features[some]),
            **({"kinds, share of the data's": sum(shares) / len(shares)} if shares else {}),
            **{f"kinds of {name}": value for name, value in kinds.items()},
        }

    def reference(self) -> dict[str, Any]:
        """Return the kinds of the real pictures, to log."""
        return {f"kinds of {name} in the data": value for name, value in self.kinds.items()}
