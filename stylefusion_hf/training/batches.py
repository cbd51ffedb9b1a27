"""Reproducible batches: which samples and which random numbers each micro-batch gets.

Every random draw of a micro-batch comes from a generator seeded by (seed, step, place, purpose), where places number
the micro-batches of a step over all processes. A resumed run therefore repeats and skips nothing, whatever happened to
the global random state in between; no two processes draw the same latents; and two processes draw what one process
with twice the --gradient_accumulation_steps draws.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from stylefusion_hf.core.randomness import step_generator


def step_generators(args: argparse.Namespace, accelerator: Accelerator, step: int) -> list[torch.Generator]:
    """Return one generator for each micro-batch of this process's step."""
    return [step_generator(args.seed, step, place) for place in places_of(args, accelerator)]


def places_of(args: argparse.Namespace, accelerator: Accelerator) -> range:
    """Return the places of this process's micro-batches."""
    n = args.gradient_accumulation_steps
    return range(accelerator.process_index * n, (accelerator.process_index + 1) * n)


class StepSampler(Sampler):
    """Endless batches of indices, drawn with replacement; each batch holds the micro-batches at `places` of a step."""

    def __init__(self, length: int, batch_size: int, seed: int, places: range, first_step: int = 0):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.places, self.first_step = places, first_step

    def __iter__(self) -> Iterator[list[int]]:
        step = self.first_step
        while True:
            draws = [step_generator(self.seed, step, place, purpose=1) for place in self.places]
            yield [i for d in draws for i in torch.randint(self.length, (self.batch_size,), generator=d).tolist()]
            step += 1


def step_batches(
    dataset: Any, args: argparse.Namespace, accelerator: Accelerator, first_step: int
) -> Iterator[dict[str, Tensor]]:
    """Return endless batches, one per step, of `train_batch_size * gradient_accumulation_steps` items each."""
    sampler = StepSampler(len(dataset), args.train_batch_size, args.seed, places_of(args, accelerator), first_step)
    return iter(DataLoader(dataset, batch_sampler=sampler, num_workers=getattr(args, "dataloader_num_workers", 0)))
