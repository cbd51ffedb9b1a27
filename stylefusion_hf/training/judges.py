"""Train the judges: the networks that `stylefusion evaluate` uses, on data and seeds that no other training sees.

    accelerate launch -m stylefusion_hf.training.judges --model FOLDER --output_dir runs/judges --avatars 20000
    accelerate launch -m stylefusion_hf.training.judges --model FOLDER --output_dir runs/mine --train_data_dir DATASET

There are three, each with its own seed: the segmenter (its architecture differs from the one used in training), the
portrait judge (pose, parts and colors; avatars only, since it needs the renderer's labels) and the discriminator,
which learns to separate real pictures from plain samples of the frozen generator in --model. DATASET has the layout
that `stylefusion data avatars` writes. `load_judges` reads the output folder: segmenter/, portrait/ and discriminator/
in half precision, and judges.json with held-out figures and the command that made each. The runs and their checkpoints
are in its subfolder runs/.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, nn

from stylefusion_hf.core.command_line import run
from stylefusion_hf.core.files import remove_partials, write_json
from stylefusion_hf.core.randomness import step_generator
from stylefusion_hf.core.sizes import describe_size
from stylefusion_hf.models.discriminator import StyleGAN2Discriminator
from stylefusion_hf.models.segmenter import RegionSegmenter
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.training import segmenter
from stylefusion_hf.training._discriminator import default_channels, plain_samples, realness_loss, separation
from stylefusion_hf.training.choices import parse_augmentations
from stylefusion_hf.training.common import build_schedule, check_schedule, finishing, gathered, push_to_hub, start
from stylefusion_hf.training.datasets import FIRST_HELD_OUT, held_out_avatars, load_avatars
from stylefusion_hf.training.flags import check_arguments
from stylefusion_hf.training.judges_flags import JUDGES, arguments_of, parse_args, reasons_to_skip
from stylefusion_hf.training.loop import MicroBatch, Phase, fit

__all__ = ["JUDGES", "main", "parse_args", "train"]


# --- Training one judge ----------------------------------------------------------------------------------------------


def fit_judge(
    args: argparse.Namespace,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    dataset: Any,
    loss: Callable[[nn.Module, MicroBatch], tuple[Tensor, dict[str, Tensor]]],
) -> Any:
    """Train a judge and return it in eval mode. `loss` returns the loss of a micro-batch and scalars to log."""
    schedule = build_schedule(args, optimizer)
    model, optimizer = accelerator.prepare(model, optimizer)

    def backward(model: nn.Module, micro: MicroBatch) -> dict[str, Tensor]:
        value, logged = loss(model, micro)
        accelerator.backward(value * micro.scale)
        return {"loss": value, **logged}

    fit(args, accelerator, Phase(model, optimizer, schedule, backward), dataset=dataset)
    return gathered(accelerator, model).eval()


# --- The three judges ------------------------------------------------------------------------------------------------
# Each function returns the model in full precision and, in the main process, its held-out figures.


def train_segmenter(args: argparse.Namespace) -> tuple[Any, dict]:
    """Train the segmenter with its own trainer, on other data and with other widths."""
    folder = segmenter.train(segmenter_arguments(args))
    if not PartialState().is_main_process:
        return None, {}
    report = folder / "iou.json"
    model = RegionSegmenter.from_pretrained(folder, subfolder="segmenter")
    return model, {"IoU": json.loads(report.read_text(encoding="utf-8"))} if report.is_file() else {}


def segmenter_arguments(args: argparse.Namespace) -> argparse.Namespace:
    """Return the flags of the segmenter's own run, as its trainer knows them."""
    own = arguments_of(args, "segmenter")
    own.channels = args.segmenter_channels or segmenter_channels(args.resolution)
    own._channels_flag = "--segmenter_channels"
    own.pretrained_model_name_or_path = None
    return own


def segmenter_channels(resolution: int) -> str:
    """Return widths of the segmenter's levels: each doubling above 64 pixels adds one, to see as much of a picture."""
    more = max(0, (resolution // 64).bit_length() - 1)
    return ",".join(["24,32,48,64,96", *["96"] * more])


def train_portrait(args: argparse.Namespace) -> tuple[Any, dict]:
    """Train the portrait judge on avatars and the renderer's labels."""
    from stylefusion_hf.training._portrait import avatar_dataset, judge_figures, judge_loss, new_judge

    own = arguments_of(args, "portrait")
    accelerator = start(own)

    def loss(judge: nn.Module, micro: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return judge_loss(judge, micro.batch, micro.draw, args.degrade)

    with finishing(accelerator, end_processes=False):  # the next judge needs them
        dataset = avatar_dataset(load_avatars(own, accelerator, args.resolution)[0], 0, args.data_seed)
        torch.manual_seed(own.seed)
        model = new_judge(args.resolution)
        optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=1e-4)
        model = fit_judge(own, accelerator, model, optimizer, dataset, loss)
    if not args.eval_avatars or not accelerator.is_main_process:
        return model, {}
    images = held_out_avatars(args.eval_avatars, args.resolution, args.data_seed).images
    held = avatar_dataset(images, FIRST_HELD_OUT, args.data_seed)
    draw = step_generator(own.seed, 0, purpose=9)
    figures = {"held-out": judge_figures(model, held), "held-out, degraded": judge_figures(model, held, draw)}
    return model, figures


def train_discriminator(args: argparse.Namespace) -> tuple[Any, dict]:
    """Train the discriminator on real pictures against samples of the generator in --model."""
    own = arguments_of(args, "discriminator")
    own.max_grad_norm = 0.0  # lazy R1 is an occasional large gradient, which clipping would all but remove
    policy = parse_augmentations(args.augment)
    accelerator = start(own)
    torch.manual_seed(own.seed)

    def loss(d: nn.Module, micro: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        gamma = args.r1_gamma * args.r1_interval if micro.step % args.r1_interval == 0 else 0.0
        real = micro.batch["image"]
        return realness_loss(d, real, plain_samples(g, len(real), micro.draw), policy, gamma, micro.draw)

    with finishing(accelerator, end_processes=False):
        g = load_generator(args).to(accelerator.device)
        model = new_discriminator(args)
        # With momentum, unlike a discriminator whose opponent moves.
        optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.99))
        dataset = segmenter.build_dataset(own, accelerator, segmenter.open_folder(own)[0])
        model = fit_judge(own, accelerator, model, optimizer, dataset, loss)
    if not args.eval_avatars or not accelerator.is_main_process:
        return model, {}
    held: Any = dataset
    if not args.train_data_dir:
        held = held_out_avatars(args.eval_avatars, args.resolution, args.data_seed)
    real = torch.stack([held[i]["image"] for i in range(min(args.eval_avatars, len(held)))])
    fake = plain_samples(g, args.eval_avatars, step_generator(own.seed, 0, purpose=9))
    kind = "training pictures" if args.train_data_dir else "held-out avatars"
    return model, {f"{kind} against fresh samples": separation(model, real, fake)}


def load_generator(args: argparse.Namespace) -> StyleGenerator:
    """Return the frozen generator in --model. ValueError if it is for another resolution."""
    g = StyleGenerator.from_pretrained(
        args.pretrained_model_name_or_path,
        subfolder="generator",
        revision=args.revision,
        variant=args.variant,
        torch_dtype=torch.float32,
    )
    if g.config.resolution != args.resolution:
        raise ValueError(
            f"--resolution is {args.resolution}, but the generator in --model makes {g.config.resolution} px images"
        )
    if g.config.img_channels != 3 or g.base_size != (4, 4):
        raise ValueError(
            "judges are trained on squares of 3 channels, the generator in --model makes pictures of"
            f" {describe_size(g.picture_size)} and {g.config.img_channels} channels: `stylefusion regions discover`"
            " writes a segmenter that judges these"
        )
    return g.eval().requires_grad_(False)


def new_discriminator(args: argparse.Namespace) -> StyleGAN2Discriminator:
    """Return an untrained discriminator, without minibatch deviation, so that it judges each picture by itself."""
    text = args.discriminator_channels or ",".join(map(str, default_channels(args.resolution)))
    try:
        channels = [int(c) for c in text.split(",")]
        return StyleGAN2Discriminator(resolution=args.resolution, channels=channels, mbstd_channels=0)
    except ValueError as error:
        raise ValueError(f"--discriminator_channels {text}: {error}") from None


# --- The run ---------------------------------------------------------------------------------------------------------


def check(args: argparse.Namespace, names: Collection[str]) -> None:
    """Raise what would refuse one of the judges `names`, before another one is trained."""
    for name in names:
        own = segmenter_arguments(args) if name == "segmenter" else arguments_of(args, name)
        check_arguments(own)
        check_schedule(own)
        if name == "segmenter":
            segmenter.check(own)
        elif name == "discriminator":
            parse_augmentations(args.augment)
            load_generator(args)
            new_discriminator(args)
            segmenter.open_folder(own)


TRAINERS = {"segmenter": train_segmenter, "portrait": train_portrait, "discriminator": train_discriminator}


def publish(model: Any, name: str, figures: dict, args: argparse.Namespace) -> None:
    """Save a judge in half precision where `load_judges` looks, and its entry in judges.json."""
    folder = Path(args.output_dir)
    nn.Module.half(model.cpu()).save_pretrained(folder / name)
    note = folder / "judges.json"
    entries = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    steps = args.max_train_steps or getattr(args, f"{name}_steps")
    entries[name] = {"command": args.command, "steps": steps, "figures": rounded(figures)}
    write_json(note, {k: entries[k] for k in JUDGES if k in entries}, indent=2)
    print(json.dumps({name: entries[name]["figures"]}, indent=2))


def rounded(figures: Any) -> Any:
    """Return nested figures with every float rounded to four places."""
    if isinstance(figures, dict):
        return {k: rounded(v) for k, v in figures.items()}
    return round(figures, 4) if isinstance(figures, float) else figures


def train(args: argparse.Namespace) -> Path:
    """Train the judges that the flags ask for, one after the other, and return the folder that `load_judges` takes."""
    folder, reasons = Path(args.output_dir), reasons_to_skip(args)
    check(args, [name for name in JUDGES if reasons[name] is None])
    if PartialState().is_main_process:
        remove_partials(folder)  # of a run that was killed
    # The segmenter comes last: its trainer destroys the process group, and starting a second group is not safe (an
    # early process may find the addresses of the first).
    for name in reversed(TRAINERS):
        if reasons[name] is None:
            model, figures = TRAINERS[name](args)
            if PartialState().is_main_process:
                publish(model, name, figures, args)
    PartialState().destroy_process_group()
    if not PartialState().is_main_process:
        return folder
    for name, reason in reasons.items():
        if reason is not None and args.only is None:
            print(f"no {name}: {reason}")
    if args.push_to_hub:
        with tempfile.TemporaryDirectory() as clean:  # without checkpoints and data
            for name in JUDGES:
                if (folder / name).is_dir():
                    shutil.copytree(folder / name, Path(clean, name))
            shutil.copy(folder / "judges.json", clean)
            push_to_hub(args, Path(clean))
    return folder


def main(argv: list[str] | None = None) -> None:
    """Train with the flags of a command line."""
    print(f"wrote {train(parse_args(argv))}")


if __name__ == "__main__":
    raise SystemExit(run(main))
