"""How far gates that were refined for one mix carry over to other mixes: whether fusion nets could learn them.

    python -m benchmarks.refined_gates --model faces --regions mouth,skin,bg,hair

`editing/refinement.py` optimizes the gates of one mix. Its correction of the nets' gates (in logits, per channel) is
applied here to other mixes that swap the same region: to neighbors, with the base's or the source's code moved part of
the way toward another sample, and to mixes that share one of the two codes. The table has the share of the gain that
carries over: 0 is the nets' own loss on these mixes, 1 the loss when each is refined itself. Corrections that only
carry over to near neighbors are learned from no fewer mixes than cover the space of pairs at that distance.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor

from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.editing.refinement import LEAK_WEIGHT, TRANSFER_WEIGHT, Networks, SwapGoal, Swaps, refine
from stylefusion_hf.evaluation.report import table
from stylefusion_hf.imaging.regions import is_counted
from stylefusion_hf.models.sampling import draw_codes
from stylefusion_hf.pipelines.fuse import StyleFusionPipeline
from stylefusion_hf.pipelines.refining import frozen_networks

BATCH = 12
TRIES = 40  # batches of samples among which a region is looked for
NEAR, FAR = 0.1, 0.3  # of the way toward another sample
MEAN = "the mean correction of the other mixes"


def swap(networks: Networks, region: str, base: Tensor, source: Tensor) -> dict[str, Tensor]:
    """Return the codes (B, S) of all nodes when one region comes from the source."""
    active = [name for name in networks.tree.nodes if name in networks.tree.active]
    return {name: source if name == region else base for name in active}


def refined(networks: Networks, region: str, base: Tensor, source: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return fused codes refined for each swap, and the correction of the gates' logits, both (B, S)."""
    codes = swap(networks, region, base, source)
    swaps = Swaps.of(networks, codes, base)
    assert swaps is not None
    s = refine(networks, codes, base, steps=steps)
    gates, difference = swaps.gates[:, 0], swaps.difference[:, 0]
    moves = difference.abs() > 1e-3 * difference.abs().amax(dim=1, keepdim=True)
    better = gates + torch.where(moves, (s - swaps.fused) / difference, 0)
    return s, better.clamp(0.01, 0.99).logit() - gates.logit()


def losses(networks: Networks, region: str, base: Tensor, source: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """Return the losses (3, B) of swaps: with the nets' gates, these corrected by `other`, and refined codes `own`."""
    swaps = Swaps.of(networks, swap(networks, region, base, source), base)
    assert swaps is not None
    goal = SwapGoal(networks, swaps)
    moved = swaps.codes((swaps.gates.logit() + other[:, None]).sigmoid())
    with torch.no_grad():
        return torch.stack([goal(s, LEAK_WEIGHT, TRANSFER_WEIGHT) for s in (swaps.fused, moved, own)])


def showing(networks: Networks, region: str, samples: Iterator[Tensor], count: int) -> Tensor:
    """Return `count` samples (count, S) that show the region; SystemExit if it is too rare."""
    index, found = networks.regions.index(region), []
    for _, s in zip(range(TRIES), samples, strict=False):
        with torch.no_grad():
            labels = networks.segment(networks.draw(s)[0].clamp(-1, 1)).argmax(dim=1)
        found.append(s[is_counted(labels == index)])
        if sum(map(len, found)) >= count:
            return torch.cat(found)[:count]
    raise SystemExit(f"{region}: fewer than {count} of {TRIES * BATCH} samples show it; choose other --regions")


def carried_over(
    networks: Networks, region: str, samples: Iterator[Tensor], count: int, steps: int
) -> dict[str, float]:
    """Return the share of the gain that one region's corrections bring to other mixes, by kind of mix."""
    # Samples 1 to count are bases, the next sources; each mix's neighbor is the next mix.
    bases, sources = showing(networks, region, samples, 2 * count).split(count)
    next_base, next_source = bases.roll(1, 0), sources.roll(1, 0)
    s, correction = refined(networks, region, bases, sources, steps)
    others = (correction.sum(dim=0) - correction) / (count - 1)

    def share(base: Tensor, source: Tensor, own: Tensor, given: Tensor) -> float:
        nets, moved, best = losses(networks, region, base, source, own, given).mean(dim=1).tolist()
        return (nets - moved) / max(nets - best, 1e-6)

    found = {"the same mix": share(bases, sources, s, correction)}
    for name, base, source in (
        (f"base {NEAR:.0%} of the way to another", bases.lerp(next_base, NEAR), sources),
        (f"base {FAR:.0%} of the way to another", bases.lerp(next_base, FAR), sources),
        (f"source {FAR:.0%} of the way to another", bases, sources.lerp(next_source, FAR)),
        ("another base", next_base, sources),
        ("another source", bases, next_source),
    ):
        found[name] = share(base, source, refined(networks, region, base, source, steps)[0], correction)
    return found | {MEAN: share(bases, sources, s, others)}


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", help="a folder or Hub id with a segmenter (default: the embedded model)")
    p.add_argument("--regions", help="comma-separated leaves of the tree (default: all of them)")
    p.add_argument("--mixes", type=int, default=6, help="mixes per region, two or more")
    p.add_argument("--steps", type=int, default=20, help="of the refinement")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args(argv)
    pipe = StyleFusionPipeline.from_pretrained(args.model) if args.model else StyleFusionPipeline.from_embedded()
    networks, _ = frozen_networks(pipe)
    leaves = list(networks.tree.leaves)
    regions = [name.strip() for name in args.regions.split(",")] if args.regions else leaves
    if unknown := [name for name in regions if name not in leaves]:
        p.error(f"--regions: {unknown[0]!r} is not one of {', '.join(leaves)}")
    if args.mixes < 2 or args.steps < 1:
        p.error(f"--mixes is at least 2 and --steps at least 1, got {args.mixes} and {args.steps}")
    draw = torch.Generator().manual_seed(args.seed)

    def samples() -> Iterator[Tensor]:
        while True:
            yield draw_codes(pipe.generator, BATCH, draw, 0.5, 0.0)

    endless, rows = samples(), {}
    for region in tqdm(regions, desc="regions"):
        for kind, value in carried_over(networks, region, endless, args.mixes, args.steps).items():
            rows.setdefault(kind, {})[region] = value
    print(table("correction of a mix, applied to", rows))


if __name__ == "__main__":
    main()
