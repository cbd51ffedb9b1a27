"""Walk from code to code: a film in which the chosen regions change and the rest stays.

A list of codes (seeds, picture files, CODES:NAME of `stylefusion invert`) makes keyframes; all lists have the same
length, and a single code stays where it is. What is written depends on the name: .gif, .webp (lossless), .mp4 (extra
`video`), a pattern such as frames/%03d.png, or a folder for PNG frames. The file appears whole or not at all.

    stylefusion interpolate --base 1 --region hair=7,8,9 --frames 60 --loop --out hair.gif
    stylefusion interpolate --base 1,4,6 --steps 24 --space z --out walk.webp
    stylefusion interpolate --base 1 --region hair=7,8 --region eyes=3,5 --global 5,6 --out frames
"""

from __future__ import annotations

import argparse
from typing import Any

from stylefusion_hf.cli._invert import (
    add_inversion_arguments,
    inversion_arguments,
    invert_pictures,
    save_beside,
)
from stylefusion_hf.cli._shared import (
    add_class_argument,
    add_model_arguments,
    call_arguments,
    check_call,
    codes,
    load_pipeline,
    number,
    positive,
    wrote,
)
from stylefusion_hf.core.progress import tqdm

FPS = 25.0  # 4/100 s a frame: exact in a GIF too


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("codes: one, or a list such as 7,8,9")
    group.add_argument("--base", metavar="CODES", help="every node that nothing else sets (default: a random seed)")
    group.add_argument("--region", action="append", metavar="NAME=CODES", help="a region, or a node with all below it")
    group.add_argument("--node", action="append", metavar="NAME=CODES", help="exactly this node of the tree")
    group.add_argument("--global", metavar="CODES", help="what the regions share: pose and layout")
    add_class_argument(group, "of every seed, or one a keyframe", "CLASSES")
    add_inversion_arguments(parser)
    walk = parser.add_argument_group("walk")
    walk.add_argument("--frames", type=positive, help="of the whole walk")
    walk.add_argument("--steps", type=positive, help="instead: from each keyframe to the next (default: 30)")
    walk.add_argument("--loop", action="store_true", help="go back from the last keyframe to the first")
    walk.add_argument(
        "--space",
        choices=("w", "s", "z"),
        default="w",
        help="straight in w or s, or along the sphere of z (default: w)",
    )
    walk.add_argument(
        "--easing",
        choices=("linear", "smooth"),
        default="linear",
        help="smooth: slow near keyframes (default: linear)",
    )
    look = parser.add_argument_group("look")
    look.add_argument(
        "--strength", action="append", metavar="[NAME=]NUMBER", help="0 to 1, from the base to the codes (default: 1)"
    )
    look.add_argument("--psi", type=number, help="truncation (default: the model's own)")
    look.add_argument("--noise-mode", choices=("const", "none"), default="const", help="(default: const)")
    files = parser.add_argument_group("files")
    files.add_argument("--out", default="walk.webp", metavar="FILE|FOLDER", help="where to write (default: walk.webp)")
    files.add_argument("--fps", type=number, help="frames a second (default: 25)")
    files.add_argument("--batch-size", type=positive, default=8, help="frames computed at once (default: 8)")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
    check_call(args)
    call, settings = _call(args), inversion_arguments(args)

    from stylefusion_hf.imaging.animation import check_target, write_animation

    out = check_target(args.out, FPS if args.fps is None else args.fps)
    film = out.suffix.lower() not in ("", ".png")
    if args.fps is not None and not film:
        raise ValueError("--fps says nothing about PNG frames: leave it out, or name a .gif, .webp or .mp4")
    fps = FPS if args.fps is None else args.fps

    from stylefusion_hf import StyleFusionInterpolationPipeline

    fuser = load_pipeline(args, light=True)
    call = invert_pictures(fuser, call, settings)
    pipe = StyleFusionInterpolationPipeline.from_pipe(fuser)
    stream = pipe.stream(**call)
    if args.base is None:
        print(f"drawn: --base {stream.recipe['base']}")
    with tqdm(desc="interpolate", unit="frame", total=stream.frames) as bar:

        def frames() -> Any:
            for batch in stream:
                for frame in batch:
                    yield frame
                    bar.update()

        count = write_animation(out, frames(), fps)
    save_beside(fuser, out.parent, settings)
    side = pipe.generator.config.resolution
    wrote(out, f"{count} frames of {side} x {side} pixels" + (f", {count / fps:g} s" if film else ""))


def _call(args: argparse.Namespace) -> dict[str, Any]:
    """The pipeline's arguments."""
    same = ("frames", "steps", "loop", "space", "easing", "noise_mode", "batch_size")
    return call_arguments(args, codes) | {name: getattr(args, name) for name in same}
