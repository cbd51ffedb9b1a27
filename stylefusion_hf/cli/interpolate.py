"""Walk from code to code: an animation in which the chosen regions change and the rest stays.

A list of codes (seeds, picture files, files with a code as `stylefusion fuse` takes them) gives the keyframes. All
lists must have the same length; a single code stays constant. The output depends on the name: .gif, .webp (lossless),
.mp4 (extra `video`), a pattern such as frames/%03d.png, or a folder for PNG frames. Files are written whole or not at
all.

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
    save_tuned_generator,
)
from stylefusion_hf.cli.arguments import (
    add_class_argument,
    add_model_arguments,
    call_arguments,
    codes,
    number,
    positive,
)
from stylefusion_hf.cli.loading import check_call, load_pipeline
from stylefusion_hf.cli.outputs import report_written
from stylefusion_hf.core.progress import tqdm

FPS = 25.0  # 4/100 s per frame, which a GIF can represent exactly


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("codes: one, or a list such as 7,8,9")
    group.add_argument(
        "--base", metavar="CODES", help="codes of every node that is not set otherwise (default: a random seed)"
    )
    group.add_argument("--region", action="append", metavar="NAME=CODES", help="codes of a region or a whole subtree")
    group.add_argument("--node", action="append", metavar="NAME=CODES", help="codes of this node of the tree only")
    group.add_argument("--global", metavar="CODES", help="codes of what the regions share: pose and layout")
    add_class_argument(group, "of every seed, or one class per keyframe", "CLASSES")
    add_inversion_arguments(parser)
    walk = parser.add_argument_group("walk")
    walk.add_argument("--frames", type=positive, help="number of frames in the whole walk")
    walk.add_argument("--steps", type=positive, help="frames between keyframes, instead of --frames (default: 30)")
    walk.add_argument("--loop", action="store_true", help="return from the last keyframe to the first")
    walk.add_argument(
        "--space",
        choices=("w", "s", "z"),
        default="w",
        help="space of the path: straight in w or s, or along the sphere of z (default: w)",
    )
    walk.add_argument(
        "--easing",
        choices=("linear", "smooth"),
        default="linear",
        help="speed along the path; smooth is slow near keyframes (default: linear)",
    )
    look = parser.add_argument_group("look")
    look.add_argument(
        "--strength",
        action="append",
        metavar="[NAME=]NUMBER",
        help="how far to go from the base to the codes, 0 to 1 (default: 1)",
    )
    look.add_argument("--psi", type=number, help="truncation (default: the model's own)")
    look.add_argument(
        "--noise-mode", choices=("const", "none"), default="const", help="noise of the generator (default: const)"
    )
    files = parser.add_argument_group("files")
    files.add_argument("--out", default="walk.webp", metavar="FILE|FOLDER", help="output (default: walk.webp)")
    files.add_argument("--fps", type=number, help="frames per second (default: 25)")
    files.add_argument("--batch-size", type=positive, default=8, help="frames computed at once (default: 8)")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
    check_call(args)
    call, settings = _call(args), inversion_arguments(args)

    from stylefusion_hf.imaging.animation import check_target, write_animation

    out = check_target(args.out, FPS if args.fps is None else args.fps)
    film = out.suffix.lower() not in ("", ".png")
    if args.fps is not None and not film:
        raise ValueError("--fps does not apply to PNG frames: leave it out, or name a .gif, .webp or .mp4")
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
    save_tuned_generator(fuser, out.parent, settings)
    height, width = pipe.generator.picture_size
    report_written(out, f"{count} frames of {width} x {height} pixels" + (f", {count / fps:g} s" if film else ""))


def _call(args: argparse.Namespace) -> dict[str, Any]:
    """Return the pipeline's arguments."""
    same = ("frames", "steps", "loop", "space", "easing", "noise_mode", "batch_size")
    return call_arguments(args, codes) | {name: getattr(args, name) for name in same}
