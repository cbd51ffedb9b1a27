"""How much a picture changes inside and outside a region when that region's code is swapped.

    python -m stylefusion_hf.evaluation.swaps [--model FOLDER] [--pairs 500] [--json FILE]

For a base a, a source b and a region r: I0 and Ib are the plain pictures, I1 is a with r's code from b. M is where r
is in I0 or in I1, widened by 1/64 of the width. Both figures are shares of what swapping the whole code would change
there:

    outside = sum |(1 - M) (I1 - I0)|^2 / sum |(1 - M) (Ib - I0)|^2      0: nothing outside moved
    inside  = sum |M (I1 - I0)|^2       / sum |M (Ib - I0)|^2            0: the swap did nothing

A pair counts for r when r has 8 pixels or more in I0 and in Ib. The full ruler (transfer, global control, intervals)
is a work of its own; these two figures say whether a model's dials work at all.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from stylefusion_hf.evaluation.report import report

MIN_PIXELS = 8


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Masks (B, H, W), widened by `radius` pixels in every direction."""
    wide = F.max_pool2d(mask[:, None].float(), 2 * radius + 1, stride=1, padding=radius)
    return wide[:, 0] > 0


def change_sums(plain: Tensor, source: Tensor, swapped: Tensor, mask: Tensor) -> Tensor:
    """(B, 4): squared change inside by the swap, inside by the source; outside by the swap, outside by the source.

    plain, source, swapped: images (B, 3, H, W); mask: (B, H, W), true inside.
    """
    m = mask[:, None].to(plain.dtype)
    by_swap, by_source = (swapped - plain).square(), (source - plain).square()
    parts = (m * by_swap, m * by_source, (1 - m) * by_swap, (1 - m) * by_source)
    return torch.stack([p.sum(dim=(1, 2, 3)) for p in parts], dim=1)


@torch.no_grad()
def measure_swaps(
    pipe, pairs: int = 500, first_seed: int = 1_000_000, batch: int = 16, truncation_psi: float | None = None
) -> dict:
    """{region: {"inside", "outside", "pairs"}} over seeds that no training drew.

    Args:
        pipe: a StyleFusionPipeline with a segmenter.
        pairs: how many (base, source) pairs; seeds `first_seed`, `first_seed + 1`, ... taken two by two.
        truncation_psi: None for the model's own.

    Raises:
        ValueError: the pipeline has no segmenter, or `pairs` is not positive.
    """
    if pipe.segmenter is None:
        raise ValueError("this model has no segmenter, so there is no telling inside from outside")
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}")
    g, fusion, tree = pipe.generator, pipe.fusion, pipe.fusion.tree
    names = list(pipe.segmenter.config.regions)
    psi = g.config.truncation_psi if truncation_psi is None else truncation_psi
    sums = {leaf: torch.zeros(4, dtype=torch.float64) for leaf in tree.leaves}
    counts = dict.fromkeys(tree.leaves, 0)

    def labels(x: Tensor) -> Tensor:
        return pipe.segmenter.segment(x).argmax(1)

    def styles(seeds: range) -> Tensor:
        from stylefusion_hf.latents import seeds_to_z

        return g.to_style(g.truncate(g.mapping(seeds_to_z(seeds, g.config.z_dim).to(g.w_avg)), psi))

    for start in tqdm(range(0, pairs, batch), desc="swaps"):
        n = min(batch, pairs - start)
        seed = first_seed + 2 * start
        a, b = styles(range(seed, seed + 2 * n, 2)), styles(range(seed + 1, seed + 2 * n, 2))
        plain, source = (g.synthesis(s).clamp(-1, 1) for s in (a, b))
        in_plain, in_source = labels(plain), labels(source)
        for leaf in tree.leaves:
            region = names.index(leaf)
            swapped = g.synthesis(fusion.fuse({node: b if node == leaf else a for node in tree.nodes})).clamp(-1, 1)
            mask = (in_plain == region) | (labels(swapped) == region)
            enough = ((in_plain == region).sum((1, 2)) >= MIN_PIXELS) & (
                (in_source == region).sum((1, 2)) >= MIN_PIXELS
            )
            part = change_sums(plain, source, swapped, dilate(mask, max(1, plain.shape[-1] // 64)))
            sums[leaf] += part[enough].double().sum(0).cpu()
            counts[leaf] += int(enough.sum())
    return {
        leaf: {
            "inside": float(s[0] / s[1]) if s[1] else 0.0,
            "outside": float(s[2] / s[3]) if s[3] else 0.0,
            "pairs": counts[leaf],
        }
        for leaf, s in sums.items()
    }


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description="Change inside and outside each region when its code is swapped.")
    p.add_argument("--model", help="folder or Hub id of a pipeline; the embedded model if left out")
    p.add_argument("--pairs", type=int, default=500)
    p.add_argument("--psi", type=float, help="truncation; the model's own if left out")
    p.add_argument("--json", help="also write the figures to this file")
    args = p.parse_args(argv)
    from stylefusion_hf import StyleFusionPipeline

    pipe = StyleFusionPipeline.from_pretrained(args.model) if args.model else StyleFusionPipeline.from_embedded()
    result = measure_swaps(pipe, args.pairs, truncation_psi=args.psi)
    report("region", result, args.json)


if __name__ == "__main__":
    main()
