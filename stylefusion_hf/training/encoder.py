"""Train an image encoder for a frozen StyleGAN2: on the generator's own samples and, where given, on real pictures.

    accelerate launch -m stylefusion_hf.training.encoder --model FOLDER --output_dir runs/encoder
    accelerate launch -m stylefusion_hf.training.encoder --model FOLDER --output_dir runs/mine --train_data_dir PHOTOS

FOLDER holds generator/ and preferably segmenter/. The code of a sample is known, so its loss compares codes, pixels
and features; for a real picture it compares only pixels and features. A prior keeps all codes near those of the
generator's own mapping. Features are the segmenter's or, without one, edges at several scales. The finished encoder is
in OUTPUT_DIR/encoder: copy it into a model's folder, or load the pipeline with `encoder=`.
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
from stylefusion_hf.imaging.modes import check_viewable
from stylefusion_hf.imaging.sheets import image_grid
from stylefusion_hf.inversion.optimization import CodePrior
from stylefusion_hf.models.encoder import ImageEncoder, encoder_channels
from stylefusion_hf.models.sampling import draw_rows, draw_w
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.training._segmenters import own_segmenter
from stylefusion_hf.training.augment import mirror
from stylefusion_hf.training.common import (
    build_schedule,
    ema_update,
    finishing,
    gathered,
    push_to_hub,
    save_model,
    start,
)
from stylefusion_hf.training.datasets import ArrayDataset, check_avatars_fit, held_out_avatars, load_avatars
from stylefusion_hf.training.encoder_flags import check_flags, parse_args, weights_of
from stylefusion_hf.training.loop import MicroBatch, Phase, fit
from stylefusion_hf.training.reports import Log

__all__ = ["main", "parse_args", "train"]

# --- Objective -------------------------------------------------------------------------------------------------------

Maps = Callable[[Tensor], list[Tensor]]  # images -> their feature maps


def feature_distance(maps: Maps, images: Tensor, targets: Tensor) -> Tensor:
    """Return the distance (B,) between features of pictures (B, 3, H, W); gradients reach only `images`."""
    with torch.no_grad():
        wanted = maps(targets)
    return map_distance(maps(images), wanted)


def encoder_loss(
    g: StyleGenerator, maps: Maps, codes: Tensor, known: Tensor, images: Tensor, prior: CodePrior, weights: dict
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of predicted codes.

    Args:
        codes: (B, num_ws, w_dim), predicted by the encoder from `images` (B, 3, H, W).
        known: (K, num_ws, w_dim), the true codes of the first K images, which are samples.
        prior: of the generator's codes.
        weights: of the terms "code", "pixel", "feature" and "prior".

    Returns:
        The weighted sum, and each term.
    """
    made = g.synthesis(g.to_style(codes), noise_mode="none")
    terms = {
        "pixel": (made - images).square().mean(),
        "feature": feature_distance(maps, made, images).mean(),
        "code": prior.between(codes[: len(known)], known).mean() if len(known) else codes.new_zeros(()),
        "prior": prior.distance(codes, "w+").mean(),
    }
    return sum((weights[k] * v for k, v in terms.items()), codes.new_zeros(())), terms


# --- Models and data -------------------------------------------------------------------------------------------------


def build_dataset(args: argparse.Namespace, accelerator: Accelerator, g: StyleGenerator) -> Any:
    """Return the real pictures that the flags ask for, of the generator's size and channels, or None."""
    if args.train_data_dir:
        from stylefusion_hf.data.folders import ImageFolder

        return ImageFolder(args.train_data_dir, g.picture_size, channels=g.config.img_channels, mirror=True)
    if not args.avatars:
        return None
    check_avatars_fit(g)
    return ArrayDataset(load_avatars(args, accelerator, g.config.resolution)[0])


def load_frozen(args: argparse.Namespace, accelerator: Accelerator) -> tuple[StyleGenerator, Any]:
    """Return the generator and, if there is one, the segmenter in --model."""
    if not args.pretrained_model_name_or_path:
        raise ValueError("--model is missing: a folder or Hub id that holds generator/, and segmenter/ if it has one")
    where = {"revision": args.revision, "variant": args.variant, "torch_dtype": torch.float32}

    def load(cls: Any, name: str) -> Any:
        model = cls.from_pretrained(args.pretrained_model_name_or_path, subfolder=name, **where)
        return model.eval().requires_grad_(False).to(accelerator.device)

    g = load(StyleGenerator, "generator")
    if args.resolution not in (None, g.config.resolution):
        raise ValueError(f"--resolution {args.resolution}: the generator in --model makes {g.config.resolution} px")
    check_viewable(g.config.img_channels)  # training draws sheets
    try:
        segmenter = own_segmenter(args.pretrained_model_name_or_path, "segmenter", **where)
        segmenter = segmenter.eval().requires_grad_(False).to(accelerator.device)
    except OSError as error:
        if accelerator.is_main_process:
            print(f"features are edges: {args.pretrained_model_name_or_path} has no segmenter ({error})")
        segmenter = None
    return g, segmenter


def new_encoder(args: argparse.Namespace, g: StyleGenerator) -> ImageEncoder:
    """Return an untrained encoder, which predicts the mean code; its axes come from samples of the generator's w."""
    try:
        resolution = g.config.resolution
        channels = [int(c) for c in args.channels.split(",")] if args.channels else encoder_channels(resolution)
        step = 2 ** (len(channels) - 1)
        resolution = -(-resolution // step) * step  # it resizes pictures, also rectangles, to squares of this side
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


def batch_size(g: StyleGenerator) -> int:
    """Return how many pictures fit into memory without gradients."""
    per_picture = forward_bytes(g.feature_sizes, g.config.resolution, g.aspect)
    return chunk_size(per_picture, memory_budget(g.device) * RENDER_SHARE, 32)


@torch.no_grad()
def reconstruct(g: StyleGenerator, encoder: ImageEncoder, images: Tensor) -> Tensor:
    """Encode images (N, 3, H, W) and draw the pictures of their codes."""
    codes = (encoder.encode(part) for part in images.split(batch_size(g)))
    return torch.cat([g.synthesis(g.to_style(code), noise_mode="none") for code in codes])


@torch.no_grad()
def measure(g: StyleGenerator, maps: Maps, encoder: ImageEncoder, images: Tensor) -> dict[str, float]:
    """Return the mean squared error of pixels in [-1, 1] and the feature distance of images (N, 3, H, W)."""
    made, batch = reconstruct(g, encoder, images), batch_size(g)
    parts = zip(made.split(batch), images.split(batch), strict=True)
    distances = torch.cat([feature_distance(maps, a, b) for a, b in parts])
    return {"mse": (made - images).square().mean().item(), "feature": distances.mean().item()}


def held_out(args: argparse.Namespace, g: StyleGenerator) -> dict[str, Tensor]:
    """Return pictures that no step sees: fresh samples and, if avatars are trained on, other avatars."""
    draw = step_generator(args.seed, 0, purpose=9)
    with torch.no_grad():
        rows = draw_rows(g, args.eval_images, draw, args.min_psi, 0.0)
        parts = rows.split(batch_size(g))
        found = {"samples": torch.cat([g.synthesis(g.to_style(part), noise_mode="none") for part in parts])}
    if args.avatars:
        held = held_out_avatars(args.eval_images, g.config.resolution, args.data_seed)
        found["avatars"] = torch.stack([held[i]["image"] for i in range(len(held))]).to(g.device)
    return found


# --- The run ---------------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> Path:
    """Run the training and return the folder that holds encoder/ and figures.json."""
    check_flags(args)
    accelerator = start(args)
    torch.manual_seed(args.seed)
    with finishing(accelerator):
        training = EncoderTraining(args, accelerator)
        training.fit()
        if accelerator.is_main_process:
            training.finish()
    return training.folder


class EncoderTraining:
    """Models, data and loss of an encoder training, and what happens between its steps.

    Raises:
        ValueError: flags that do not fit the model. OSError: a model or a picture is missing.
    """

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator):
        self.args, self.accelerator, self.folder = args, accelerator, Path(args.output_dir)

        # Models: a frozen generator, its features, a new encoder and its average.
        self.generator, segmenter = load_frozen(args, accelerator)
        self.maps, self.prior = extractor(segmenter), CodePrior.of(self.generator)
        self.dataset = build_dataset(args, accelerator, self.generator)
        encoder = new_encoder(args, self.generator)
        self.average = copy.deepcopy(encoder).requires_grad_(False).to(accelerator.device)
        optimizer = torch.optim.Adam(encoder.parameters(), lr=args.learning_rate, betas=(0.9, 0.99))
        schedule = build_schedule(args, optimizer)
        self.model, optimizer = accelerator.prepare(encoder, optimizer)
        self.phase = Phase(self.model, optimizer, schedule, self.loss)

        # Data: real pictures fill a share of the batch, samples the rest.
        self.real = round(args.train_batch_size * args.real_share) if self.dataset is not None else 0
        watch = args.eval_images and accelerator.is_main_process
        self.held_out = held_out(args, self.generator) if watch else {}

    def loss(self, model: torch.nn.Module, micro: MicroBatch) -> dict[str, Tensor]:
        """Compute the gradients of a micro-batch; return scalars to log."""
        args, g = self.args, self.generator
        with torch.no_grad():
            known = draw_rows(g, args.train_batch_size - self.real, micro.draw, args.min_psi, args.mixed_share)
            parts = [g.synthesis(g.to_style(known), noise_mode="none")] if len(known) else []
        if self.real:
            parts += mirror(micro.draw, micro.batch["image"][: self.real])
        images = torch.cat(parts)
        codes = model(images).latents.float()
        value, terms = encoder_loss(g, self.maps, codes, known, images, self.prior, weights_of(args))
        self.accelerator.backward(value * micro.scale)
        return {"loss": value, **terms}

    def after_update(self, step: int) -> None:
        # The decay grows, so that the weights of the first steps are forgotten.
        decay = min(self.args.ema_decay, (1 + step) / (10 + step)) if self.args.use_ema else 0.0
        ema_update(self.average, gathered(self.accelerator, self.model), decay)

    def validate(self, log: Log, done: int) -> None:
        for name, figures in self.measure().items():
            log.note(done, {f"{figure} {name}": value for figure, value in figures.items()})
            path = self.folder / "samples" / f"{name}-{done:06d}.png"
            save_sheet(self.generator, self.average, self.held_out[name][:8], path)

    def measure(self) -> dict[str, dict[str, float]]:
        """Return the figures of the averaged encoder for each set of held-out pictures."""
        return {name: measure(self.generator, self.maps, self.average, x) for name, x in self.held_out.items()}

    def after_checkpoint(self, done: int) -> None:
        if self.accelerator.is_main_process:
            save_model(self.average, self.folder / "encoder")

    def fit(self) -> None:
        fit(
            self.args,
            self.accelerator,
            self.phase,
            dataset=self.dataset,
            state={"average": self.average},
            after_update=self.after_update,
            validate=self.validate,
            after_checkpoint=self.after_checkpoint,
        )

    def finish(self) -> None:
        """Save the encoder and its figures, and upload it if that is asked for."""
        save_model(self.average, self.folder / "encoder")  # fit does not, if all steps were done before
        report = self.measure()
        write_json(self.folder / "figures.json", report, indent=2)
        print(json.dumps(report, indent=2))
        push_to_hub(self.args, self.folder / "encoder")


def save_sheet(g: StyleGenerator, encoder: ImageEncoder, images: Tensor, path: Path) -> None:
    """Save a sheet of pictures above their reconstructions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(image_grid(torch.cat([images, reconstruct(g, encoder, images)]), len(images)), path)


def main(argv: list[str] | None = None) -> None:
    """Train with the flags of a command line."""
    print(f"wrote {train(parse_args(argv))}")


if __name__ == "__main__":
    raise SystemExit(run(main))
