"""A discriminator of details, which sharpens what a regression draws.

A regression that is not sure where an outline lies draws it soft, since that is the best guess. A discriminator of
small patches, each beside its label map, learns to tell soft outlines from sharp ones, and leaves the rest of the
picture to the regression (pix2pix: Isola et al., arXiv 1611.07004). Unlike there, it sees only what a blur would
remove from the picture: flat areas fill most of a drawing, and with them it learned next to nothing in 120 steps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLUR = 9  # pixels, the width of the mean that is subtracted
CONTRAST = 4.0  # of what is left
WIDTH = 24  # channels after the first convolution


class DetailDiscriminator(nn.Module):
    """Images (B, 3, H, W) and label maps (B, H, W) -> logits (B, 1, H / 4, W / 4), higher where details look real."""

    def __init__(self, regions: int):
        super().__init__()
        self.regions = regions
        self.layers = nn.Sequential(
            nn.Conv2d(3 + regions, WIDTH, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(WIDTH, 2 * WIDTH, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * WIDTH, 4 * WIDTH, 3, 1, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * WIDTH, 1, 3, 1, 1),
        )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        half = BLUR // 2
        blurred = F.avg_pool2d(F.pad(images, (half, half, half, half), mode="replicate"), BLUR, 1)
        maps = F.one_hot(labels, self.regions).movedim(-1, 1).to(images.dtype)
        logits: Tensor = self.layers(torch.cat([CONTRAST * (images - blurred), maps], dim=1))
        return logits.float()
