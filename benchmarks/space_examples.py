"""Choose the Space's examples and sample pictures: those in which dials change most.

    python -m benchmarks.space_examples                       # prints EXAMPLES of spaces_app/dials.py
    python -m benchmarks.space_examples --samples spaces_app/samples    # writes the sample pictures of the tab Mix

A swap scores the mean change of its region, in levels of 255, minus four times that of the rest of the picture (the
score of the tab Edit's example). Each example has a base and some regions; each of these takes the seed, of those from
20 to 59, that scores most. The samples are four of the first 24 avatars that no training sees, read by the model's
encoder: the two whose regions score most in each other, then whichever scores most with those before it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from stylefusion_hf import StyleFusionInversionPipeline, StyleFusionPipeline
from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.data.avatar_render import render_avatar
from stylefusion_hf.data.avatars import avatar_spec
from stylefusion_hf.spaces_app.edit_example import LEAK_WEIGHT
from stylefusion_hf.training.datasets import FIRST_HELD_OUT

# Bases, and the places of the regions that change. In the embedded model's tree these are mouth, skin, eyes, clothes,
# background and hair, each of which changes in two examples.
PATTERNS = ((1, (1, 4, 5)), (4, (2, 3)), (6, (0, 1, 5)), (11, (0, 2, 3, 4)))
SEEDS = range(20, 60)
CANDIDATES, SAMPLES = 24, 4


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", metavar="FOLDER", type=Path, help="write sample pictures here instead")
    args = parser.parse_args(argv)
    pipe = StyleFusionPipeline.from_embedded()
    if args.samples:
        write_samples(pipe, args.samples)
    else:
        print_examples(pipe)


@torch.no_grad()
def scores(pipe: StyleFusionPipeline, base: Any, region: str, sources: Sequence[Any]) -> torch.Tensor:
    """Return the score (N,) of each source's region in the base's picture; -inf for a region that is not there."""
    plain = pipe(base=base, output_type="pt").images
    inside = pipe.segmenter.segment(plain * 2 - 1).argmax(1)[0] == pipe.segmenter.config.regions.index(region)
    if not inside.any():
        return torch.full((len(sources),), -torch.inf)
    swapped = pipe(base=base, regions={region: list(sources)}, output_type="pt").images
    change = (swapped - plain).abs().mean(1) * 255
    return change[:, inside].mean(1) - LEAK_WEIGHT * change[:, ~inside].mean(1)


def print_examples(pipe: StyleFusionPipeline) -> None:
    """Print the examples as Python, with the scores beside them."""
    regions = pipe.fusion.tree.leaves
    for base, places in PATTERNS:
        seeds: list[int | None] = [None] * len(regions)
        said = []
        for place in places:
            score = scores(pipe, base, regions[place], SEEDS)
            seeds[place] = SEEDS[int(score.argmax())]
            said.append(f"{regions[place]} {float(score.max()):.0f}")
        print(f"    ({base}, {tuple(seeds)}),  # {', '.join(said)}")


def write_samples(pipe: StyleFusionPipeline, folder: Path) -> None:
    """Replace the pictures in a folder."""
    numbers = range(FIRST_HELD_OUT, FIRST_HELD_OUT + CANDIDATES)
    pictures = [Image.fromarray(render_avatar(avatar_spec(number, 0), 128)[0]) for number in numbers]
    codes = StyleFusionInversionPipeline.from_pipe(pipe)(pictures).codes.rows()
    table = torch.stack(  # (bases, sources)
        [
            torch.stack([scores(pipe, base, region, codes) for region in pipe.fusion.tree.leaves]).mean(0)
            for base in tqdm(codes)
        ]
    )
    mutual = table + table.T
    chosen = list(max(combinations(range(CANDIDATES), 2), key=lambda pair: float(mutual[pair])))
    while len(chosen) < SAMPLES:
        others = [i for i in range(CANDIDATES) if i not in chosen]
        chosen.append(max(others, key=lambda i: float(mutual[i, chosen].sum())))
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for place, i in enumerate(chosen, 1):
        pictures[i].save(folder / f"{place}-avatar-{numbers[i]}.png")
        print(f"{place}-avatar-{numbers[i]}.png: {float(mutual[i, [j for j in chosen if j != i]].mean()) / 2:.1f}")


if __name__ == "__main__":
    main()
