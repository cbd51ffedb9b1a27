"""Train a generator on drawings whose attributes are known.

A network that is shown which attributes make which picture learns to draw far sooner than one that only learns whether
its pictures pass for real (Dosovitskiy et al., arXiv 1411.5928). w is the drawing's row of attributes; the mapping
network is trained first, without pictures, to make such rows from z (`attribute_codes.py`). At the end a discriminator
of details may sharpen outlines (`details.py`).
"""

from __future__ import annotations

import argparse
import logging

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from stylefusion_hf.evaluation.judges import PortraitJudge
from stylefusion_hf.models.stylegan2 import StyleGAN2Generator
from stylefusion_hf.training.attribute_codes import AttributeCodes, AttributeTable, distill
from stylefusion_hf.training.common import build_schedule
from stylefusion_hf.training.datasets import DrawingDataset, check_avatars_fit, load_avatars
from stylefusion_hf.training.details import DetailDiscriminator
from stylefusion_hf.training.gan_losses import discriminator_loss, generator_loss
from stylefusion_hf.training.generator_run import GeneratorRun
from stylefusion_hf.training.generator_setup import build_drawer
from stylefusion_hf.training.loop import MicroBatch, Phase
from stylefusion_hf.training.resuming import find_checkpoint

logger = logging.getLogger("stylefusion_hf")
AREA_POWER = 0.6  # a region weighs as its area to this power: in full, mouths and eyes would hardly count
OUTLINE = 2  # pixels on both sides of a border between regions
OUTLINE_WEIGHT = 2.0  # what these weigh more: the mean pixel weighs 1, and hair before a background less
MAPS = 500  # label maps from which areas are measured
MAPPING_RATE = 4.0  # of the distillation; the mapping's own learning rate multiplier makes it 0.04
LEAST_PSI = 0.55  # kinds are drawn as if truncated to this at most, in half of the cases
RAMP = 1000  # steps of a new synthesis or mapping network
MOST_MIXED = 0.45  # share of another kind that is mixed into a kind at most, in half of the cases
SMOOTH = 0.1  # differences below it are squared, larger ones count linearly; pictures go from -1 to 1
DISCRIMINATOR_RATE = 0.002  # at its peak
AVERAGED = 10_000  # codes whose mean is the w that truncation moves toward


class RegressionTraining(GeneratorRun):
    """Models, data and loss of a regression.

    Raises:
        ValueError: flags that do not fit each other or the models. OSError: a model is missing.
    """

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator, portrait_judge: PortraitJudge | None):
        from stylefusion_hf.data.avatars import REGIONS, avatar_spec

        # Data: pictures, label maps, and the attributes that w stands for.
        self.table = table = AttributeTable([avatar_spec(i, args.data_seed).to_dict() for i in range(args.avatars)])
        self.codes = AttributeCodes(table, args.latent_dim)
        generator, new = build_drawer(args, table.dim)
        generator.register_to_config(truncation_psi=1.0)  # codes are distributed like the data: none needs mending
        check_avatars_fit(generator)
        self.ramp = RAMP if new else 0
        if new and find_checkpoint(args, accelerator.num_processes)[0] is None:
            start_mapping(args, generator, self.codes, accelerator.is_main_process)
        dataset = DrawingDataset(*load_avatars(args, accelerator, args.resolution))
        super().__init__(args, accelerator, generator, dataset, portrait_judge)
        self.kinds = torch.zeros(len(table.kinds), table.dim)
        for row, name in zip(self.kinds, table.kinds, strict=True):
            row[table.columns[name]] = 1
        self.rows_of_kinds = [table.rows[:, table.columns[name]].unique(dim=0) for name in table.kinds]
        self.weights = region_weights(torch.from_numpy(dataset.labels[:MAPS]).long(), len(REGIONS)).to(
            accelerator.device
        )

        # The mapping stays as it is, so that w keeps its meaning.
        generator.mapping.requires_grad_(False)
        learning = [p for p in generator.parameters() if p.requires_grad]
        adam = torch.optim.Adam(learning, lr=args.learning_rate, betas=(0.9, 0.99))
        schedule = build_schedule(args, adam)
        model, adam = accelerator.prepare(Drawer(generator), adam)
        self.phases = (Phase(model, adam, schedule, self.loss),)
        self.discriminator: DetailDiscriminator | None = None
        if args.adversarial_weight:
            self.phases += (self.build_discriminator_phase(),)

    def build_discriminator_phase(self) -> Phase:
        """Build the discriminator of details and return its part of a step."""
        discriminator = DetailDiscriminator(len(self.weights))
        adam = torch.optim.Adam(discriminator.parameters(), lr=DISCRIMINATOR_RATE, betas=(0.5, 0.99))
        schedule = build_schedule(self.args, adam)
        model, adam = self.accelerator.prepare(discriminator, adam)
        self.discriminator = self.accelerator.unwrap_model(model)
        return Phase(model, adam, schedule, self.discriminator_phase)

    def loss(self, model: nn.Module, micro: MicroBatch) -> dict[str, Tensor]:
        """Train drawings to be the avatars with the same attributes, and their details to pass for these."""
        real, labels = micro.batch["image"], micro.batch["labels"].long()
        w = self.codes_of(micro.batch["number"].cpu(), micro).to(real)
        fake = model(w)
        loss = total = drawing_loss(fake, real, pixel_weights(labels, self.weights))
        logged = {"loss": loss}
        if self.discriminator is not None:
            d = self.discriminator.requires_grad_(False)
            logged["g_loss"] = generator_loss("logistic", d(fake, labels))
            total = loss + self.args.adversarial_weight * logged["g_loss"]
            micro.batch["fake"] = fake.detach()
        self.accelerator.backward(total * micro.scale)
        return logged

    def discriminator_phase(self, model: nn.Module, micro: MicroBatch) -> dict[str, Tensor]:
        """Train the discriminator to tell details of avatars from those of drawings."""
        assert self.discriminator is not None
        self.discriminator.requires_grad_(True)
        labels = micro.batch["labels"].long()
        loss = discriminator_loss("logistic", *(model(micro.batch[name], labels) for name in ("image", "fake")))
        self.accelerator.backward(loss * micro.scale)
        return {"d_loss": loss}

    @torch.no_grad()
    def codes_of(self, numbers: Tensor, micro: MicroBatch) -> Tensor:
        """Return w (B, w_dim) of drawings: their rows, whose kinds are less and less exact up to step `ramp`.

        What z is mapped to lies between two kinds now and then, and truncation moves kinds toward the mean: a kind is
        to be drawn clearly from there, too. So in half of the cases another drawing's kind is mixed in, else it is
        replaced by what z is mapped to, unless that is nearer to another kind; then, in half of the cases, it moves
        toward the mean.
        """
        draw, g = micro.draw, self.generator
        ramp = min(1.0, micro.step / self.ramp) if self.ramp else 1.0
        row, z = self.table.rows[numbers], self.codes.draw_z(numbers, draw)
        mixed = MOST_MIXED * self._in_half_the_cases(len(row), draw)
        other = row[torch.randperm(len(row), generator=draw)]
        w, mapped = torch.lerp(row, other, ramp * mixed), g.mapping(z.to(g.w_avg)).float().cpu()
        for name, rows in zip(self.table.kinds, self.rows_of_kinds, strict=True):
            at = self.table.columns[name]
            same = torch.cdist(mapped[:, at], rows).argmin(1) == torch.cdist(row[:, at], rows).argmin(1)
            share = ramp * (same[:, None] & (mixed[:, at] == 0))
            w[:, at] = torch.lerp(w[:, at], mapped[:, at], share)
        toward_mean = (1 - LEAST_PSI) * self._in_half_the_cases(len(w), draw)
        return torch.lerp(w, g.w_avg.cpu().expand_as(w), ramp * toward_mean)

    def _in_half_the_cases(self, count: int, draw: torch.Generator) -> Tensor:
        """Draw (count, w_dim): 0, or in half of the cases a number up to 1, for each kind's columns; 0 elsewhere."""
        return (2 * torch.rand(count, len(self.kinds), generator=draw) - 1).clamp_min(0) @ self.kinds


class Drawer(nn.Module):
    """The synthesis from w in one forward pass, so that a wrapper for several processes sees all of it."""

    def __init__(self, model: StyleGAN2Generator):
        super().__init__()
        self.model = model

    def forward(self, w: Tensor) -> Tensor:
        """Return images (B, 3, H, W) of w (B, w_dim)."""
        g = self.model
        return g.synthesis(g.to_style(w[:, None].expand(-1, g.num_ws, -1)), noise_mode="none")


def start_mapping(args: argparse.Namespace, g: StyleGAN2Generator, codes: AttributeCodes, progress: bool) -> None:
    """Train the mapping network alone, and set the mean w."""
    draw = torch.Generator().manual_seed(args.seed)
    error = distill(g.mapping, codes, args.mapping_steps, MAPPING_RATE, draw, progress)
    logger.info("the mapping's mean squared error is %.3f of the attributes' variance", error)
    with torch.no_grad():
        z = torch.randn(AVERAGED, codes.z_dim, generator=draw)
        g.w_avg.copy_(g.mapping(z).mean(dim=0))


def region_weights(labels: Tensor, regions: int) -> Tensor:
    """Return the weight (regions,) of each region's pixels, from label maps (N, H, W); their mean over pixels is 1."""
    share = torch.bincount(labels.flatten(), minlength=regions).float() / labels.numel()
    weights = share.clamp_min(1e-4) ** -AREA_POWER
    return weights / (weights * share).sum()


def pixel_weights(labels: Tensor, of_regions: Tensor) -> Tensor:
    """Return the weights (B, 1, H, W) of pixels, from label maps (B, H, W): their regions', and more at outlines."""
    maps, window = labels[:, None].float(), 2 * OUTLINE + 1
    greatest, least = (sign * F.max_pool2d(sign * maps, window, 1, OUTLINE) for sign in (1, -1))
    return of_regions[labels][:, None] + OUTLINE_WEIGHT * (greatest != least)


def drawing_loss(fake: Tensor, real: Tensor, weights: Tensor) -> Tensor:
    """Return the smooth L1 distance of images (B, 3, H, W) plus half of that of neighbors' differences (edges).

    Args:
        weights: (B, 1, H, W), of the pixels.
    """
    error = fake.float() - real

    def mean(values: Tensor, w: Tensor) -> Tensor:
        return (F.smooth_l1_loss(values, torch.zeros_like(values), beta=SMOOTH, reduction="none") * w).mean()

    across = mean(error[..., 1:] - error[..., :-1], weights[..., 1:])
    down = mean(error[..., 1:, :] - error[..., :-1, :], weights[..., 1:, :])
    return mean(error, weights) + 0.5 * (across + down)
