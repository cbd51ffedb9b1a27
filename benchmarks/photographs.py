"""Edited photographs: how near the model comes to a face, what is kept, and how well the seam is hidden.

    python -m benchmarks.photographs me.jpg you.jpg --model faces --region hair=7 --landmarks points.json
    python -m benchmarks.photographs PHOTOS/*.jpg --model faces --table stages --steps 40 --backbone efficientnet-lite0
    python -m benchmarks.photographs PHOTOS/*.jpg --model faces --table likeness --steps 40 --others lion.jpg
    python -m benchmarks.photographs PHOTOS/*.jpg --model faces --table leak --region hair --region mouth --steps 40

By default, a line per photograph. `outside` is the largest difference outside the mask. The seam is the mean
difference of neighboring pixels on both sides of the mask's edge, in levels of 255: in the photograph itself (what is
there anyway), in a paste of the changed regions, in a paste with soft edges, in OpenCV's `seamlessClone` (where it is
installed) and in what `StyleFusionPhotoPipeline` gives. The other tables are those of `photograph_tables.py`: how near
each stage of the search comes, how much of a face it explains and of what is none, and the leak of dials on
photographs and on samples.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import photograph_tables as tables
from stylefusion_hf import StyleFusionPhotoPipeline, StyleFusionPipeline
from stylefusion_hf.cli.arguments import code, parse_pairs, positive
from stylefusion_hf.evaluation.backbone import load_backbone
from stylefusion_hf.evaluation.judges import load_judges
from stylefusion_hf.imaging import compositing
from stylefusion_hf.imaging.faces import face_square
from stylefusion_hf.imaging.images import fit_square, open_image
from stylefusion_hf.imaging.landmarks import find_landmarks, load_detector, read_landmarks
from stylefusion_hf.imaging.photographs import read_photograph
from stylefusion_hf.pipelines.photo_outputs import draw_change
from stylefusion_hf.pipelines.photo_recipes import PhotoRecipe


def seam(image: Image.Image, coverage: Image.Image) -> float:
    """Return the mean difference of neighboring pixels across the edge of the mask."""
    pixels, inside = np.asarray(image.convert("RGB"), dtype=float), np.asarray(coverage) > 127
    found = []
    for axis in (0, 1):
        edge = np.diff(inside.astype(int), axis=axis) != 0
        found.append(np.abs(np.diff(pixels, axis=axis)).mean(axis=-1)[edge])
    return float(np.concatenate(found).mean())


def other_blends(
    image: Image.Image, coverage: Image.Image, corners: np.ndarray, after: torch.Tensor
) -> dict[str, Any]:
    """Return the same change blended in other ways: name -> picture."""
    none, everywhere = torch.zeros(3, 64, 64), torch.ones(64, 64)
    changed = Image.fromarray(((after + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    whole, _ = compositing.put_back(image, corners, changed, everywhere, none)
    inside = coverage.point(lambda level: 255 * (level > 127))
    found = {"paste": Image.composite(whole, image, inside), "soft paste": Image.composite(whole, image, coverage)}
    try:
        import cv2
    except ImportError:
        return found
    left, top, right, bottom = inside.getbbox() or (0, 0, 1, 1)
    middle = ((left + right) // 2, (top + bottom) // 2)
    pictures = [np.asarray(picture.convert("RGB")) for picture in (whole, image)]
    found["seamlessClone"] = Image.fromarray(
        cv2.seamlessClone(*pictures, np.asarray(inside), middle, cv2.NORMAL_CLONE)
    )
    return found


def measure_seams(args: argparse.Namespace, pipe: Any, points: list[Any]) -> None:
    """Print a line per photograph; write the recipes if that is asked for."""
    regions, recipes = parse_pairs(args.region, "--region", code), []
    for file, landmarks in zip(args.photographs, points, strict=True):
        search = tables.search_settings(args.codes, file, args.steps[-1])
        start = time.process_time()
        out = pipe(file, regions=regions, landmarks=landmarks, **search)
        seconds = time.process_time() - start
        recipes += out.recipes
        image, edited, coverage = read_photograph(file).image, out.images[0], out.masks[0]
        recipe = PhotoRecipe.from_dict(out.recipes[0])
        _, after = draw_change(StyleFusionPipeline.from_pipe(pipe), recipe.fusion)
        outside = np.abs(np.asarray(image, dtype=int) - np.asarray(edited))[np.asarray(coverage) == 0].max()
        seams = {"photograph": image, **other_blends(image, coverage, face_square(recipe.landmarks), after)}
        seams["edited"] = edited
        print(
            f"{file}: MSE {out.mse[0]:.4f}, explained {out.explained[0]:.2f}, {seconds:.0f} CPU seconds,"
            f" {(np.asarray(coverage) > 0).mean():.0%} replaced, outside {outside}, seam: "
            + ", ".join(f"{name} {seam(picture, coverage):.2f}" for name, picture in seams.items())
        )
    if args.recipes:
        with open(args.recipes, "w") as target:
            json.dump(recipes, target)


def find_points(args: argparse.Namespace) -> list[Any]:
    """Return the landmarks of the photographs, from --landmarks or detected; of several faces, the largest."""
    if args.landmarks:
        return list(read_landmarks(args.landmarks, args.photographs))
    detector = load_detector("mtcnn")
    return [find_landmarks(read_photograph(f).rgb(), detector, f, face=0) for f in args.photographs]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", nargs="+")
    parser.add_argument("--model", required=True)
    parser.add_argument("--table", choices=("seams", "stages", "likeness", "leak"), default="seams")
    parser.add_argument("--region", action="append", metavar="NAME=CODE", help="of the seams; NAME alone of the leak")
    parser.add_argument(
        "--sources",
        type=positive,
        default=1,
        metavar="N",
        help="of the leak: number of samples that each photograph's dials turn to, one after the other (default: 1)",
    )
    parser.add_argument("--landmarks", metavar="JSON", help="default: they are detected")
    parser.add_argument("--steps", type=int, nargs="+", default=[100], help="of the search (default: 100)")
    parser.add_argument(
        "--starts",
        nargs="+",
        choices=("mean", "encoder"),
        help="of the stages (default: both, if there is an encoder)",
    )
    parser.add_argument("--tune", type=int, default=0, metavar="STEPS", help="of tuning, a last row of the stages")
    parser.add_argument("--tuned", type=int, metavar="N", help="tune only the first N photographs (default: all)")
    parser.add_argument(
        "--others",
        nargs="*",
        default=[],
        metavar="FILE",
        help="square pictures without a face, of the likeness (default: drawn ones)",
    )
    parser.add_argument("--backbone", help="of the stages' likeness: efficientnet-lite0, or a transformer")
    parser.add_argument("--judges", metavar="FOLDER", help="of the stages' regions and of the leak")
    parser.add_argument("--rows", metavar="FILE", help="JSON file that keeps what was measured")
    parser.add_argument("--codes", metavar="FOLDER", help="keeps the codes that the stages find, for the other tables")
    parser.add_argument("--recipes", metavar="JSON", help="also write the seams' recipes, a list")
    args = parser.parse_args(argv)
    if args.table in ("seams", "leak") and not args.region:
        parser.error(f"--table {args.table} needs --region")
    pipe: Any = StyleFusionPhotoPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    points = find_points(args)
    if args.table == "seams":
        return measure_seams(args, pipe, points)
    print(measure_table(args, pipe, points))


def measure_table(args: argparse.Namespace, pipe: Any, points: list[Any]) -> str:
    """Return the table that the flags ask for."""
    cache = tables.Cache(args.rows)
    if args.table == "leak":
        settings = {"num_inference_steps": args.steps[-1]}
        codes = dict(tables.inverted_codes(pipe, args.photographs, points, settings, args.codes or "inverted"))
        plain = StyleFusionPipeline.from_pipe(pipe)
        return tables.measure_leak(plain, codes, args.region, args.judges, cache, args.sources)
    if args.table == "likeness":
        faces = {Path(f).stem: (f, place) for f, place in zip(args.photographs, points, strict=True)}
        squares = {Path(f).stem: fit_square(open_image(f), 256, fit="crop") for f in args.others}
        others = squares or tables.draw_others()
        return tables.measure_likeness(pipe, faces, others, args.steps[-1], cache, args.codes)
    features = load_backbone(args.backbone) if args.backbone else None
    segmenter = load_judges(args.judges).segmenter if args.judges else None
    starts = args.starts or ["mean", "encoder"][: 1 if pipe.encoder is None else 2]
    stages = tables.stage_settings(starts, args.steps, args.tune)
    return tables.measure_stages(
        pipe, args.photographs, points, stages, features, cache, segmenter, args.codes, args.tuned
    )


if __name__ == "__main__":
    main()
