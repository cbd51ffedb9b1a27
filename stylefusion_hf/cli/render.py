"""Render recipes in bulk: pictures with their masks, as WebDataset tar files or Parquet files.

RECIPES has one recipe per line, as JSON, such as `stylefusion fuse --recipe` and pipelines produce. If interrupted,
the same command line continues where it stopped. To use several processes or machines, run
`accelerate launch -m stylefusion_hf.cli render` with the same arguments.

    stylefusion render recipes.jsonl --out pictures
    stylefusion render --random 1000000 --seed 0 --format parquet --out pictures
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stylefusion_hf.cli.arguments import add_model_arguments, positive, seed
from stylefusion_hf.cli.checks import check_file
from stylefusion_hf.cli.loading import check_call, load_pipeline
from stylefusion_hf.cli.outputs import report_written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("recipes")
    what.add_argument("recipes", nargs="?", metavar="RECIPES", help="a file of recipes in JSON Lines format")
    what.add_argument("--random", type=positive, metavar="N", help="render N random recipes instead of a file")
    what.add_argument("--seed", type=seed, help="seed of --random (default: 0)")
    what.add_argument("--any-model", action="store_true", help="accept recipes that were written with other weights")
    files = parser.add_argument_group("files")
    files.add_argument("--out", required=True, metavar="DIR", help="folder for the shards and dataset.json")
    files.add_argument("--format", choices=("tar", "parquet"), default="tar", help="shard format (default: tar)")
    files.add_argument(
        "--shard-size", type=positive, default=1000, metavar="N", help="pictures per shard (default: 1000)"
    )
    files.add_argument("--no-masks", action="store_true", help="leave out the label maps of the regions")
    parser.add_argument("--batch-size", type=positive, default=8, help="pictures per batch (default: 8)")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
    if (args.recipes is None) == (args.random is None):
        raise ValueError("give either a file of recipes or --random N")
    if args.seed is not None and args.random is None:
        raise ValueError("--seed goes with --random: a file of recipes has its own seeds")

    if args.recipes is not None:
        check_file(args.recipes, "the recipes")
    check_call(args)

    from accelerate import Accelerator

    from stylefusion_hf.export.rendering import RandomRecipes, RecipeFile, Source, render
    from stylefusion_hf.export.shards import check_format

    check_format(args.format)
    if args.recipes is not None:
        RecipeFile(Path(args.recipes)).check()  # before the model is loaded
    accelerator = Accelerator()
    if accelerator.num_processes > 1 and args.device is None:
        args.device = str(accelerator.device)
    pipe = load_pipeline(args)
    pipe.set_progress_bar_config(disable=True)
    source: Source
    if args.recipes is not None:
        source = RecipeFile(Path(args.recipes))
    else:
        source = RandomRecipes(args.random, args.seed or 0, pipe.fusion.tree)
    done = render(
        pipe,
        source,
        args.out,
        kind=args.format,
        shard_size=args.shard_size,
        batch_size=args.batch_size,
        masks=not args.no_masks,
        any_model=args.any_model,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    if accelerator.is_main_process:
        speed = f"{done.pictures:,} rendered, {done.rate:.1f} images/s" if done.pictures else "all existed before"
        shards = f"{done.shards:,} shard" + "s" * (done.shards != 1)
        report_written(args.out, f"{shards}; {speed}")
    accelerator.end_training()
