"""Measure a model: how local its swaps are, how much of the source they transfer, and how other methods compare.

Prints tables, and writes report.json, report.md and report.png to --out. Figures have 95% bootstrap intervals.
The comparison of methods always includes `mean` and `random-code`, which ignore the source.

    stylefusion evaluate --quick
    stylefusion evaluate --model runs/fusion --out evaluation
    stylefusion evaluate --sections swaps,curves --methods stylefusion,static-gates --pairs 200

The judges (an evaluation segmenter; for avatars also a pose and attribute network and a discriminator) are loaded from
stylefusion_hf/assets/evaluation in a checkout, or from --judges; `stylefusion train judges` trains them.
docs/research/evaluation.md explains the figures.
"""

from __future__ import annotations

import argparse
import importlib.util
from dataclasses import replace
from pathlib import Path

from stylefusion_hf.cli.arguments import add_model_arguments, number, positive, seed
from stylefusion_hf.cli.loading import check_call, load_pipeline
from stylefusion_hf.cli.outputs import output_folder, report_written
from stylefusion_hf.core.installing import install_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", default="evaluation", metavar="FOLDER", help="folder for the report (default: evaluation)"
    )
    parser.add_argument("--judges", metavar="FOLDER", help="folder of the judges (default: the checkout's)")
    parser.add_argument(
        "--backbone",
        metavar="ID",
        help="network for realism features: efficientnet-lite0 (from PyPI, works offline) or a vision transformer on"
        " the Hub such as facebook/dinov2-small (default: the judges' own features, which are for avatars)",
    )
    parser.add_argument(
        "--sections",
        metavar="A,B",
        help="only these sections; limits brings curves with it (default: all that apply)",
    )
    parser.add_argument(
        "--methods",
        metavar="A,B",
        help="only these methods, including stylefusion (default: all but stylefusion-refined, which is slow)",
    )
    parser.add_argument(
        "--swap-rows",
        metavar="A,B",
        help="of the section swaps, measure only leaf, which is always there, and these: wider, refined, mean, mean"
        " look, random code (default: all but refined; leaf alone takes about a third of the time)",
    )
    parser.add_argument(
        "--static-gates",
        metavar="FOLDER",
        help="also compare with nets of constant gates: an output folder of `stylefusion train fusion` with the"
        " model's own flags and --static_steps at least --max_train_steps",
    )
    parser.add_argument(
        "--refine-steps", type=positive, metavar="N", help="steps of the method stylefusion-refined (default: 20)"
    )
    parser.add_argument("--pairs", type=positive, help="pairs for the swap figures (default: 500)")
    parser.add_argument("--curve-pairs", type=positive, help="test pairs for comparing methods (default: 128)")
    parser.add_argument(
        "--validation-pairs",
        type=positive,
        help="pairs for choosing the methods' strengths (default: 48, or a third of --curve-pairs)",
    )
    parser.add_argument("--calibration-pairs", type=positive, help="pairs of drawn avatars (default: 64)")
    parser.add_argument("--global-pairs", type=positive, help="bases for the global figures (default: 64)")
    parser.add_argument(
        "--limit-pairs", type=positive, help="pairs for the upper bounds (default: 16; 64 with --full)"
    )
    parser.add_argument("--limit-steps", type=positive, help="Adam steps for the upper bounds (default: 150)")
    parser.add_argument(
        "--realism-count", type=positive, help="pictures per set for the realism figures (default: 5000)"
    )
    parser.add_argument(
        "--real",
        metavar="FOLDER|avatars|none",
        help="real pictures for realism (default: avatars if the model draws them, else none, which compares with a"
        " second set of plain samples)",
    )
    parser.add_argument("--psi", type=number, help="truncation (default: the model's own)")
    parser.add_argument("--seed", type=seed, default=0, help="selects the pairs, 0 to 200 (default: 0)")
    parser.add_argument(
        "--measuring-size",
        type=positive,
        metavar="PIXELS",
        help="downscale larger pictures to this size (default: the smallest of the model's, the judges' and 256)",
    )
    parser.add_argument(
        "--picture-size",
        type=positive,
        metavar="PIXELS",
        help="measure the generator's own smaller pictures of this size (previews): several times faster at 1024"
        " pixels (default: full pictures)",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        help="pairs per batch, also for fitting methods (default: 32, fewer above 128 pixels)",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a rough measurement in some minutes, marked as such")
    size.add_argument("--full", action="store_true", help="use more pairs for the upper bounds")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
    for package in ("scipy", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"evaluation needs {package}: {install_command('evaluation')}")

    check_call(args)

    from stylefusion_hf.evaluation.backbone import load_backbone
    from stylefusion_hf.evaluation.evaluate import Settings, build_subject, evaluate
    from stylefusion_hf.evaluation.judges import load_judges
    from stylefusion_hf.evaluation.pairs import draw_smaller
    from stylefusion_hf.evaluation.realism import check_real
    from stylefusion_hf.evaluation.run import SECTIONS

    settings = Settings(seed=args.seed, model=args.model or "the embedded model")
    if args.quick:
        settings = settings.quick_version()
    if args.full:
        settings = replace(settings, limit_pairs=64)
    numbers = ("pairs", "calibration_pairs", "curve_pairs", "global_pairs", "limit_pairs", "limit_steps")
    given = {k: getattr(args, k) for k in (*numbers, "realism_count", "static_gates", "refine_steps")}
    settings = replace(settings, **{k: v for k, v in given.items() if v is not None})
    if args.curve_pairs is not None:
        settings = replace(settings, validation_pairs=max(2, args.curve_pairs // 3))
    if args.validation_pairs is not None:
        settings = replace(settings, validation_pairs=args.validation_pairs)
    if args.methods:
        settings = replace(settings, methods=tuple(dict.fromkeys(split_list(args.methods))))
    if args.swap_rows:
        settings = replace(settings, swap_rows=tuple(split_list(args.swap_rows)))
    out = output_folder(args.out)
    pipe = load_pipeline(args)
    if args.picture_size is not None:
        draw_smaller(pipe.generator, args.picture_size)
    if args.psi is not None:
        if not args.psi > 0:
            raise ValueError(f"--psi {args.psi}: give a truncation above 0; at 0 all pictures are the same")
        # In the config, so that it applies to everything that draws samples, including the methods.
        pipe.generator.register_to_config(truncation_psi=args.psi)
    judges = load_judges(args.judges, pipe.device)
    avatars = draws_avatars(judges)
    real = args.real or ("avatars" if avatars else "none")
    settings = replace(settings, real=None if real == "none" else real)
    backbone = load_backbone(args.backbone, pipe.device) if args.backbone else None
    subject = build_subject(pipe, judges, args.seed, args.batch_size, backbone, args.measuring_size)
    skipped = [] if avatars else ["calibration"]
    skipped += [] if settings.limit_pairs else ["limits"]
    names = split_list(args.sections) if args.sections else [n for n in SECTIONS if n not in skipped]
    if "calibration" in names and not avatars:
        raise ValueError(
            "the section calibration needs judges with a portrait judge for avatars, and"
            f" {install_command('train')}: only avatars can be drawn with the region of another"
        )
    if "realism" in names and settings.real:
        check_real(settings.real, pipe.generator, settings.realism_count)
    evaluate(subject, settings, names, out)
    for file in ("report.md", "report.json", "report.png", "limits.png"):
        if (out / file).exists():
            report_written(Path(out, file))


def split_list(text: str) -> list[str]:
    """Split a comma-separated list: `"a, b,"` -> `["a", "b"]`."""
    return [part.strip() for part in text.split(",") if part.strip()]


def draws_avatars(judges) -> bool:
    """Return whether the judges are for avatars and the avatar renderer is installed."""
    from stylefusion_hf.data.avatars import REGIONS

    installed = all(importlib.util.find_spec(p) is not None for p in ("python_avatars", "resvg_py"))
    of_domain = judges.portrait is not None and judges.portrait.config.domain == "avatars"
    return installed and of_domain and set(judges.segmenter.config.regions) == set(REGIONS)
