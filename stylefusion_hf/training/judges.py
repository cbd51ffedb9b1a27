"""Train the judges: the networks that `stylefusion evaluate` uses, on data and seeds that no other training saw.

    accelerate launch -m stylefusion_hf.training.judges --model FOLDER --output_dir runs/judges --avatars 20000
    accelerate launch -m stylefusion_hf.training.judges --model FOLDER --output_dir runs/mine --train_data_dir DATASET

Three of them, each from its own seed: the segmenter (of another architecture than the one that trains), the portrait
judge (pose, parts and colors; avatars only, since it needs the renderer's labels) and the discriminator, which learns
to tell real pictures from plain samples of the frozen generator in --model. DATASET has the layout that `stylefusion
data avatars` writes. The output folder is what `load_judges` takes: segmenter/, portrait/ and discriminator/ in half
precision, and judges.json with the held-out figures and the command that made each; the runs with their checkpoints
are below runs/.
"""

import argparse
import contextlib
import json
import shlex
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, nn
from torch.utils.data import Dataset

from stylefusion_hf.core.command_line import run
from stylefusion_hf.core.files import remove_partials, write_json
from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.core.randomness import step_generator
from stylefusion_hf.evaluation.judges import PortraitJudge
from stylefusion_hf.models.discriminator import StyleGAN2Discriminator
from stylefusion_hf.models.segmenter import RegionSegmenter
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.training import segmenter
from stylefusion_hf.training._discriminator import default_channels, plain_samples, realness_loss, telling_apart
from stylefusion_hf.training.augment import parse_policy
from stylefusion_hf.training.checkpoints import let_go
from stylefusion_hf.training.common import (
    Log,
    State,
    build_schedule,
    common_parser,
    gathered,
    one_process_first,
    push_to_hub,
    resume,
    save_checkpoint,
    start,
    step_batches,
    step_generators,
    sync_when,
)

JUDGES = {"segmenter": RegionSegmenter, "portrait": PortraitJudge, "discriminator": StyleGAN2Discriminator}
# A step's loss and its parts for the log, from (the model as accelerate wraps it, micro-batch, draw, step).
Loss = Callable[[nn.Module, dict[str, Tensor], torch.Generator, int], tuple[Tensor, dict[str, Tensor]]]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = common_parser(
        "stylefusion train judges",
        "Train the networks that only the evaluation uses.",
        train_batch_size=24,
        max_train_steps=None,
        lr_scheduler="cosine",
        lr_warmup_steps=50,
        max_grad_norm=1.0,
        seed=11,
        use_ema=False,
    )
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--avatars", type=int, metavar="N", help="train on the first N avatars, rendered here")
    source.add_argument("--train_data_dir", help="folder with images/, labels/ and dataset.json")
    p.add_argument("--only", help=f"which judges, of {','.join(JUDGES)}; all that can be made if left out")
    p.add_argument("--data_seed", type=int, default=1, help="of the avatars; generators and fusion nets train on 0")
    p.add_argument("--cache_dir", help="where rendered avatars are kept; --output_dir/data if left out")
    p.add_argument("--segmenter_steps", type=int, default=1600, help="unless --max_train_steps is given, as below")
    p.add_argument("--portrait_steps", type=int, default=5000)
    p.add_argument("--discriminator_steps", type=int, default=1000)
    p.add_argument(
        "--segmenter_channels",
        help="widths of the U-Net's levels (default: 24,32,48,64,96, and one more 96 for each doubling above 64 px)",
    )
    p.add_argument("--discriminator_channels", help="from 4 x 4 up; 96,96,64,48,32 at 64 pixels if left out")
    p.add_argument("--degrade", type=float, default=1.0, help="strength of the random degradation; 0 for none")
    p.add_argument(
        "--augment", default="none", help="none, or some of color,translation,cutout: where the discriminator overfits"
    )
    p.add_argument("--r1_gamma", type=float, default=0.5, help="weight of the discriminator's R1; 0 for none")
    p.add_argument("--r1_interval", type=int, default=16, help="steps between two R1 penalties")
    p.add_argument("--eval_avatars", type=int, default=512, help="held-out pictures for the figures; 0 for none")
    p.add_argument("--dataloader_num_workers", type=int, default=0)
    args = p.parse_args(argv)
    given = {k: v for k, v in vars(args).items() if v != p.get_default(k) and k not in ("hub_token", "push_to_hub")}
    given = {"model" if k == "pretrained_model_name_or_path" else k: v for k, v in given.items()}
    args.command = "stylefusion train judges " + " ".join(
        f"--{k}" if v is True else f"--no-{k}" if v is False else f"--{k} {shlex.quote(str(v))}"
        for k, v in given.items()
    )
    return args


def chosen(args: argparse.Namespace) -> dict[str, str | None]:
    """Every judge, with the reason why it is not made, or None where it is.

    ValueError for an impossible --only, and for flags of this trainer that are out of range.
    """
    wanted = list(JUDGES) if args.only is None else [name.strip() for name in args.only.split(",")]
    unknown = [name for name in wanted if name not in JUDGES]
    if unknown:
        raise ValueError(f"--only {args.only}: there is no judge {unknown[0]!r}; choose some of {', '.join(JUDGES)}")
    for flag, least in (("r1_interval", 1), ("eval_avatars", 0), ("degrade", 0), ("r1_gamma", 0)):
        if getattr(args, flag) < least:
            raise ValueError(f"--{flag} must be at least {least}, got {getattr(args, flag)}")
    why = {name: None if name in wanted else "--only names others" for name in JUDGES}
    lacks = {}
    if not args.avatars:
        lacks["portrait"] = "it learns from the avatars' labels (--avatars); without it, pose comes from the masks"
    if not args.pretrained_model_name_or_path:
        lacks["discriminator"] = "it needs the generator whose pictures it tells from real ones (--model)"
    for name, reason in lacks.items():
        if why[name] is None:
            if args.only is not None:
                raise ValueError(f"--only {args.only}: no {name} can be trained: {reason}")
            why[name] = reason
    return why


def arguments_of(args: argparse.Namespace, name: str) -> argparse.Namespace:
    """The flags of one judge's own run, as the trainers and common.py know them."""
    own = argparse.Namespace(**vars(args))
    own.output_dir = str(Path(args.output_dir) / "runs" / name)
    own.cache_dir = args.cache_dir or str(Path(args.output_dir) / "data")
    own.seed = args.seed + list(JUDGES).index(name)
    own.push_to_hub = False  # all judges together, in the end
    if args.max_train_steps is None:
        own.max_train_steps = getattr(args, f"{name}_steps")
        if own.max_train_steps < 1:
            raise ValueError(f"--{name}_steps must be at least 1, got {own.max_train_steps}")
    return own


def segmenter_channels(resolution: int) -> str:
    """Widths of the segmenter's levels: one more for each doubling above 64 pixels, so that its field grows with the
    picture.
    """
    more = max(0, (resolution // 64).bit_length() - 1)
    return ",".join(["24,32,48,64,96", *["96"] * more])


# --- One loop for the two that are not a trainer's already -----------------------------------------------------------


def fit(
    args: argparse.Namespace,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    dataset: Dataset,
    loss_of: Loss,
) -> Any:
    """Train to `max_train_steps`, from a checkpoint where the flags ask for it; the model itself, in eval mode."""
    schedule = build_schedule(args, optimizer)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(State(schedule=schedule))
    first = resume(accelerator, args)
    batches = step_batches(dataset, args, accelerator, first, args.dataloader_num_workers)
    log, n, total = Log(accelerator, args), args.gradient_accumulation_steps, args.max_train_steps
    bar = tqdm(total=total, initial=first, disable=not accelerator.is_main_process, desc=Path(args.output_dir).name)
    with bar, contextlib.ExitStack() as stack:
        stack.callback(let_go, args.output_dir)
        for tracker in accelerator.trackers:  # closed also after an error; the process group stays for the next judge
            stack.callback(tracker.finish)
        for step in range(first, total):
            parts = {k: v.to(accelerator.device).chunk(n) for k, v in next(batches).items()}
            optimizer.zero_grad()
            for i, draw in enumerate(step_generators(args, accelerator, step)):
                with sync_when(accelerator, model, i == n - 1):
                    loss, logged = loss_of(model, {k: v[i] for k, v in parts.items()}, draw, step)
                    accelerator.backward(loss / n)
                log.add(loss=loss, **logged)
            if args.max_grad_norm:
                accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            schedule.step()
            done = step + 1
            bar.update()
            if done % args.logging_steps == 0 or done == total:
                log.report(done, bar)
            if done % args.checkpointing_steps == 0 or done == total:
                save_checkpoint(accelerator, args, done)
    return gathered(accelerator, model).eval()


# --- The three judges: each returns the model in full precision and its held-out figures (from the main process) -----


def train_segmenter(args: argparse.Namespace) -> tuple[Any, dict]:
    own = arguments_of(args, "segmenter")
    own.channels = args.segmenter_channels or segmenter_channels(args.resolution)
    own.pretrained_model_name_or_path = None
    folder = segmenter.train(own)
    if not PartialState().is_main_process:
        return None, {}
    figures = folder / "iou.json"
    model = RegionSegmenter.from_pretrained(folder, subfolder="segmenter")
    return model, {"IoU": json.loads(figures.read_text(encoding="utf-8"))} if figures.is_file() else {}


def train_portrait(args: argparse.Namespace) -> tuple[Any, dict]:
    from stylefusion_hf.data.avatars import avatar_spec, cached_arrays, render_arrays
    from stylefusion_hf.training._portrait import PortraitDataset, judge_figures, judge_loss, new_judge

    own = arguments_of(args, "portrait")
    accelerator = start(own)
    with one_process_first(accelerator):
        images, _ = cached_arrays(own.cache_dir, args.avatars, args.resolution, args.data_seed)
    dataset = PortraitDataset(images, [avatar_spec(i, args.data_seed) for i in range(args.avatars)])
    torch.manual_seed(own.seed)
    model = new_judge(args.resolution)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=1e-4)
    model = fit(
        own, accelerator, model, optimizer, dataset, lambda m, x, draw, _: judge_loss(m, x, draw, args.degrade)
    )
    if not args.eval_avatars or not accelerator.is_main_process:
        return model, {}
    first = 1_000_000  # as the segmenter's trainer: far behind any training index
    images, _ = render_arrays(args.eval_avatars, args.resolution, args.data_seed, first, workers=1, progress=False)
    held = PortraitDataset(images, [avatar_spec(first + i, args.data_seed) for i in range(args.eval_avatars)])
    draw = step_generator(own.seed, 0, purpose=9)
    figures = {"held-out": judge_figures(model, held), "held-out, degraded": judge_figures(model, held, draw)}
    return model, figures


def train_discriminator(args: argparse.Namespace) -> tuple[Any, dict]:
    own = arguments_of(args, "discriminator")
    own.max_grad_norm = 0.0  # lazy R1 is a large gradient once in a while, which clipping would all but remove
    policy = parse_policy(args.augment)
    accelerator = start(own)
    torch.manual_seed(own.seed)
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
    g = g.to(accelerator.device).eval().requires_grad_(False)
    text = args.discriminator_channels or ",".join(map(str, default_channels(args.resolution)))
    try:  # without the minibatch deviation: what it says of a picture must not depend on the others in its batch
        channels = [int(c) for c in text.split(",")]
        model = StyleGAN2Discriminator(resolution=args.resolution, channels=channels, mbstd_channels=0)
    except ValueError as error:
        raise ValueError(f"--discriminator_channels {text}: {error}") from None
    # With momentum, unlike a discriminator whose opponent moves.
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.99))
    dataset, _ = segmenter.build_dataset(own, accelerator)

    def loss_of(d: nn.Module, batch: dict[str, Tensor], draw: torch.Generator, step: int):
        gamma = args.r1_gamma * args.r1_interval if step % args.r1_interval == 0 else 0.0
        return realness_loss(d, batch["image"], plain_samples(g, len(batch["image"]), draw), policy, gamma, draw)

    model = fit(own, accelerator, model, optimizer, dataset, loss_of)
    if not args.eval_avatars or not accelerator.is_main_process:
        return model, {}
    held = (
        dataset
        if args.train_data_dir
        else segmenter.held_out_avatars(args.eval_avatars, args.resolution, args.data_seed)
    )
    real = torch.stack([held[i]["image"] for i in range(min(args.eval_avatars, len(held)))])
    fake = plain_samples(g, args.eval_avatars, step_generator(own.seed, 0, purpose=9))
    kind = "training pictures" if args.train_data_dir else "held-out avatars"
    return model, {f"{kind} against fresh samples": telling_apart(model, real, fake)}


# --- The run ---------------------------------------------------------------------------------------------------------

TRAINERS = {"segmenter": train_segmenter, "portrait": train_portrait, "discriminator": train_discriminator}


def publish(model: Any, name: str, figures: dict, args: argparse.Namespace) -> None:
    """Put a judge where `load_judges` looks, in half precision, and its entry into judges.json."""
    folder = Path(args.output_dir)
    nn.Module.half(model.cpu()).save_pretrained(folder / name)
    note = folder / "judges.json"
    entries = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    steps = args.max_train_steps or getattr(args, f"{name}_steps")
    entries[name] = {"command": args.command, "steps": steps, "figures": rounded(figures)}
    write_json(note, {k: entries[k] for k in JUDGES if k in entries}, indent=2)
    print(json.dumps({name: entries[name]["figures"]}, indent=2))


def rounded(figures: Any) -> Any:
    """The same with every float to four places."""
    if isinstance(figures, dict):
        return {k: rounded(v) for k, v in figures.items()}
    return round(figures, 4) if isinstance(figures, float) else figures


def train(args: argparse.Namespace) -> Path:
    """Train the judges that the flags ask for, one after the other, and return the folder that `load_judges` takes."""
    folder, reasons = Path(args.output_dir), chosen(args)
    if PartialState().is_main_process:
        remove_partials(folder)  # of a run that was killed
    # The segmenter goes last: its trainer ends the process group, and groups cannot be had twice in a row safely (a
    # process that is early finds the addresses of the group before).
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
    print(f"wrote {train(parse_args(argv))}")


if __name__ == "__main__":
    raise SystemExit(run(main))
