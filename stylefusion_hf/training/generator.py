"""Train a StyleGAN2 on avatars or on a folder of pictures.

    accelerate launch -m stylefusion_hf.training.generator --output_dir runs/avatars64 --avatars 40000
    accelerate launch -m stylefusion_hf.training.generator --output_dir runs/mine --train_data_dir photos

The recipe is StyleGAN2's (Karras et al., arXiv 1912.04958): non-saturating logistic loss, lazy R1, optional lazy
path-length regularization, style mixing, equalized learning rates, averaged weights with ramp-up. In one respect it is
thriftier: the discriminator's step reuses the images of the generator's step instead of drawing new ones.
`--loss relativistic --r2_gamma` is R3GAN's objective, `--grow_from` starts from networks of half the resolution, and
`--discriminator projected` looks at the features of a frozen network; docs/guides/train.md has what each was worth.
"""

import argparse
import copy
import math
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch import nn

from stylefusion_hf.core.command_line import run
from stylefusion_hf.core.files import save_image
from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.imaging.sheets import image_grid
from stylefusion_hf.models.discriminator import ProjectedDiscriminator, StyleGAN2Discriminator
from stylefusion_hf.models.layers import check_channels
from stylefusion_hf.models.segmenter import RegionSegmenter
from stylefusion_hf.models.stylegan2 import StyleGAN2Generator
from stylefusion_hf.training.augment import augment, parse_policy
from stylefusion_hf.training.common import (
    ArrayDataset,
    Log,
    State,
    build_schedule,
    common_parser,
    ema_update,
    export,
    finishing,
    one_process_first,
    push_to_hub,
    resume,
    save_checkpoint,
    start,
    step_batches,
    step_generators,
    sync_when,
)
from stylefusion_hf.training.gan_losses import LOSSES, discriminator_loss, generator_loss, r1_penalty
from stylefusion_hf.training.gan_validation import REAL_START, SampleJudge, load_judge
from stylefusion_hf.training.growing import grow_models, own_config

# The embedded generator's channels at 4, 8, ..., 64 pixels; larger resolutions go on halving.
SMALL_CHANNELS = (128, 128, 128, 64, 32)
W_AVG_DECAY = 0.998  # a step, of the mean w that truncation goes to


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = common_parser("stylefusion train generator", "Train a StyleGAN2 generator and its discriminator.")
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--avatars", type=int, metavar="N", help="train on the first N avatars, rendered here")
    source.add_argument("--train_data_dir", help="train on the pictures of this folder")
    p.add_argument("--data_seed", type=int, default=0, help="of the avatars")
    p.add_argument("--cache_dir", help="where rendered avatars are kept; --output_dir/data if left out")
    p.add_argument("--mirror", action="store_true", help="also train on mirrored pictures")
    p.add_argument("--augment", default="none", help="none, or some of color,translation,cutout (for small data sets)")
    p.add_argument("--dataloader_num_workers", type=int, default=0)
    p.add_argument(
        "--channels", help="comma-separated channels from 4 x 4 up; 128,128,128,64,32 at 64 pixels if left out"
    )
    p.add_argument("--latent_dim", type=int, default=128, help="numbers in z and in w")
    p.add_argument("--mapping_layers", type=int, default=4)
    p.add_argument("--use_noise", action="store_true", help="noise inputs; flat artwork is better without")
    p.add_argument(
        "--grow_from",
        metavar="FOLDER",
        help="start from the trained generator/ and discriminator/ of half the --resolution, with one more block each",
    )
    p.add_argument(
        "--discriminator",
        choices=("stylegan2", "projected"),
        default="stylegan2",
        help="stylegan2 sees pixels, projected the features of --feature_network",
    )
    p.add_argument("--feature_network", metavar="FOLDER", help="holds the segmenter/ of --discriminator projected")
    p.add_argument("--loss", choices=LOSSES, default="logistic", help="StyleGAN2's, or R3GAN's (with --r2_gamma)")
    p.add_argument(
        "--r1_gamma", type=float, default=5.0, help="weight of R1; 0 for none (docs/guides/train.md says why 5)"
    )
    p.add_argument("--r2_gamma", type=float, default=0.0, help="weight of R2, the same penalty at generated images")
    p.add_argument(
        "--r1_interval", type=int, default=16, help="steps between two penalties (R1 and R2); 1 for one in every step"
    )
    p.add_argument(
        "--path_length_weight", type=float, default=0.0, help="weight of path-length regularization (StyleGAN2: 2)"
    )
    p.add_argument("--path_length_interval", type=int, default=4)
    p.add_argument("--mixing_prob", type=float, default=0.9, help="share of samples with two codes")
    p.add_argument(
        "--ema_kimg",
        type=float,
        help="half-life of the averaged weights in thousands of images; batch / 3.2 if left out",
    )
    p.add_argument(
        "--ema_rampup", type=float, default=0.05, help="half-life as a share of the images seen, early on; 0 for none"
    )
    p.add_argument(
        "--validation_judges",
        metavar="FOLDER",
        help="judges (such as stylefusion_hf/assets/evaluation) that count kinds and measure KID at every validation",
    )
    p.add_argument("--validation_samples", type=int, default=1000, help="pictures that --validation_judges look at")
    return p.parse_args(argv)


# --- Losses ----------------------------------------------------------------------------------------------------------


class TrainingGenerator(nn.Module):
    """The generator with style mixing as ONE forward pass, so that wrappers for processes see every gradient."""

    def __init__(self, model: StyleGAN2Generator):
        super().__init__()
        self.model = model

    def forward(self, z: torch.Tensor, crossover: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """z: (2, B, z_dim), two codes a sample; crossover: (B,), the first row of w+ that takes the second.

        Returns images (B, C, H, W) and the w+ (B, num_ws, w_dim) they came from.
        """
        g = self.model
        first, second = g.mapping(z.flatten(0, 1)).float().unflatten(0, z.shape[:2])
        rows = torch.arange(g.num_ws, device=z.device)
        ws = torch.where((rows < crossover[:, None])[..., None], first[:, None], second[:, None])
        return g.synthesis(g.to_style(ws), noise_mode="random"), ws


class RunningMean(nn.Module):
    """One number that checkpoints keep."""

    value: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("value", torch.zeros([]))


def draw_codes(
    g: StyleGAN2Generator, batch: int, mixing_prob: float, draw: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """z (2, B, z_dim) and crossover rows (B,); a sample that is not mixed crosses over behind the last row."""
    z = torch.randn(2, batch, g.config.z_dim, generator=draw)
    rows = torch.randint(1, g.num_ws, (batch,), generator=draw)
    mixed = torch.rand(batch, generator=draw) < mixing_prob
    return z, torch.where(mixed, rows, g.num_ws)


def path_length(images: torch.Tensor, ws: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Length of J^T y per sample, (B,): arXiv 1912.04958, section 3.2; `noise` is y before its normalization."""
    y = noise / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * y).sum(), ws, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()


# --- The run ---------------------------------------------------------------------------------------------------------


def build_models(
    args: argparse.Namespace,
) -> tuple[StyleGAN2Generator, StyleGAN2Discriminator | ProjectedDiscriminator]:
    """New models, those of `--pretrained_model_name_or_path` (its folders generator/ and discriminator/), or those of
    `--grow_from` with one more block each."""
    projected = args.discriminator == "projected"
    if projected == (args.feature_network is None):
        raise ValueError("--discriminator projected and --feature_network FOLDER go together: give both or neither")
    if projected and args.grow_from:
        raise ValueError("--grow_from grows the plain discriminator: leave --discriminator projected out")
    if args.pretrained_model_name_or_path and args.grow_from:
        raise ValueError(
            "--model starts from networks of this resolution, --grow_from of half of it: give one of them"
        )
    if args.pretrained_model_name_or_path:
        where = {"revision": args.revision, "variant": args.variant}
        g = StyleGAN2Generator.from_pretrained(args.pretrained_model_name_or_path, subfolder="generator", **where)
        kind = ProjectedDiscriminator if projected else StyleGAN2Discriminator
        d = kind.from_pretrained(args.pretrained_model_name_or_path, subfolder="discriminator", **where)
        if g.config.resolution != args.resolution:
            raise ValueError(
                f"--resolution is {args.resolution}, but the given generator makes {g.config.resolution} px images"
            )
        if g.config.label_dim:
            raise ValueError("this trainer is for unconditional models; the given generator wants class labels")
        return g, d
    channels = None
    if args.channels:
        try:
            channels = check_channels([int(c) for c in args.channels.split(",")], args.resolution)
        except ValueError as error:
            raise ValueError(f"--channels {args.channels}: {error}") from None
    if args.grow_from:
        return grow_models(args.grow_from, args.resolution, channels)
    if channels is None:
        blocks = max(int(math.log2(max(args.resolution, 4))) - 1, 1)
        more = [max(SMALL_CHANNELS[-1] >> (k + 1), 8) for k in range(max(0, blocks - len(SMALL_CHANNELS)))]
        channels = [*SMALL_CHANNELS, *more][:blocks]
    g = StyleGAN2Generator(
        resolution=args.resolution,
        channels=channels,
        z_dim=args.latent_dim,
        w_dim=args.latent_dim,
        mapping_layers=args.mapping_layers,
        use_noise=args.use_noise,
    )
    if projected:
        network = RegionSegmenter.from_pretrained(args.feature_network, subfolder="segmenter")
        d = ProjectedDiscriminator(own_config(network), resolution=args.resolution)
        d.frozen.load_state_dict({k: v for k, v in network.state_dict().items() if k.startswith("down.")})
        return g, d
    return g, StyleGAN2Discriminator(resolution=args.resolution, channels=channels)


def build_dataset(args: argparse.Namespace, accelerator: Accelerator):
    if args.train_data_dir:
        from stylefusion_hf.data.folders import ImageFolder

        return ImageFolder(args.train_data_dir, args.resolution)
    from stylefusion_hf.data.avatars import cached_arrays

    cache = Path(args.cache_dir or Path(args.output_dir) / "data")
    with one_process_first(accelerator):
        images, _ = cached_arrays(cache, args.avatars, args.resolution, args.data_seed)
    return ArrayDataset(images)


def build_judge(args: argparse.Namespace, portrait_judge, accelerator: Accelerator, dataset):
    """The `SampleJudge` that `--validation_judges` asks for, in the main process; None elsewhere.

    Real pictures are avatars that no training sees, or the first of `--train_data_dir`.
    """
    if not (portrait_judge and args.validation_steps and accelerator.is_main_process):
        return None

    if args.avatars:
        from stylefusion_hf.data.avatars import cached_arrays

        cache = Path(args.cache_dir or Path(args.output_dir) / "data") / "validation"
        images, _ = cached_arrays(cache, args.validation_samples, args.resolution, args.data_seed, start=REAL_START)
        dataset = ArrayDataset(images)
    elif len(dataset) < args.validation_samples:
        raise ValueError(
            f"--train_data_dir {args.train_data_dir} holds {len(dataset)} pictures, fewer than --validation_samples"
            f" {args.validation_samples}"
        )

    def real(numbers: range) -> torch.Tensor:
        return torch.stack([dataset[i]["image"] for i in numbers])

    return SampleJudge(portrait_judge, real, args.validation_samples, accelerator.device)


def train(args: argparse.Namespace) -> Path:
    """Run the training and return the folder of the finished model (generator/ and discriminator/)."""
    policy = parse_policy(args.augment)
    for name in ("r1_gamma", "r2_gamma"):
        if not 0 <= getattr(args, name) < math.inf:
            raise ValueError(f"--{name} must not be negative, got {getattr(args, name)}")
    if args.r1_interval < 1:
        raise ValueError(f"--r1_interval must be at least 1, got {args.r1_interval}")
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise ValueError(
            "R1 and the path length need second derivatives, which FSDP's sharded weights do not give: train the"
            " generator on whole copies (distributed_type: MULTI_GPU)"
        )
    portrait_judge = load_judge(args.validation_judges, args.validation_samples) if args.validation_judges else None
    accelerator = start(args)
    torch.manual_seed(args.seed)  # the same initial weights on every process
    g, d = build_models(args)
    ema = copy.deepcopy(g).eval().requires_grad_(False).to(accelerator.device)
    batch = args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    r1_gamma, r2_gamma = args.r1_gamma, args.r2_gamma
    ema_images = 1000 * (batch / 3.2 if args.ema_kimg is None else args.ema_kimg)

    def optimizer(model: nn.Module, interval: int) -> torch.optim.Optimizer:
        # Lazy regularization adds a step's worth of gradient every `interval` steps; rate and betas make up for it
        # (1912.04958, B). A penalty in every step is not lazy.
        c = interval / (interval + 1) if interval > 1 else 1.0
        return torch.optim.Adam(model.parameters(), lr=args.learning_rate * c, betas=(0.0, 0.99**c), eps=1e-8)

    g_optimizer = optimizer(g, args.path_length_interval if args.path_length_weight else 0)
    d_optimizer = optimizer(d, args.r1_interval if r1_gamma or r2_gamma else 0)
    schedules = [build_schedule(args, o) for o in (g_optimizer, d_optimizer)]
    tg, d, g_optimizer, d_optimizer = accelerator.prepare(TrainingGenerator(g), d, g_optimizer, d_optimizer)
    plain_d = accelerator.unwrap_model(d)
    path_mean = RunningMean().to(accelerator.device)
    state = State(ema=ema, path_mean=path_mean, schedules=schedules)
    accelerator.register_for_checkpointing(state)
    dataset = build_dataset(args, accelerator)
    first = resume(accelerator, args)
    batches = step_batches(dataset, args, accelerator, first, args.dataloader_num_workers)
    log, folder = Log(accelerator, args), Path(args.output_dir)
    judge = build_judge(args, portrait_judge, accelerator, dataset)
    if judge is not None and first == 0:
        log.note(0, judge.reference())
    n = args.gradient_accumulation_steps

    def save_models() -> None:
        export(ema, folder / "generator")
        export(plain_d, folder / "discriminator")

    bar = tqdm(total=args.max_train_steps, initial=first, disable=not accelerator.is_main_process, desc="generator")
    with finishing(accelerator), bar:
        for step in range(first, args.max_train_steps):
            draws = step_generators(args, accelerator, step)
            # Noise inputs are drawn from the global state, which these pin to the micro-batch.
            noises = [int(torch.randint(2**62, (1,), generator=draw)) if args.use_noise else 0 for draw in draws]
            reals = list(next(batches)["image"].to(accelerator.device).chunk(n))
            if args.mirror:
                for i, draw in enumerate(draws):
                    flip = torch.rand(len(reals[i]), 1, 1, 1, generator=draw).to(reals[i]) < 0.5
                    reals[i] = torch.where(flip, reals[i].flip(3), reals[i])
            codes = [draw_codes(g, args.train_batch_size, args.mixing_prob, draw) for draw in draws]
            codes = [(z.to(accelerator.device), rows.to(accelerator.device)) for z, rows in codes]

            # Generator: make the discriminator say "real".
            d.requires_grad_(False)
            g_optimizer.zero_grad()
            fakes, means, spreads = [], [], []
            for i, (draw, (z, rows)) in enumerate(zip(draws, codes, strict=True)):
                if args.use_noise:
                    torch.manual_seed(noises[i])
                with sync_when(accelerator, tg, i == n - 1):
                    fake, ws = tg(z, rows)
                    # Not through the wrapper of several processes, which would wait for gradients of d.
                    fake_logits, real_logits = plain_d(augment(fake, policy, draw)).logits, None
                    if args.loss == "relativistic":
                        with torch.no_grad():
                            real_logits = plain_d(augment(reals[i], policy, draw)).logits
                    loss = generator_loss(args.loss, fake_logits, real_logits)
                    total = loss
                    if args.path_length_weight and step % args.path_length_interval == 0:
                        noise = torch.randn(fake.shape, generator=draw).to(fake.device)
                        lengths = path_length(fake, ws, noise)
                        spreads.append(lengths.detach().mean())
                        penalty = (lengths - path_mean.value).square().mean()
                        total = total + penalty * args.path_length_weight * args.path_length_interval
                        log.add(path_length=lengths.mean())
                    accelerator.backward(total / n)
                fakes.append(fake.detach())
                means.append(ws[:, 0].detach().mean(dim=0))  # the first row of w+ never crosses over
                log.add(g_loss=loss)
            if args.max_grad_norm:
                accelerator.clip_grad_norm_(tg.parameters(), args.max_grad_norm)
            g_optimizer.step()
            # Over all processes and micro-batches, so that both means are the same everywhere.
            g.w_avg.lerp_(accelerator.reduce(torch.stack(means).mean(0), "mean"), 1 - W_AVG_DECAY)
            if spreads:
                path_mean.value.lerp_(accelerator.reduce(torch.stack(spreads).mean(), "mean"), 0.01)

            # Discriminator: tell them apart; every r1_interval steps also R1 and R2.
            d.requires_grad_(True)
            d_optimizer.zero_grad()
            for i, (draw, fake, x) in enumerate(zip(draws, fakes, reals, strict=True)):
                with sync_when(accelerator, d, i == n - 1):
                    regularise = step % args.r1_interval == 0
                    x = x.requires_grad_(regularise and r1_gamma > 0)
                    fake = fake.requires_grad_(regularise and r2_gamma > 0)
                    # Two passes, so that the minibatch deviation sees real and generated images apart.
                    real_logits = d(augment(x, policy, draw)).logits
                    fake_logits = d(augment(fake, policy, draw)).logits
                    loss = discriminator_loss(args.loss, real_logits, fake_logits)
                    total = loss
                    if x.requires_grad:
                        penalty = r1_penalty(real_logits, x)
                        total = total + penalty * (r1_gamma / 2 * args.r1_interval)
                        log.add(r1=penalty)
                    if fake.requires_grad:
                        penalty = r1_penalty(fake_logits, fake)
                        total = total + penalty * (r2_gamma / 2 * args.r1_interval)
                        log.add(r2=penalty)
                    accelerator.backward(total / n)
                log.add(d_loss=loss, real=real_logits.sigmoid().mean(), fake=fake_logits.sigmoid().mean())
            if args.max_grad_norm:
                accelerator.clip_grad_norm_(d.parameters(), args.max_grad_norm)
            d_optimizer.step()
            for schedule in schedules:
                schedule.step()

            half_life = min(ema_images, (step + 1) * batch * args.ema_rampup) if args.ema_rampup else ema_images
            ema_update(ema, g, 0.5 ** (batch / max(half_life, 1e-8)) if args.use_ema else 0.0)
            done = step + 1
            bar.update()
            if done % args.logging_steps == 0 or done == args.max_train_steps:
                log.report(done, bar)
            if args.validation_steps and done % args.validation_steps == 0 and accelerator.is_main_process:
                save_samples(ema, folder / "samples" / f"{done:07d}.png")
                if judge is not None:
                    log.note(done, {"images": done * batch, **judge.figures(ema)})
            if done % args.checkpointing_steps == 0 or done == args.max_train_steps:
                save_checkpoint(accelerator, args, done)
                if accelerator.is_main_process and done < args.max_train_steps:
                    save_models()  # so far, for use beside a run that goes on
        if accelerator.is_main_process:
            save_models()  # also where all steps were done before and this did not come to it
            push_to_hub(args, folder / "generator")
    return folder


@torch.no_grad()
def save_samples(g: StyleGAN2Generator, path: Path, count: int = 64, psi: float = 1.0) -> None:
    """A grid of the seeds 0 .. count - 1, drawn as pipelines draw them."""
    from stylefusion_hf.core.codes import seeds_to_z

    z = seeds_to_z(range(count), g.config.z_dim).to(g.w_avg)
    s = g.to_style(g.truncate(g.mapping(z), psi))
    images = torch.cat([g.synthesis(part) for part in s.split(16)])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(image_grid(images, math.ceil(math.sqrt(count))), path)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    print(f"wrote {train(args)}")


if __name__ == "__main__":
    raise SystemExit(run(main))
