"""What all trainings of a generator share: pictures, judge, averaged weights, samples, and the run itself."""

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from stylefusion_hf.core.codes import seeds_to_z
from stylefusion_hf.core.files import save_image
from stylefusion_hf.evaluation.judges import PortraitJudge
from stylefusion_hf.imaging.sheets import image_grid
from stylefusion_hf.models.stylegan2 import StyleGAN2Generator
from stylefusion_hf.training.common import ema_update, save_model
from stylefusion_hf.training.generator_setup import build_judge
from stylefusion_hf.training.loop import Phase, fit
from stylefusion_hf.training.reports import Log


class GeneratorRun:
    """A generator in training and its average, and what happens between steps.

    Args:
        generator: not yet prepared.
        dataset: the pictures to train on.
        portrait_judge: watches samples, if given.
    """

    phases: tuple[Phase, ...]

    def __init__(
        self,
        args: argparse.Namespace,
        accelerator: Accelerator,
        generator: StyleGAN2Generator,
        dataset: Any,
        portrait_judge: PortraitJudge | None,
    ):
        self.args, self.accelerator, self.folder = args, accelerator, Path(args.output_dir)
        self.images_per_step = args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
        self.generator, self.dataset = generator, dataset
        self.average = copy.deepcopy(generator).eval().requires_grad_(False).to(accelerator.device)
        self.judge = build_judge(args, portrait_judge, accelerator, dataset)

    # --- Between steps ---

    def after_update(self, step: int) -> None:
        """Update the averaged weights."""
        args, batch = self.args, self.images_per_step
        half_life = 1000 * (batch / 3.2 if args.ema_kimg is None else args.ema_kimg)  # in images
        if args.ema_rampup:
            half_life = min(half_life, (step + 1) * batch * args.ema_rampup)
        ema_update(self.average, self.generator, 0.5 ** (batch / max(half_life, 1e-8)) if args.use_ema else 0.0)

    def before_training(self, log: Log, first: int) -> None:
        if self.judge is not None and first == 0:
            log.note(0, self.judge.reference())

    def validate(self, log: Log, done: int) -> None:
        save_samples(self.average, self.folder / "samples" / f"{done:07d}.png")
        if self.judge is not None:
            log.note(done, {"images": done * self.images_per_step, **self.judge.figures(self.average)})

    def after_checkpoint(self, done: int) -> None:
        if self.accelerator.is_main_process and done < self.args.max_train_steps:
            self.save_models()  # so far, for use while the run continues

    def networks(self) -> dict[str, nn.Module]:
        """Return what the run trains, by the name of its folder."""
        return {"generator": self.average}

    def save_models(self) -> None:
        for name, model in self.networks().items():
            save_model(model, self.folder / name)

    # --- The run ---

    def fit(self, **state: nn.Module) -> None:
        """Train; checkpoints hold `state` besides the average."""
        fit(
            self.args,
            self.accelerator,
            *self.phases,
            dataset=self.dataset,
            state={"ema": self.average, **state},
            before_training=self.before_training,
            after_update=self.after_update,
            validate=self.validate,
            after_checkpoint=self.after_checkpoint,
        )


@torch.no_grad()
def save_samples(g: StyleGAN2Generator, path: Path, count: int = 64, psi: float = 1.0) -> None:
    """Save a grid of the seeds 0 to count - 1, drawn as pipelines draw them."""
    z = seeds_to_z(range(count), g.config.z_dim).to(g.w_avg)
    s = g.to_style(g.truncate(g.mapping(z), psi))
    images = torch.cat([g.synthesis(part) for part in s.split(16)])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(image_grid(images, math.ceil(math.sqrt(count))), path)
