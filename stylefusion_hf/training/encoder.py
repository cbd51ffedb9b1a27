"""Train an image encoder for a frozen StyleGAN2: on the generator's own samples and, where given, on real pictures.

    accelerate launch -m stylefusion_hf.training.encoder --model FOLDER --output_dir runs/encoder
    accelerate launch -m stylefusion_hf.training.encoder --model FOLDER --output_dir runs/mine --train_data_dir PHOTOS

FOLDER holds generator/ and, better with it, segmenter/. Of a sample the code is known: the encoder is told how far its
code is off, and how far the picture of its code is off, in pixels and in features. Of a real picture there is no code,
only the picture. All codes are held near those that the generator's own mapping gives. Features are the segmenter's;
without one, edges at several scales. The finished encoder lies in OUTPUT_DIR/encoder: copy it into a model's folder,
or load the pipeline with `encoder=`.
"""

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from stylefusion_hf.core.command_line import run
from stylefusion_hf.core.files import save_image, write_json
from stylefusion_hf.core.memory import RENDER_SHARE, chunk_size, forward_bytes, memory_budget
from stylefusion_hf.core.randomness import step_generator
from stylefusion_hf.imaging.features import extractor, map_distance
from stylefusion_hf.imaging.sheets import image_grid
from stylefusion_hf.inversion.optimization import CodePrior
from stylefusion_hf.models.encoder import ImageEncoder, encoder_channels
from stylefusion_hf.models.sampling import draw_rows, draw_w
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.training._segmenters import own_segmenter
from stylefusion_hf.training.common import (
    ArrayDataset,
    Log,
    build_schedule,
    common_parser,
    ema_update,
    export,
    finishing,
    gathered,
    one_process_first,
    push_to_hub,
    start,
)
from stylefusion_hf.training.loop import MicroBatch, fit


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = common_parser(
        "stylefusion train encoder",
        "Train an image encoder for a frozen generator.",
        learning_rate=1e-3,
        train_batch_size=16,
        max_train_steps=10_000,
        lr_scheduler="cosine",
        lr_warmup_steps=100,
        max_grad_norm=1.0,
    )
    p.set_defaults(resolution=None)  # the generator's
    p.add_argument("--channels", help="widths of the encoder, comma-separated; by the resolution if left out")
    source = p.add_mutually_exclusive_group()
    source.add_argument("--train_data_dir", help="folder of real pictures, squares like the generator's")
    source.add_argument("--avatars", type=int, default=0, metavar="N", help="real pictures: the first N avatars")
    p.add_argument("--data_seed", type=int, default=0, help="of the avatars")
    p.add_argument("--cache_dir", help="where rendered avatars are kept; --output_dir/data if left out")
    p.add_argument("--dataloader_num_workers", type=int, default=0)
    p.add_argument("--real_share", type=float, default=0.5, help="of a batch, where there are real pictures")
    p.add_argument("--min_psi", type=float, default=0.7, help="samples are truncated by this to 1")
    p.add_argument("--mixed_share", type=float, default=0.5, help="of the samples: codes that are not of a single w")
    p.add_argument(
        "--code_weight",
        type=float,
        default=0.1,
        help="of the squared error of a sample's code, in units of the generator's own",
    )
    p.add_argument("--pixel_weight", type=float, default=10.0, help="of the squared error of pixels")
    p.add_argument("--feature_weight", type=float, default=1.0, help="of the distance of features")
    p.add_argument("--prior_weight", type=float, default=0.03, help="of the codes' distance from the generator's own")
    p.add_argument("--ema_decay", type=float, default=0.998, help="of --use_ema")
    p.add_argument("--eval_images", type=int, default=256, help="held-out pictures for the report; 0 for none")
    return p.parse_args(argv)


# --- Objective -------------------------------------------------------------------------------------------------------


Maps = Callable[[Tensor], list[Tensor]]  # images -> what is compared of them


def apart(maps: Maps, images: Tensor, targets: Tensor) -> Tensor:
    """(B,): the distance of features of pictures (B, 3, H, W); gradients reach `images` alone."""
    with torch.no_grad():
        seen = maps(targets)
    return map_distance(maps(images), seen)


def encoder_loss(
    g: StyleGenerator, maps: Maps, codes: Tensor, known: Tensor, images: Tensor, prior: CodePrior, weights: dict
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of guessed codes.

    Args:
        codes: (B, num_ws, w_dim), the encoder's, of `images` (B, 3, H, W).
        known: (K, num_ws, w_dim), the codes of the first K images, which are samples.
        prior: of the generator.
        weights: of "code", "pixel", "feature" and "prior".

    Returns:
        The weighted sum, and each term.
    """
    made = g.synthesis(g.to_style(codes), noise_mode="none")
    terms = {
        "pixel": (made - images).square().mean(),
        "feature": apart(maps, made, images).mean(),
        "code": prior.between(codes[: len(known)], known).mean() if len(known) else codes.new_zeros(()),
        "prior": prior.distance(codes, "w+").mean(),
    }
    return sum((weights[k] * v for k, v in terms.items()), codes.new_zeros(())), terms


# --- Data ------------------------------------------------------------------------------------------------------------


def build_dataset(args: argparse.Namespace, accelerator: Accelerator, resolution: int) -> Any:
    """The real pictures that the flags ask for, or None."""
    if args.train_data_dir:
        from stylefusion_hf.data.folders import ImageFolder

        return ImageFolder(args.train_data_dir, resolution, mirror=True)
    if not args.avatars:
        return None
    from stylefusion_hf.data.avatars import cached_arrays

    with one_process_first(accelerator):
        cache = Path(args.cache_dir or Path(args.output_dir) / "data")
        return ArrayDataset(cached_arrays(cache, args.avatars, resolution, args.data_seed)[0])


def load_frozen(args: argparse.Namespace, accelerator: Accelerator) -> tuple[StyleGenerator, Any]:
    """Generator and, where there is one, segmenter of --model."""
    if not args.pretrained_model_name_or_path:
        raise ValueError("--model is missing: a folder or Hub id that holds generator/, and segmenter/ if it has one")
    where = {"revision": args.revision, "variant": args.variant, "torch_dtype": torch.float32}

    def load(cls: Any, name: str) -> Any:
        model = cls.from_pretrained(args.pretrained_model_name_or_path, subfolder=name, **where)
        return model.eval().requires_grad_(False).to(accelerator.device)

    g = load(StyleGenerator, "generator")
    if args.resolution not in (None, g.config.resolution):
        raise ValueError(f"--resolution {args.resolution}: the generator in --model makes {g.config.resolution} px")
    try:
        segmenter = own_segmenter(args.pretrained_model_name_or_path, "segmenter", **where)
        segmenter = segmenter.eval().requires_grad_(False).to(accelerator.device)
    except OSError as error:
        if accelerator.is_main_process:
            print(f"features are edges: {args.pretrained_model_name_or_path} gives no segmenter ({error})")
        segmenter = None
    return g, segmenter


def new_encoder(args: argparse.Namespace, g: StyleGenerator) -> ImageEncoder:
    """An encoder that gives the mean code, with the mean and deviation of the generator's w."""
    try:
        resolution = g.config.resolution
        channels = [int(c) for c in args.channels.split(",")] if args.channels else encoder_channels(resolution)
        model = ImageEncoder(
            num_ws=g.num_ws,
            w_dim=g.w_avg.shape[0],
            resolution=resolution,
            channels=channels,
            img_channels=g.config.img_channels,
        )
    except ValueError as error:
        raise ValueError(f"--channels {args.channels}: {error}") from None
    draw = step_generator(args.seed, 0, purpose=2)
    with torch.no_grad():
        model.fit_axes(draw_w(g, 4096, draw, min_psi=1.0))
    return model


# --- Measuring -------------------------------------------------------------------------------------------------------


def pictures_at_once(g: StyleGenerator) -> int:
    """How many pictures memory allows where there are no gradients."""
    each = forward_bytes(g.feature_sizes, g.config.resolution)
    return chunk_size(each, memory_budget(g.device) * RENDER_SHARE, 32)


@torch.no_grad()
def reconstruct(g: StyleGenerator, encoder: ImageEncoder, images: Tensor) -> Tensor:
    """Pictures of the codes of images (N, 3, H, W)."""
    codes = (encoder.encode(part) for part in images.split(pictures_at_once(g)))
    return torch.cat([g.synthesis(g.to_style(code), noise_mode="none") for code in codes])


@torch.no_grad()
def figures(g: StyleGenerator, maps: Maps, encoder: ImageEncoder, images: Tensor) -> dict[str, float]:
    """Mean squared error of pixels (in units of -1 to 1) and distance of features, over images (N, 3, H, W)."""
    made, batch = reconstruct(g, encoder, images), pictures_at_once(g)
    features = torch.cat([apart(maps, a, b) for a, b in zip(made.split(batch), images.split(batch), strict=True)])
    return {"mse": (made - images).square().mean().item(), "feature": features.mean().item()}


def held_out(args: argparse.Namespace, g: StyleGenerator) -> dict[str, Tensor]:
    """Pictures that no step sees: fresh samples and, where avatars are trained on, avatars far behind those."""
    from stylefusion_hf.training.segmenter import held_out_avatars

    draw = step_generator(args.seed, 0, purpose=9)
    with torch.no_grad():
        rows = draw_rows(g, args.eval_images, draw, args.min_psi, 0.0)
        parts = rows.split(pictures_at_once(g))
        found = {"samples": torch.cat([g.synthesis(g.to_style(part), noise_mode="none") for part in parts])}
    if args.avatars:
        held = held_out_avatars(args.eval_images, g.config.resolution, args.data_seed)
        found["avatars"] = torch.stack([held[i]["image"] for i in range(len(held))]).to(g.device)
    return found


# --- The run ---------------------------------------------------------------------------------------------------------


def check_flags(args: argparse.Namespace) -> None:
    """ValueError for flags that make no sense together."""
    if not 0 <= args.real_share <= 1:
        raise ValueError(f"--real_share is from 0 to 1, got {args.real_share}")
    if not 0 <= args.min_psi <= 1 or not 0 <= args.mixed_share <= 1:
        raise ValueError(f"--min_psi and --mixed_share are from 0 to 1, got {args.min_psi} and {args.mixed_share}")
    weights = {name: getattr(args, f"{name}_weight") for name in ("code", "pixel", "feature", "prior")}
    if bad := [name for name, weight in weights.items() if weight < 0]:
        raise ValueError(f"--{bad[0]}_weight must not be negative, got {weights[bad[0]]}")
    if not any(weights[name] for name in ("code", "pixel", "feature")):
        raise ValueError("--code_weight, --pixel_weight and --feature_weight are all 0: nothing to train for")
    if not 0 <= args.ema_decay < 1:
        raise ValueError(f"--ema_decay is from 0 to below 1, got {args.ema_decay}")
    if args.avatars < 0 or args.eval_images < 0:
        raise ValueError("--avatars and --eval_images must not be negative")


def train(args: argparse.Namespace) -> Path:
    """Run the training and return the folder that holds encoder/ and, beside it, figures.json."""
    check_flags(args)
    accelerator = start(args)
    torch.manual_seed(args.seed)
    g, segmenter = load_frozen(args, accelerator)
    maps, folder = extractor(segmenter), Path(args.output_dir)
    dataset = build_dataset(args, accelerator, g.config.resolution)
    model = new_encoder(args, g)
    average = copy.deepcopy(model).requires_grad_(False).to(accelerator.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.99))
    schedule = build_schedule(args, optimizer)
    model, optimizer = accelerator.prepare(model, optimizer)
    prior = CodePrior.of(g)
    weights = {name: getattr(args, f"{name}_weight") for name in ("code", "pixel", "feature", "prior")}
    tests = held_out(args, g) if args.eval_images and accelerator.is_main_process else {}
    size = args.train_batch_size
    real = round(size * args.real_share) if dataset is not None else 0

    def loss(model: torch.nn.Module, micro: MicroBatch) -> dict[str, Tensor]:
        with torch.no_grad():
            known = draw_rows(g, size - real, micro.draw, args.min_psi, args.mixed_share)
            parts = [g.synthesis(g.to_style(known), noise_mode="none")] if len(known) else []
        if real:
            parts.append(mirrored(micro.batch["image"][:real], micro.draw))
        batch = torch.cat(parts)
        codes = model(batch).latents.float()
        value, terms = encoder_loss(g, maps, codes, known, batch, prior, weights)
        accelerator.backward(value * micro.scale)
        return {"loss": value, **terms}

    def after_update(step: int) -> None:
        # A short memory at first, or the first steps' weights would linger.
        decay = min(args.ema_decay, (1 + step) / (10 + step)) if args.use_ema else 0.0
        ema_update(average, gathered(accelerator, model), decay)

    def validate(log: Log, done: int) -> None:
        for name, images in tests.items():
            log.note(done, {f"{k} {name}": v for k, v in figures(g, maps, average, images).items()})
            save_sheet(g, average, images[:8], folder / "samples" / f"{name}-{done:06d}.png")

    def after_checkpoint(done: int) -> None:
        if accelerator.is_main_process:
            export(average, folder / "encoder")

    with finishing(accelerator):
        fit(
            args,
            accelerator,
            model,
            optimizer,
            schedule,
            loss,
            dataset=dataset,
            state={"average": average},
            after_update=after_update,
            validate=validate,
            after_checkpoint=after_checkpoint,
        )
        if accelerator.is_main_process:
            export(average, folder / "encoder")  # also where all steps were done before and this did not come to it
            report = {name: figures(g, maps, average, images) for name, images in tests.items()}
            write_json(folder / "figures.json", report, indent=2)
            print(json.dumps(report, indent=2))
            push_to_hub(args, folder / "encoder")
    return folder


def mirrored(images: Tensor, draw: torch.Generator) -> Tensor:
    """Images (B, C, H, W), each mirrored or not by the toss of a coin."""
    heads = torch.rand(len(images), generator=draw).to(images.device) < 0.5
    return torch.where(heads[:, None, None, None], images.flip(3), images)


def save_sheet(g: StyleGenerator, encoder: ImageEncoder, images: Tensor, path: Path) -> None:
    """Pictures above their reconstructions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(image_grid(torch.cat([images, reconstruct(g, encoder, images)]), len(images)), path)


def main(argv: list[str] | None = None) -> None:
    print(f"wrote {train(parse_args(argv))}")


if __name__ == "__main__":
    raise SystemExit(run(main))
