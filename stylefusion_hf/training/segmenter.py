"""Train a region segmenter on pictures with exact label maps, so that it works on generated pictures.

    accelerate launch -m stylefusion_hf.training.segmenter --output_dir runs/segmenter --avatars 40000
    accelerate launch -m stylefusion_hf.training.segmenter --output_dir runs/mine --train_data_dir DATASET \\
        --eval_data_dir HELD_OUT

DATASET has the layout that `stylefusion data avatars` writes: images/, labels/, dataset.json. Unlike drawn pictures, a
generator's are slightly soft, noisy and off in color, so training degrades the drawn ones in these ways at random.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from stylefusion_hf.core.checks import listed, shown
from stylefusion_hf.core.command_line import run
from stylefusion_hf.core.files import write_json
from stylefusion_hf.core.randomness import step_generator
from stylefusion_hf.imaging.degradation import degrade
from stylefusion_hf.models.segmenter import RegionSegmenter, segmenter_channels
from stylefusion_hf.regions.agreement import region_iou
from stylefusion_hf.training.augment import mirror
from stylefusion_hf.training.common import build_schedule, finishing, gathered, push_to_hub, save_model, start
from stylefusion_hf.training.datasets import ArrayDataset, held_out_avatars, load_avatars
from stylefusion_hf.training.loop import MicroBatch, Phase, fit
from stylefusion_hf.training.segmenter_flags import check_flags, parse_args

# --- The run ---------------------------------------------------------------------------------------------------------


def open_folder(args: argparse.Namespace) -> tuple[Any, list[str]]:
    """Return the pictures of --train_data_dir, None for avatars, and the names of their regions."""
    if not args.train_data_dir:
        from stylefusion_hf.data.avatars import REGIONS

        return None, list(REGIONS)
    from stylefusion_hf.data.folders import ImageFolder

    dataset = ImageFolder(args.train_data_dir, args.resolution)
    if not dataset.regions:
        raise ValueError(f"{args.train_data_dir} has no label maps; it needs images/, labels/ and dataset.json")
    return dataset, list(dataset.regions)


def build_dataset(args: argparse.Namespace, accelerator: Accelerator, folder: Any = None) -> Any:
    """Return the data set: the pictures of `open_folder`, or avatars, which are rendered if needed."""
    return folder or ArrayDataset(*load_avatars(args, accelerator, args.resolution))


def build_model(args: argparse.Namespace, regions: list[str]) -> RegionSegmenter:
    """Return a new segmenter, or the one in --model. ValueError if that one has other regions.

    It keeps --resolution in its config, so that larger pictures are averaged down to what it learned to see.
    """
    if args.pretrained_model_name_or_path:
        model = RegionSegmenter.from_pretrained(
            args.pretrained_model_name_or_path, subfolder="segmenter", revision=args.revision, variant=args.variant
        )
        if list(model.config.regions) != regions:
            raise ValueError(f"the given segmenter knows {list(model.config.regions)}, the data set has {regions}")
        model.register_to_config(resolution=args.resolution)
        return model
    if not args.channels:
        return RegionSegmenter(regions, segmenter_channels(args.resolution), resolution=args.resolution)
    try:
        return RegionSegmenter(regions, [int(c) for c in args.channels.split(",")], resolution=args.resolution)
    except ValueError as error:
        flag = getattr(args, "_channels_flag", "--channels")  # the judges' trainer has another name for it
        raise ValueError(f"{flag} {shown(args.channels)}: {error}") from None


def open_held_out(args: argparse.Namespace, regions: list[str]) -> Any:
    """Return the pictures of --eval_data_dir, or None without it. ValueError if they have other regions."""
    if not args.eval_data_dir:
        return None
    from stylefusion_hf.data.folders import ImageFolder

    dataset = ImageFolder(args.eval_data_dir, args.resolution)
    if list(dataset.regions or ()) != regions:
        found = listed(dataset.regions) if dataset.regions else "no label maps"
        raise ValueError(f"--eval_data_dir {args.eval_data_dir} has {found}, the training data has {listed(regions)}")
    return dataset


def measure(args: argparse.Namespace, model: RegionSegmenter, held: Any) -> dict[str, Any]:
    """Return the IoU on held-out pictures, as they are and degraded."""
    items = [held[i] for i in range(len(held))]
    images, labels = torch.stack([i["image"] for i in items]), torch.stack([i["labels"] for i in items])
    draw = step_generator(args.seed, 0, purpose=9)
    model.eval()
    return {
        "held-out": region_iou(model, images, labels),
        "held-out, degraded": region_iou(model, degrade(images, draw), labels),
    }


def check(args: argparse.Namespace) -> tuple[Any, Any, RegionSegmenter]:
    """Return the pictures to train on (None for avatars), the held-out ones and the model: all that may be refused,
    before avatars are rendered."""
    pictures, regions = open_folder(args)
    return pictures, open_held_out(args, regions), build_model(args, regions)


def train(args: argparse.Namespace) -> Path:
    """Run the training and return the folder that holds segmenter/ and iou.json, its IoU on held-out pictures."""
    check_flags(args)
    accelerator = start(args)
    torch.manual_seed(args.seed)
    with finishing(accelerator):
        pictures, held, model = check(args)
        fit_segmenter(args, accelerator, model, build_dataset(args, accelerator, pictures), held)
    return Path(args.output_dir)


def dice_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return 1 minus the soft Dice coefficient (V-Net, arXiv 1606.04797), averaged over the regions in the batch.

    Args:
        logits: (B, R, H, W).
        labels: the regions' indices, (B, H, W).

    A region that no picture of the batch has is left out: nothing there could raise its coefficient.
    """
    found = logits.softmax(1)
    truth = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(found.dtype)
    overlap, areas = (found * truth).sum((0, 2, 3)), (found + truth).sum((0, 2, 3))
    present = truth.amax((0, 2, 3))
    return (present * (1 - 2 * overlap / areas)).sum() / present.sum()


def fit_segmenter(args: argparse.Namespace, accelerator: Accelerator, model: Any, dataset: Any, held: Any) -> None:
    """Train a segmenter, save it, and measure it on the pictures `held` out: those of a folder, None for avatars."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=1e-4)
    schedule = build_schedule(args, optimizer)
    model, optimizer = accelerator.prepare(model, optimizer)
    folder = Path(args.output_dir)

    def loss(model: torch.nn.Module, micro: MicroBatch) -> dict[str, torch.Tensor]:
        x, y = mirror(micro.draw, micro.batch["image"], micro.batch["labels"])
        if args.degrade:
            x = degrade(x, micro.draw, args.degrade)
        logits = model(x).logits.float()
        value = F.cross_entropy(logits, y)
        if args.dice_weight:
            value = value + args.dice_weight * dice_loss(logits, y)
        accelerator.backward(value * micro.scale)
        return {"loss": value}

    def after_checkpoint(done: int) -> None:
        if done < args.max_train_steps:
            plain = gathered(accelerator, model)
            if accelerator.is_main_process:
                save_model(plain, folder / "segmenter")

    phase = Phase(model, optimizer, schedule, loss)
    fit(args, accelerator, phase, dataset=dataset, after_checkpoint=after_checkpoint)
    plain = gathered(accelerator, model)
    if accelerator.is_main_process:
        save_model(plain, folder / "segmenter")
        if held is None and args.avatars and args.eval_avatars:
            held = held_out_avatars(args.eval_avatars, args.resolution, args.data_seed)
        if held is not None:
            report = measure(args, plain, held)
            write_json(folder / "iou.json", report, indent=2)
            print(json.dumps(report, indent=2))
        push_to_hub(args, folder / "segmenter")


def main(argv: list[str] | None = None) -> None:
    """Train with the flags of a command line."""
    print(f"wrote {train(parse_args(argv))}")


if __name__ == "__main__":
    raise SystemExit(run(main))
