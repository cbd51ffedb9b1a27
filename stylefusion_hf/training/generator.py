"""Train a StyleGAN2 on avatars or on a folder of pictures.

    accelerate launch -m stylefusion_hf.training.generator --output_dir runs/avatars64 --avatars 40000
    accelerate launch -m stylefusion_hf.training.generator --output_dir runs/mine --train_data_dir photos

The recipe is StyleGAN2's (Karras et al., arXiv 1912.04958): non-saturating logistic loss, lazy R1, optional lazy
path-length regularization, style mixing, equalized learning rates, averaged weights with ramp-up. Unlike there, the
discriminator's step reuses the images of the generator's step instead of drawing new ones.
`--loss relativistic --r2_gamma` is R3GAN's objective, `--grow_from` starts from networks of half the resolution, and
`--discriminator projected` sees the features of a frozen network; docs/guides/train.md measures what each gains.
`--loss regression` needs no discriminator: it draws avatars from their attributes, see `regression.py`.
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn

from stylefusion_hf.core.command_line import run
from stylefusion_hf.evaluation.judges import PortraitJudge
from stylefusion_hf.models.stylegan2 import StyleGAN2Generator
from stylefusion_hf.training.augment import augment, mirror
from stylefusion_hf.training.choices import parse_augmentations
from stylefusion_hf.training.common import build_schedule, finishing, push_to_hub, start
from stylefusion_hf.training.gan_losses import discriminator_loss, generator_loss, gradient_penalty, path_length
from stylefusion_hf.training.gan_validation import load_judge
from stylefusion_hf.training.generator_flags import check_flags, parse_args
from stylefusion_hf.training.generator_run import GeneratorRun
from stylefusion_hf.training.generator_setup import build_dataset, build_models
from stylefusion_hf.training.loop import MicroBatch, Phase
from stylefusion_hf.training.regression import RegressionTraining

__all__ = ["main", "parse_args", "train"]
W_AVG_DECAY = 0.998  # per step, of the mean w that truncation moves toward
PATH_LENGTH_RATE = 0.01  # per step, of the mean path length


def train(args: argparse.Namespace) -> Path:
    """Run the training and return the folder of the finished model (generator/ and discriminator/)."""
    check_flags(args)
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise ValueError(
            "R1 and the path length need second derivatives, which FSDP's sharded weights do not give: train the"
            " generator on complete copies (distributed_type: MULTI_GPU)"
        )
    portrait_judge = load_judge(args.validation_judges, args.validation_samples) if args.validation_judges else None
    accelerator = start(args)
    torch.manual_seed(args.seed)  # the same initial weights in every process
    with finishing(accelerator):
        kind = RegressionTraining if args.loss == "regression" else AdversarialTraining
        training = kind(args, accelerator, portrait_judge)
        training.fit()
        if accelerator.is_main_process:
            training.save_models()  # fit does not, if all steps were done before
            push_to_hub(args, training.folder / "generator")
    return training.folder


class AdversarialTraining(GeneratorRun):
    """Models, data and the two losses of a GAN training, and what happens between its steps.

    Raises:
        ValueError: flags that do not fit each other or the models. OSError: a model is missing.
    """

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator, portrait_judge: PortraitJudge | None):
        generator, discriminator = build_models(args)
        super().__init__(args, accelerator, generator, build_dataset(args, accelerator, generator), portrait_judge)

        # Optimizers: lazy regularization changes their rates.
        g_adam = lazy_adam(args, generator, args.path_length_interval if args.path_length_weight else 0)
        d_adam = lazy_adam(args, discriminator, args.r1_interval if args.r1_gamma or args.r2_gamma else 0)
        g_schedule, d_schedule = build_schedule(args, g_adam), build_schedule(args, d_adam)
        g, d, g_adam, d_adam = accelerator.prepare(MixingGenerator(generator), discriminator, g_adam, d_adam)
        self.discriminator = accelerator.unwrap_model(d)
        self.phases = (
            Phase(g, g_adam, g_schedule, self.generator_phase),
            Phase(d, d_adam, d_schedule, self.discriminator_phase),
        )

        # Moving averages of what the generator makes.
        self.policy = parse_augmentations(args.augment)
        self.path_mean = RunningMean().to(accelerator.device)
        self.mean_ws: list[Tensor] = []  # of the step's micro-batches
        self.mean_lengths: list[Tensor] = []

    # --- Losses ---

    def generator_phase(self, model: nn.Module, micro: MicroBatch) -> dict[str, Tensor]:
        """Train generated images to pass for real and, every path_length_interval steps, path lengths to be equal.

        The images stay in `micro.batch` for the discriminator.
        """
        args, draw, device = self.args, micro.draw, self.accelerator.device
        # Noise inputs come from the global random state, which this seed ties to the micro-batch.
        noise_seed = int(torch.randint(2**62, (1,), generator=draw)) if args.use_noise else None
        if args.mirror:
            micro.batch["image"] = mirror(draw, micro.batch["image"])[0]
        z, crossover = draw_mixing(self.generator, args.train_batch_size, args.mixing_prob, draw)
        if noise_seed is not None:
            torch.manual_seed(noise_seed)
        fake, ws = model(z.to(device), crossover.to(device))

        # The unwrapped discriminator: a wrapper for several processes would wait for its gradients.
        d = self.discriminator.requires_grad_(False)
        fake_logits, real_logits = d(augment(fake, self.policy, draw)).logits, None
        if args.loss == "relativistic":
            with torch.no_grad():
                real_logits = d(augment(micro.batch["image"], self.policy, draw)).logits
        loss = total = generator_loss(args.loss, fake_logits, real_logits)
        logged = {}
        if args.path_length_weight and micro.step % args.path_length_interval == 0:
            noise = torch.randn(fake.shape, generator=draw, dtype=torch.float32).to(device)
            lengths = path_length(fake, ws, noise)
            penalty = (lengths - self.path_mean.value).square().mean()
            total = total + penalty * args.path_length_weight * args.path_length_interval
            self.mean_lengths.append(lengths.detach().mean())
            logged["path_length"] = lengths.mean()
        self.accelerator.backward(total * micro.scale)

        micro.batch["fake"] = fake.detach()
        self.mean_ws.append(ws[:, 0].detach().mean(dim=0))  # the first row of w+ never crosses over
        return {**logged, "g_loss": loss}

    def discriminator_phase(self, model: nn.Module, micro: MicroBatch) -> dict[str, Tensor]:
        """Train the discriminator to separate real from generated images, with R1 and R2 every r1_interval steps."""
        args, draw, real, fake = self.args, micro.draw, micro.batch["image"], micro.batch["fake"]
        self.discriminator.requires_grad_(True)
        regularize = micro.step % args.r1_interval == 0
        real.requires_grad_(regularize and args.r1_gamma > 0)
        fake.requires_grad_(regularize and args.r2_gamma > 0)
        # Two passes, so that the minibatch deviation sees real and generated images separately.
        real_logits = model(augment(real, self.policy, draw)).logits
        fake_logits = model(augment(fake, self.policy, draw)).logits
        loss = total = discriminator_loss(args.loss, real_logits, fake_logits)
        logged = {}
        penalized = ("r1", real, real_logits, args.r1_gamma), ("r2", fake, fake_logits, args.r2_gamma)
        for name, images, logits, gamma in penalized:
            if images.requires_grad:
                penalty = gradient_penalty(logits, images)
                total = total + penalty * (gamma / 2 * args.r1_interval)
                logged[name] = penalty
        self.accelerator.backward(total * micro.scale)
        scores = {"real": real_logits.sigmoid().mean(), "fake": fake_logits.sigmoid().mean()}
        return {**logged, "d_loss": loss, **scores}

    # --- Between steps ---

    def after_update(self, step: int) -> None:
        """Update the moving averages, over all processes and micro-batches, so that they are the same everywhere."""
        self.generator.w_avg.lerp_(self.reduce(self.mean_ws), 1 - W_AVG_DECAY)
        if self.mean_lengths:
            self.path_mean.value.lerp_(self.reduce(self.mean_lengths), PATH_LENGTH_RATE)
        self.mean_ws.clear()
        self.mean_lengths.clear()
        super().after_update(step)

    def reduce(self, values: list[Tensor]) -> Tensor:
        """Return the mean over micro-batches and processes."""
        return self.accelerator.reduce(torch.stack(values).mean(0), "mean")

    def networks(self) -> dict[str, nn.Module]:
        return {**super().networks(), "discriminator": self.discriminator}

    def fit(self, **state: nn.Module) -> None:
        super().fit(path_mean=self.path_mean, **state)


# --- Parts -----------------------------------------------------------------------------------------------------------


class MixingGenerator(nn.Module):
    """The generator with style mixing in one forward pass, so that a wrapper for several processes sees all of it."""

    def __init__(self, model: StyleGAN2Generator):
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, crossover: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (B, C, H, W) and their w+ (B, num_ws, w_dim).

        Args:
            z: (2, B, z_dim), two codes per sample.
            crossover: (B,), the first row of w+ that takes the second code.
        """
        g = self.model
        first, second = g.mapping(z.flatten(0, 1)).float().unflatten(0, z.shape[:2])
        rows = torch.arange(g.num_ws, device=z.device)
        ws = torch.where((rows < crossover[:, None])[..., None], first[:, None], second[:, None])
        return g.synthesis(g.to_style(ws), noise_mode="random"), ws


class RunningMean(nn.Module):
    """A number that checkpoints store."""

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros([]))


def draw_mixing(g: StyleGAN2Generator, batch: int, mixing_prob: float, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return z (2, B, z_dim) and crossover rows (B,); a sample without mixing crosses over after the last row."""
    z = torch.randn(2, batch, g.config.z_dim, generator=draw, dtype=torch.float32)
    rows = torch.randint(1, g.num_ws, (batch,), generator=draw)
    mixed = torch.rand(batch, generator=draw, dtype=torch.float32) < mixing_prob
    return z, torch.where(mixed, rows, g.num_ws)


def lazy_adam(args: argparse.Namespace, model: nn.Module, interval: int) -> torch.optim.Optimizer:
    """Return an Adam that compensates for a penalty every `interval` steps; 0 for no penalty.

    Lazy regularization adds one step's worth of gradient per interval, so the rate and the betas are reduced
    (1912.04958, appendix B). A penalty in every step is not lazy.
    """
    c = interval / (interval + 1) if interval > 1 else 1.0
    return torch.optim.Adam(model.parameters(), lr=args.learning_rate * c, betas=(0.0, 0.99**c), eps=1e-8)


def main(argv: list[str] | None = None) -> None:
    """Train with the flags of a command line."""
    print(f"wrote {train(parse_args(argv))}")


if __name__ == "__main__":
    raise SystemExit(run(main))
