"""Evaluation pairs: a base and a source sample, their pictures and their regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from stylefusion_hf.core.codes import seeds_to_z
from stylefusion_hf.evaluation.measurement import at_measuring_size
from stylefusion_hf.models.latents import own_labels

# First seeds of three disjoint sets: methods are fitted, their strengths chosen and their figures measured on
# different samples. Trainings draw latents from no seeds of this kind.
FITTING_SEED, VALIDATION_SEED, TEST_SEED = 3_000_000, 2_000_000, 1_000_000
UNRELATED_OFFSET = 12_500_000  # from a base's seed to that of the pair's unrelated code
ALWAYS_THERE = ("base", "source", "plain", "other", "base_probs", "source_probs")


@dataclass(frozen=True)
class Pairs:
    """B pairs of plain samples.

    `base`, `source`: style codes (B, S). `plain` (I0), `other` (Ib): their pictures (B, 3, H, W) in [-1, 1].
    `base_probs`, `source_probs`: (B, R, H, W), probabilities of the MODEL's own segmenter in the order of
    `segmenter.config.regions`; these are the masks that methods may use. The ruler judges with another segmenter.
    `unrelated`: style codes (B, S) of third samples, neither base nor source; None if specific transfer is not needed.
    """

    base: Tensor
    source: Tensor
    plain: Tensor
    other: Tensor
    base_probs: Tensor
    source_probs: Tensor
    unrelated: Tensor | None = None

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: slice | Tensor) -> Pairs:
        chosen = {name: getattr(self, name)[index] for name in ALWAYS_THERE}
        return Pairs(**chosen, unrelated=None if self.unrelated is None else self.unrelated[index])


def style_codes(generator, seeds: Sequence[int]) -> Tensor:
    """Return style codes (B, S) of seeds at the generator's own truncation, each seed with its own class if any."""
    z = seeds_to_z(seeds, generator.config.z_dim).to(generator.w_avg)
    labels = own_labels(generator, seeds)
    w = generator.mapping(z, None if labels is None else labels.to(z))
    return generator.to_style(generator.truncate(w, generator.config.truncation_psi))


def draw_smaller(generator, height: int) -> None:
    """Make a generator draw its own smaller pictures from now on: previews, or the sum of its first toRGB layers.

    ValueError if it has none of that height.
    """
    if height not in generator.picture_sizes:
        sizes = ", ".join(map(str, generator.picture_sizes))
        raise ValueError(f"--picture-size {height}: this generator draws pictures of {sizes} pixels")
    generator.synthesis.forward = partial(generator.synthesis.forward, up_to=height)
    generator.register_to_config(resolution=height)


def render(pipe, s: Tensor) -> Tensor:
    """Render style codes (B, S) as pictures (B, 3, H, W), float32 in [-1, 1]."""
    return pipe.generator.synthesis(s.to(pipe.generator.dtype)).float().clamp(-1, 1)


def segment(pipe, images: Tensor) -> Tensor:
    """Return probabilities (B, R, H, W), float32, of the model's own segmenter."""
    dtype = getattr(pipe.segmenter, "dtype", torch.float32)
    return pipe.segmenter.segment(images.to(dtype)).float().softmax(dim=1)


@torch.no_grad()
def draw_pairs(pipe, count: int, first_seed: int = TEST_SEED, batch: int = 64) -> Pairs:
    """Draw pairs from consecutive seeds: (`first_seed`, `first_seed + 1`), ..., each with an unrelated code.

    Raises:
        ValueError: the pipeline has no segmenter, or `count` is not positive.
    """
    if pipe.segmenter is None:
        raise ValueError("this model has no segmenter, which evaluation needs to locate regions: add segmenter/")
    if count < 1:
        raise ValueError(f"pairs must be at least 1, got {count}")
    parts = []
    for start in range(0, count, batch):
        n = min(batch, count - start)
        seed = first_seed + 2 * start
        codes = [style_codes(pipe.generator, range(seed + k, seed + 2 * n, 2)) for k in (0, 1)]
        images = [render(pipe, s) for s in codes]
        probs = [segment(pipe, x) for x in images]
        unrelated = style_codes(pipe.generator, range(seed + UNRELATED_OFFSET, seed + UNRELATED_OFFSET + 2 * n, 2))
        parts.append(Pairs(codes[0], codes[1], images[0], images[1], probs[0], probs[1], unrelated))
    return join_pairs(parts)


def join_pairs(parts: Sequence[Pairs]) -> Pairs:
    """Concatenate consecutive batches of pairs."""
    return Pairs(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Pairs)))


def downsample(pairs: Pairs, size: int) -> Pairs:
    """Return the pairs with pictures and masks of at most `size` pixels."""
    large = ("plain", "other", "base_probs", "source_probs")
    return replace(pairs, **{name: at_measuring_size(getattr(pairs, name), size) for name in large})


@torch.no_grad()
def with_unrelated_sources(pipe, pairs: Pairs) -> Pairs:
    """Return the same bases with the unrelated codes as sources; ValueError if there are none."""
    if pairs.unrelated is None:
        raise ValueError("these pairs have no unrelated codes: draw them with draw_pairs")
    images = render(pipe, pairs.unrelated)
    return replace(pairs, source=pairs.unrelated, other=images, source_probs=segment(pipe, images))
