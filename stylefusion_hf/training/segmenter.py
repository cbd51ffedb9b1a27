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
from stylefusion_hf.models.segmenter import RegionSegmenter, segmenter_channels
from stylefusion_hf.regions.clustering import contingency, jaccard
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
    step_generator,
)
from stylefusion_hf.training.loop import MicroBatch, fit
from stylefusion_hf.training.memory import RENDER_SHARE, chunk_size, memory_budget


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


# --- Degradation -----------------------------------------------------------------------------------------------------


def degrade(x: torch.Tensor, draw: torch.Generator, strength: float = 1.0) -> torch.Tensor:
    """Images (B, 3, H, W) in [-1, 1] made soft, noisy and off in color, each to its own degree; labels stay valid."""
    b, _, h, w = x.shape

    def uniform(high: float, *shape: int) -> torch.Tensor:
        return (torch.rand(b, *(shape or (1, 1, 1)), generator=draw) * high * strength).to(x)

    def normal(scale: float, *shape: int) -> torch.Tensor:
        return (torch.randn(b, *shape, generator=draw) * scale * strength).to(x)

    # Softness: a blend with a 3 x 3 or 5 x 5 blur, beyond 0 towards sharpening.
    k = 3 + 2 * int(torch.randint(2, (1,), generator=draw))
    taps = torch.tensor([1.0, 2.0, 1.0] if k == 3 else [1.0, 4.0, 6.0, 4.0, 1.0]).to(x)
    taps = taps / taps.sum()
    soft = F.conv2d(F.pad(x, (k // 2,) * 4, mode="replicate"), torch.outer(taps, taps).expand(3, 1, k, k), groups=3)
    x = x + (soft - x) * (uniform(1.6) - 0.4 * strength)
    # Color: brightness, contrast and a smooth blotch of another shade.
    x = x * (1 + normal(0.1, 1, 1, 1)) + normal(0.08, 3, 1, 1)
    blotch = F.interpolate(normal(1.0, 3, 4, 4), size=(h, w), mode="bicubic", align_corners=False)
    x = x + blotch * uniform(0.12)
    # Grain: per pixel and in clumps of two pixels.
    x = x + normal(1.0, 3, h, w) * uniform(0.08)
    clumps = F.interpolate(normal(1.0, 3, -(-h // 2), -(-w // 2)), scale_factor=2, mode="bilinear")[..., :h, :w]
    return (x + clumps * uniform(0.08)).clamp(-1.2, 1.2)


# --- Measuring -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def region_iou(
    model: RegionSegmenter, images: torch.Tensor, labels: torch.Tensor, batch: int | None = None
) -> dict[str, float]:
    """IoU of every region over all pixels of images (N, 3, H, W) with maps (N, H, W), and their mean.

    batch: pictures at once; what memory allows if left out.
    """
    n = len(model.config.regions)
    if batch is None:  # eight of the top level's maps: its features, those of the way up, and working copies
        each = 4 * 8 * model.config.channels[0] * images[0, 0].numel()
        batch = chunk_size(each, memory_budget(model.device) * RENDER_SHARE, 64)
    counts = torch.zeros(n, n)
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        guess = model.segment(x.to(model.device)).argmax(1).cpu()
        counts += contingency(y, guess, n, n)
    iou = jaccard(counts).diag()
    return {**dict(zip(model.config.regions, iou.tolist(), strict=True)), "mean": iou.mean().item()}


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
