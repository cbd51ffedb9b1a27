"""Train a region segmenter on pictures with exact label maps, so that it holds on GENERATED pictures.

    accelerate launch -m stylefusion_hf.training.segmenter --output_dir runs/segmenter --avatars 40000
    accelerate launch -m stylefusion_hf.training.segmenter --output_dir runs/mine --train_data_dir DATASET

DATASET has the layout that `stylefusion data avatars` writes: images/, labels/, dataset.json. A generator's pictures
are a little soft, a little noisy and off in color where the drawn ones are not, so training degrades them in those
ways at random.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from stylefusion_hf.core.command_line import run
from stylefusion_hf.core.files import write_json
from stylefusion_hf.core.randomness import step_generator
from stylefusion_hf.imaging.degradation import degrade
from stylefusion_hf.models.segmenter import RegionSegmenter, segmenter_channels
from stylefusion_hf.regions.agreement import region_iou
from stylefusion_hf.training.common import (
    ArrayDataset,
    build_schedule,
    common_parser,
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
        "stylefusion train segmenter",
        "Train a region segmenter.",
        learning_rate=2e-3,
        train_batch_size=32,
        max_train_steps=2000,
        lr_scheduler="cosine",
        lr_warmup_steps=50,
        max_grad_norm=1.0,
        use_ema=False,
    )
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--avatars", type=int, metavar="N", help="train on the first N avatars, rendered here")
    source.add_argument("--train_data_dir", help="folder with images/, labels/ and dataset.json")
    p.add_argument("--data_seed", type=int, default=0, help="of the avatars")
    p.add_argument("--cache_dir", help="where rendered avatars are kept; --output_dir/data if left out")
    p.add_argument("--channels", help="widths of the U-Net's levels; by the resolution if left out")
    p.add_argument("--degrade", type=float, default=1.0, help="strength of the random degradation; 0 for none")
    p.add_argument("--eval_avatars", type=int, default=512, help="held-out avatars for the reported IoU; 0 for none")
    p.add_argument("--dataloader_num_workers", type=int, default=0)
    return p.parse_args(argv)


# --- The run ---------------------------------------------------------------------------------------------------------


def build_dataset(args: argparse.Namespace, accelerator: Accelerator):
    """The data set and the names of its regions."""
    if args.train_data_dir:
        from stylefusion_hf.data.folders import ImageFolder

        dataset = ImageFolder(args.train_data_dir, args.resolution)
        if not dataset.regions:
            raise ValueError(f"{args.train_data_dir} has no label maps; it needs images/, labels/ and dataset.json")
        return dataset, list(dataset.regions)
    from stylefusion_hf.data.avatars import REGIONS, cached_arrays

    with one_process_first(accelerator):
        cache = Path(args.cache_dir or Path(args.output_dir) / "data")
        return ArrayDataset(*cached_arrays(cache, args.avatars, args.resolution, args.data_seed)), list(REGIONS)


def held_out_avatars(count: int, resolution: int, data_seed: int) -> ArrayDataset:
    """Avatars far behind any training index."""
    from stylefusion_hf.data.avatars import render_arrays

    return ArrayDataset(*render_arrays(count, resolution, data_seed, start=1_000_000, workers=1, progress=False))


def train(args: argparse.Namespace) -> Path:
    """Run the training and return the folder of the finished segmenter; its IoU lies beside it in iou.json."""
    accelerator = start(args)
    torch.manual_seed(args.seed)
    dataset, regions = build_dataset(args, accelerator)
    if args.pretrained_model_name_or_path:
        model = RegionSegmenter.from_pretrained(
            args.pretrained_model_name_or_path, subfolder="segmenter", revision=args.revision, variant=args.variant
        )
        if list(model.config.regions) != regions:
            raise ValueError(f"the given segmenter knows {list(model.config.regions)}, the data set has {regions}")
    else:
        widths = [int(c) for c in args.channels.split(",")] if args.channels else segmenter_channels(args.resolution)
        model = RegionSegmenter(regions=regions, channels=widths)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=1e-4)
    schedule = build_schedule(args, optimizer)
    model, optimizer = accelerator.prepare(model, optimizer)
    folder = Path(args.output_dir)

    def loss(model: torch.nn.Module, micro: MicroBatch) -> dict[str, torch.Tensor]:
        x, y = mirror(micro.batch["image"], micro.batch["labels"], micro.draw)
        if args.degrade:
            x = degrade(x, micro.draw, args.degrade)
        value = F.cross_entropy(model(x).logits.float(), y)
        accelerator.backward(value * micro.scale)
        return {"loss": value}

    def after_checkpoint(done: int) -> None:
        if done < args.max_train_steps:
            plain = gathered(accelerator, model)
            if accelerator.is_main_process:
                export(plain, folder / "segmenter")

    with finishing(accelerator):
        fit(args, accelerator, model, optimizer, schedule, loss, dataset=dataset, after_checkpoint=after_checkpoint)
        plain = gathered(accelerator, model)
        if accelerator.is_main_process:  # also where all steps were done before and this did not come to it
            export(plain, folder / "segmenter")
        if accelerator.is_main_process and args.avatars and args.eval_avatars:
            held = held_out_avatars(args.eval_avatars, args.resolution, args.data_seed)
            items = [held[i] for i in range(len(held))]
            images, labels = torch.stack([i["image"] for i in items]), torch.stack([i["labels"] for i in items])
            draw = step_generator(args.seed, 0, purpose=9)
            plain.eval()
            report = {
                "held-out": region_iou(plain, images, labels),
                "held-out, degraded": region_iou(plain, degrade(images, draw), labels),
            }
            write_json(folder / "iou.json", report, indent=2)
            print(json.dumps(report, indent=2))
        if accelerator.is_main_process:
            push_to_hub(args, folder / "segmenter")
    return folder


def mirror(x: torch.Tensor, y: torch.Tensor, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, H, W) and label maps (B, H, W), each pair mirrored or not by the toss of a coin."""
    heads = torch.rand(len(x), generator=draw).to(x.device) < 0.5
    return torch.where(heads[:, None, None, None], x.flip(3), x), torch.where(heads[:, None, None], y.flip(2), y)


def main(argv: list[str] | None = None) -> None:
    print(f"wrote {train(parse_args(argv))}")


if __name__ == "__main__":
    raise SystemExit(run(main))
