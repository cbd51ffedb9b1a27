"""Train an image encoder for a frozen StyleGAN2: on the generator's own samples and, where given, on real pictures.

    accelerate launch -m stylefusion_hf.training.encoder --model FOLDER --output_dir runs/encoder
    accelerate launch -m stylefusion_hf.training.encoder --model FOLDER --output_dir runs/mine --train_data_dir PHOTOS
    accelerate launch -m stylefusion_hf.training.encoder --model FACES --output_dir runs/faces \\
        --train_resolution 128 --pool_size 6000 --picture_batch 1 --degrade 1 --code_metric pictures

FOLDER holds generator/ and preferably segmenter/. The code of a sample is known, so its loss compares codes, pixels
and features; for a real picture it compares only pixels and features. A prior keeps all codes near those of the
generator's own mapping. Features are the segmenter's or, without one, edges at several scales. The finished encoder is
in OUTPUT_DIR/encoder: copy it into a model's folder, or load the pipeline with `encoder=`.

Where the generator's pictures are large, the last command saves time: it compares previews, renders its samples once,
and compares the picture of only one code of a batch, the others' codes alone.
"""

import argparse
import copy
import json
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from stylefusion_hf.core.command_line import run
from stylefusion_hf.core.files import save_image, write_json
from stylefusion_hf.core.memory import RENDER_SHARE, chunk_size, forward_bytes, memory_budget
from stylefusion_hf.core.randomness import step_generator
from stylefusion_hf.imaging.degradation import compress, degrade, occlude
from stylefusion_hf.imaging.features import extractor
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
    one_process_first,
    push_to_hub,
    save_model,
    start,
)
from stylefusion_hf.training.datasets import ArrayDataset, check_avatars_fit, held_out_avatars, load_avatars
from stylefusion_hf.training.encoder_flags import check_flags, parse_args, weights_of
from stylefusion_hf.training.encoder_objective import Maps, PictureDistance, encoder_loss, feature_distance
from stylefusion_hf.training.encoder_pool import SamplePool
from stylefusion_hf.training.loop import MicroBatch, Phase, fit
from stylefusion_hf.training.networks import training_resolution
from stylefusion_hf.training.reports import Log

__all__ = ["encoder_loss", "main", "parse_args", "train"]

# --- Models and data -------------------------------------------------------------------------------------------------


def build_dataset(args: argparse.Namespace, accelerator: Accelerator, g: StyleGenerator, size: int) -> Any:
    """Return the real pictures that the flags ask for, of a height and the generator's channels, or None."""
    if args.train_data_dir:
        from stylefusion_hf.data.folders import ImageFolder

        return ImageFolder(args.train_data_dir, g.size_at(size), channels=g.config.img_channels, mirror=True)
    if not args.avatars:
        return None
    check_avatars_fit(g)
    return ArrayDataset(load_avatars(args, accelerator, size)[0])


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


def build_encoder(args: argparse.Namespace, g: StyleGenerator, resolution: int) -> ImageEncoder:
    """Return the encoder in --encoder, or an untrained one, which predicts the mean code, for pictures of that height;
    its axes come from samples of the generator's w."""
    if args.encoder:
        model = ImageEncoder.from_pretrained(args.encoder, torch_dtype=torch.float32)
        for name, expected in (("num_ws", g.num_ws), ("w_dim", len(g.w_avg)), ("img_channels", g.config.img_channels)):
            if model.config[name] != expected:
                raise ValueError(
                    f"--encoder {args.encoder} is of another generator: its {name} is {model.config[name]}, that of"
                    f" --model is {expected}"
                )
        return model.train()
    try:
        channels = [int(c) for c in args.channels.split(",")] if args.channels else encoder_channels(resolution)
        step = 2 ** (len(channels) - 1)
        resolution = -(-resolution // step) * step  # it resizes pictures, also rectangles, to squares of this side
        model = ImageEncoder(
            num_ws=g.num_ws,
            w_dim=g.w_avg.shape[0],
            resolution=resolution,
            channels=channels,
            features=args.features,
            row_axes=args.row_axes,
            img_channels=g.config.img_channels,
        )
    except ValueError as error:
        flag = f"--row_axes {args.row_axes}" if "row_axes" in str(error) else f"--channels {args.channels}"
        raise ValueError(f"{flag}: {error}") from None
    draw = step_generator(args.seed, 0, purpose=2)
    with torch.no_grad():
        model.fit_axes(draw_w(g, 4096, draw, min_psi=1.0))
    return model


# --- Measuring -------------------------------------------------------------------------------------------------------


def batch_size(g: StyleGenerator, size: int) -> int:
    """Return how many pictures of a height fit into memory without gradients."""
    per_picture = forward_bytes(g.feature_sizes, size, g.aspect)
    return chunk_size(per_picture, memory_budget(g.device) * RENDER_SHARE, 32)


def render(g: StyleGenerator, rows: Tensor, size: int) -> Tensor:
    """Draw w+ codes (N, num_ws, w_dim) as pictures of a height."""
    parts = rows.split(batch_size(g, size))
    return torch.cat([g.synthesis(g.to_style(part), noise_mode="none", up_to=size) for part in parts])


@torch.no_grad()
def reconstruct(g: StyleGenerator, encoder: ImageEncoder, images: Tensor) -> Tensor:
    """Encode images (N, 3, H, W) and draw the pictures of their codes."""
    size = images.shape[-2]
    return render(g, torch.cat([encoder.encode(part) for part in images.split(batch_size(g, size))]), size)


@torch.no_grad()
def measure(g: StyleGenerator, maps: Maps, encoder: ImageEncoder, images: Tensor) -> dict[str, float]:
    """Return the mean squared error of pixels in [-1, 1] and the feature distance of images (N, 3, H, W)."""
    made, batch = reconstruct(g, encoder, images), batch_size(g, images.shape[-2])
    parts = zip(made.split(batch), images.split(batch), strict=True)
    distances = torch.cat([feature_distance(maps, a, b) for a, b in parts])
    return {"mse": (made - images).square().mean().item(), "feature": distances.mean().item()}


def held_out(args: argparse.Namespace, g: StyleGenerator, size: int) -> dict[str, Tensor]:
    """Return pictures that no step sees: fresh samples and, if avatars are trained on, other avatars."""
    draw = step_generator(args.seed, 0, purpose=9)
    with torch.no_grad():
        found = {"samples": render(g, draw_rows(g, args.eval_images, draw, args.min_psi, 0.0), size)}
    if args.avatars:
        held = held_out_avatars(args.eval_images, size, args.data_seed)
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

        # Models: a frozen generator, its features, an encoder and its average.
        self.generator, segmenter = load_frozen(args, accelerator)
        self.maps, self.prior = extractor(segmenter), CodePrior.of(self.generator)
        full = self.generator.config.resolution
        self.size = training_resolution(args.train_resolution or full, self.generator.picture_sizes)
        encoder = build_encoder(args, self.generator, self.size)
        self.average = copy.deepcopy(encoder).requires_grad_(False).to(accelerator.device)
        optimizer = torch.optim.Adam(encoder.parameters(), lr=args.learning_rate, betas=(0.9, 0.99))
        schedule = build_schedule(args, optimizer)
        self.model, optimizer = accelerator.prepare(encoder, optimizer)
        self.phase = Phase(self.model, optimizer, schedule, self.loss)
        self.distance = None
        if args.code_metric == "pictures":
            self.distance = PictureDistance.measure(self.generator, self.average.w_axes, self.size, seed=args.seed)

        # Data: real pictures fill a share of the batch, samples the rest. What may be refused comes before rendering.
        real = bool(args.train_data_dir or args.avatars)
        self.real = round(args.train_batch_size * args.real_share) if real else 0
        if args.picture_batch is not None and args.picture_batch < self.real:
            raise ValueError(
                f"--picture_batch {args.picture_batch} is less than the {self.real} real pictures of a batch, which"
                " have no codes to compare: raise it, or lower --real_share"
            )
        if args.degrade and self.generator.config.img_channels != 3:
            raise ValueError(f"--degrade is for pictures of 3 channels, not {self.generator.config.img_channels}")
        given = [SamplePool.read(folder, self.generator, self.size) for folder in args.sample_dir or ()]
        self.dataset = build_dataset(args, accelerator, self.generator, self.size)
        self.pool = self.complete_pool(given)
        watch = args.eval_images and accelerator.is_main_process
        self.held_out = held_out(args, self.generator, self.size) if watch else {}

    def complete_pool(self, pools: list[SamplePool]) -> SamplePool | None:
        """Join the samples of --sample_dir and those of --pool_size, rendered here or by an earlier run."""
        args, g = self.args, self.generator
        settings = {"seed": args.seed, "min_psi": args.min_psi, "mixed_share": args.mixed_share}
        settings |= {"up_to": self.size, "batch": batch_size(g, self.size)}
        if args.pool_size:
            with one_process_first(self.accelerator):
                pools = [*pools, SamplePool.render(g, args.pool_size, self.folder / "pool", **settings)]
        return reduce(add, pools) if pools else None

    def draw_samples(self, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return codes of samples and their pictures."""
        args, g = self.args, self.generator
        if self.pool is not None:
            return self.pool.draw(count, draw)
        rows = draw_rows(g, count, draw, args.min_psi, args.mixed_share)
        return rows, g.synthesis(g.to_style(rows), noise_mode="none", up_to=self.size)

    def loss(self, model: torch.nn.Module, micro: MicroBatch) -> dict[str, Tensor]:
        """Compute the gradients of a micro-batch; return scalars to log."""
        args, g, samples = self.args, self.generator, self.args.train_batch_size - self.real
        known, parts = torch.empty(0, g.num_ws, len(g.w_avg), device=g.device), []
        with torch.no_grad():
            if samples:
                known, pictures = self.draw_samples(samples, micro.draw)
                parts.append(pictures)
        if self.real:
            parts += mirror(micro.draw, micro.batch["image"][: self.real])
        images = seen = torch.cat(parts)
        if args.degrade:
            share = min(1.0, 0.5 * args.degrade)
            seen = degrade(occlude(images, micro.draw, share), micro.draw, args.degrade)
            seen = compress(seen, micro.draw, share)
        codes = model(seen).latents.float()
        value, terms = encoder_loss(
            g, self.maps, codes, known, images, self.prior, weights_of(args),
            distance=self.distance, compared=args.picture_batch, up_to=self.size,
        )  # fmt: skip
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
