"""Align photographs of faces as FFHQ does: crop, rotate and scale them by their landmarks.

    stylefusion align me.jpg --landmarks me.json --out me.png
    stylefusion align photos --detector mtcnn --size 1024 --out aligned

A landmark file is JSON: {"me.jpg": [[x, y], ...], "you.jpg": ...}, where names are the paths given here or bare file
names; for a single picture, the list alone is enough. Each list has 68 points in the order of iBUG 300-W (as in dlib),
or 5 points: left eye, right eye, nose, left and right corner of the mouth, with left as seen in the picture.
Coordinates are pixels of the upright picture.

A detector is `mtcnn` (pip install '.[faces]' in a checkout), one provided by an installed package (entry point group
stylefusion_hf.landmarks), or module:callable, which takes a PIL image and returns such a list for each face.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stylefusion_hf.cli.arguments import positive
from stylefusion_hf.cli.outputs import output_file, output_folder, report_written, save_png


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="a picture file, or a folder of them")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--landmarks", metavar="JSON", help="a file with the landmarks of all pictures")
    source.add_argument("--detector", metavar="NAME|MODULE:CALLABLE", help="the detector that finds the landmarks")
    parser.add_argument(
        "--face", type=_index, metavar="N", help="which of several detected faces; 0 is the largest (default: refuse)"
    )
    parser.add_argument("--size", type=positive, default=256, help="size of the result in pixels (default: 256)")
    parser.add_argument(
        "--padding",
        choices=("reflect", "refuse"),
        default="reflect",
        help="where the crop exceeds the picture: reflect and blur as FFHQ does, or refuse (default: reflect)",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="PNG|FOLDER",
        help="a .png file for a single picture, or a folder for PNG files named like the pictures",
    )


def run(args: argparse.Namespace) -> None:
    from stylefusion_hf.core.progress import tqdm
    from stylefusion_hf.imaging.faces import align
    from stylefusion_hf.imaging.images import open_image, picture_files
    from stylefusion_hf.imaging.landmarks import find_landmarks, load_detector, read_landmarks

    if args.face is not None and args.landmarks:
        raise ValueError("--face chooses among faces that a --detector finds: leave it out with --landmarks")
    pictures = [
        file for given in args.pictures for file in (picture_files(given) if os.path.isdir(given) else [given])
    ]
    targets = _targets(args.out, pictures)
    known = read_landmarks(args.landmarks, pictures) if args.landmarks else None
    detector: Any = None
    if args.detector:
        sys.path.append(os.getcwd())  # module:callable may be in the current folder
        detector = load_detector(args.detector)

    for number, target in enumerate(tqdm(targets, desc="aligning", disable=len(targets) == 1)):
        name = f"the picture {pictures[number]}"
        image = open_image(pictures[number])
        landmarks = find_landmarks(image, detector, name, args.face) if known is None else known[number]
        save_png(align(image, landmarks, args.size, args.padding, name), target)
    report_written(args.out, f"{len(targets)} of {args.size} x {args.size} pixels" if len(targets) > 1 else "")


def _targets(out: str, pictures: Sequence[str | Path]) -> list[Path]:
    """Return each picture's output file; ValueError if two share one, or a picture would be overwritten."""
    if out.lower().endswith(".png"):
        if len(pictures) > 1:
            raise ValueError(f"--out {out} names one picture, and {len(pictures)} were given: name a folder")
        targets = [output_file(out, [".png"])]
    else:
        targets = [output_folder(out) / f"{Path(picture).stem}.png" for picture in pictures]
    taken: dict[Path, str | Path] = {}
    for picture, target in zip(pictures, targets, strict=True):
        if target in taken:
            raise ValueError(f"{taken[target]} and {picture} would both become {target}: rename one")
        if target.resolve() == Path(picture).resolve():
            raise ValueError(f"{picture} would be overwritten by its own aligned picture: give another --out")
        taken[target] = picture
    return targets


def _index(text: str) -> int:
    if not text.strip().isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0")
    return int(text)
