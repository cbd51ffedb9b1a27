"""Find a generator's regions, for models that have no segmenter: without labels, or from a few painted samples.

    stylefusion regions discover --model MODEL --out regions          # looks at nothing but the generator
    stylefusion regions label --model MODEL --out regions --region sky --region road --region car
    stylefusion regions update regions                                # after editing regions/tree.json
    stylefusion train fusion --model MODEL --regions regions --output_dir runs/fusion

Look at regions/regions.png: samples, tinted by region, and the tree. tree.json holds its names, which you may edit.
`label` opens a page to paint on; with --learn it learns from regions/painted as it is, which any program can paint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stylefusion_hf.cli._checks import check_model, check_named_device, check_port
from stylefusion_hf.cli._shared import (
    add_device_argument,
    chosen_device,
    number,
    output_folder,
    positive,
    seed,
    wrote,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    jobs = parser.add_subparsers(dest="job", metavar="JOB", required=True, parser_class=type(parser))
    discover = jobs.add_parser(
        "discover", help="find regions in the generator's features", description="Find regions.", allow_abbrev=False
    )
    discover.add_argument("--num-regions", type=positive, help="how many (default: as many as are stable)")
    discover.add_argument("--max-regions", type=positive, default=12, help="at most (default: 12)")
    discover.add_argument("--clusters", type=positive, default=28, help="fine clusters before joining (default: 28)")
    discover.add_argument("--min-area", type=number, default=0.003, help="of a region, a share (default: 0.003)")
    discover.add_argument("--layers", metavar="8,16,32", help="feature maps to read, by their pixels")
    label = jobs.add_parser(
        "label", help="paint regions on a few samples", description="Paint regions on a page.", allow_abbrev=False
    )
    label.add_argument("--region", action="append", metavar="NAME", help="repeat it for each region")
    label.add_argument("--count", type=positive, default=8, help="samples to paint on (default: 8)")
    what = label.add_mutually_exclusive_group()
    what.add_argument("--learn", action="store_true", help="no page: learn from DIR/painted and write the regions")
    what.add_argument("--only-samples", action="store_true", help="no page: write DIR/painted, to paint elsewhere")
    label.add_argument("--host", default="127.0.0.1", help="(default: 127.0.0.1: this machine alone)")
    label.add_argument("--port", type=positive, default=7861, help="(default: 7861)")
    label.add_argument("--no-browser", action="store_true", help="do not open a browser")
    for job in (discover, label):
        job.add_argument("--model", required=True, metavar="FOLDER|ID", help="a folder or Hub id with generator/")
        job.add_argument("--out", required=True, metavar="DIR", help="a new folder, or one of this command")
        job.add_argument("--samples", type=positive, default=1500, help="for the segmenters (default: 1500)")
        job.add_argument("--steps", type=positive, default=500, help="of each segmenter's training (default: 500)")
        job.add_argument("--seed", type=seed, default=0, help="of samples and clusterings (default: 0)")
        add_device_argument(job, "cpu, cuda ...")
    update = jobs.add_parser(
        "update", help="take up an edited tree.json", description="Take up an edited tree.json.", allow_abbrev=False
    )
    update.add_argument("folder", metavar="DIR", help="what `regions discover` or `label` wrote")


def run(args: argparse.Namespace) -> None:
    if args.job != "update":
        check_named_device(args.device)
        check_model(args, "generator/config.json")
    if args.job == "label" and not (args.learn or args.only_samples):
        check_port(args.host, args.port)
    {"discover": _discover, "label": _label, "update": _update}[args.job](args)


def _update(args: argparse.Namespace) -> None:
    from stylefusion_hf.regions.folders import update_regions

    tree = update_regions(args.folder)
    wrote(args.folder, f"the regions {', '.join(tree.leaves)}")


def _discover(args: argparse.Namespace) -> None:
    from stylefusion_hf.regions.folders import find_regions

    out = _new_folder(args.out)
    find_regions(
        out,
        _generator(args),
        args.samples,
        args.steps,
        args.seed,
        num_regions=args.num_regions,
        max_regions=args.max_regions,
        clusters=args.clusters,
        min_area=args.min_area,
        resolutions=_layers(args.layers),
    )
    _written(out)


def _label(args: argparse.Namespace) -> None:
    from stylefusion_hf.regions.few_shot import PaintFolder, learn
    from stylefusion_hf.regions.folders import write_found

    out = _new_folder(args.out)
    if args.learn:
        paint, generator = PaintFolder(out / "painted"), _generator(args)
        write_found(out, generator, learn(generator, paint), args.samples, args.steps, args.seed)
        _written(out)
        return
    if (out / "painted" / "dataset.json").is_file() and not args.region:
        args.region = PaintFolder(out / "painted").regions
    if not args.region or len(args.region) < 2:
        raise ValueError("name the regions to paint: --region sky --region car ... (two or more)")
    if args.only_samples:
        paint = PaintFolder.create(out / "painted", _generator(args), args.region, args.count)
        wrote(paint.root, f"{len(paint.seeds)} samples; in labels/ paint 0 to {len(paint.regions) - 1}, then --learn")
        return
    from stylefusion_hf.regions import label_page

    how = {"host": args.host, "port": args.port, "open_browser": not args.no_browser}
    label_page.label(_generator(args), args.region, args.count, out, args.samples, args.steps, args.seed, **how)


def _written(out: Path) -> None:
    from stylefusion_hf.regions.folders import update_regions

    tree = update_regions(out)
    wrote(out / "regions.png")
    wrote(out, str(tree))


def _new_folder(path: str) -> Path:
    """`path`, made; ValueError where it holds anything but what this command wrote."""
    folder = output_folder(path)
    ours = (folder / "tree.json").is_file() or (folder / "painted").is_dir()
    if any(folder.iterdir()) and not ours:
        raise ValueError(f"{path} is not empty and holds no regions: name a new folder")
    return folder


def _layers(text: str | None) -> list[int] | None:
    """`8,16,32` as numbers."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--layers {text}: expected pixels such as 8,16,32") from None


def _generator(args: argparse.Namespace):
    """The generator of --model on --device, frozen."""
    from stylefusion_hf import StyleGenerator

    device = chosen_device(args.device)
    return StyleGenerator.from_pretrained(args.model, subfolder="generator").eval().requires_grad_(False).to(device)
