"""Find a generator's regions without a segmenter: unsupervised, or from a few painted samples.

    stylefusion regions discover --model MODEL --out regions          # uses the generator only
    stylefusion regions label --model MODEL --out regions --region sky --region road --region car
    stylefusion regions update regions                                # after editing regions/tree.json
    stylefusion train fusion --model MODEL --regions regions --output_dir runs/fusion

regions/regions.png shows samples tinted by region, and the tree. You may edit the names in tree.json. `label` opens a
page to paint on; with --learn it learns from regions/painted as it is, which any other program may have painted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stylefusion_hf.cli.arguments import add_device_argument, number, positive, seed
from stylefusion_hf.cli.checks import check_model, check_named_device, check_port
from stylefusion_hf.cli.loading import choose_device
from stylefusion_hf.cli.outputs import output_folder, report_written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    jobs = parser.add_subparsers(dest="job", metavar="JOB", required=True, parser_class=type(parser))
    discover = jobs.add_parser(
        "discover", help="find regions in the generator's features", description="Find regions.", allow_abbrev=False
    )
    discover.add_argument("--num-regions", type=positive, help="number of regions (default: as many as are stable)")
    discover.add_argument("--max-regions", type=positive, default=12, help="maximum number of regions (default: 12)")
    discover.add_argument("--clusters", type=positive, default=28, help="clusters before merging (default: 28)")
    discover.add_argument("--min-area", type=number, default=0.003, help="minimum share of the area (default: 0.003)")
    discover.add_argument("--layers", metavar="8,16,32", help="feature maps to use, by their resolutions")
    label = jobs.add_parser(
        "label", help="paint regions on a few samples", description="Paint regions on a page.", allow_abbrev=False
    )
    label.add_argument("--region", action="append", metavar="NAME", help="a region to paint; repeatable")
    label.add_argument("--count", type=positive, default=8, help="samples to paint on (default: 8)")
    what = label.add_mutually_exclusive_group()
    what.add_argument("--learn", action="store_true", help="no page: learn from DIR/painted and write the regions")
    what.add_argument("--only-samples", action="store_true", help="no page: write samples to DIR/painted for painting")
    label.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    label.add_argument("--port", type=positive, default=7861, help="port to listen on (default: 7861)")
    label.add_argument("--no-browser", action="store_true", help="do not open a browser")
    for job in (discover, label):
        job.add_argument("--model", required=True, metavar="FOLDER|ID", help="a folder or Hub id with generator/")
        job.add_argument("--out", required=True, metavar="DIR", help="a new folder, or one from this command")
        job.add_argument(
            "--resolution", type=positive, help="picture size to work at (default: 128 for generators above 256 px)"
        )
        job.add_argument(
            "--samples", type=positive, help="samples for the segmenters (default: 1500; 240 above 256 px)"
        )
        job.add_argument("--steps", type=positive, help="steps per segmenter (default: 500; 150 above 256 px)")
        job.add_argument("--seed", type=seed, default=0, help="seed for samples and clustering (default: 0)")
        add_device_argument(job, "cpu, cuda ...")
    update = jobs.add_parser(
        "update", help="apply an edited tree.json", description="Apply an edited tree.json.", allow_abbrev=False
    )
    update.add_argument("folder", metavar="DIR", help="folder written by `regions discover` or `regions label`")


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
    report_written(args.folder, f"the regions {', '.join(tree.leaves)}")


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
        resolution=args.resolution,
    )
    _report_regions(out)


def _label(args: argparse.Namespace) -> None:
    from stylefusion_hf.regions.few_shot import PaintFolder, learn
    from stylefusion_hf.regions.folders import write_found

    out = _new_folder(args.out)
    if args.learn:
        paint, generator = PaintFolder(out / "painted"), _generator(args)
        found = learn(generator, paint)
        write_found(out, generator, found, args.samples, args.steps, args.seed, resolution=args.resolution)
        _report_regions(out)
        return
    if (out / "painted" / "dataset.json").is_file() and not args.region:
        args.region = PaintFolder(out / "painted").regions
    if not args.region or len(args.region) < 2:
        raise ValueError("name the regions to paint: --region sky --region car ... (two or more)")
    if args.only_samples:
        paint = PaintFolder.create(out / "painted", _generator(args), args.region, args.count)
        report_written(
            paint.root, f"{len(paint.seeds)} samples; in labels/ paint 0 to {len(paint.regions) - 1}, then --learn"
        )
        return
    from stylefusion_hf.regions import label_page

    how = {"host": args.host, "port": args.port, "open_browser": not args.no_browser, "resolution": args.resolution}
    label_page.label(_generator(args), args.region, args.count, out, args.samples, args.steps, args.seed, **how)


def _report_regions(out: Path) -> None:
    from stylefusion_hf.regions.folders import update_regions

    tree = update_regions(out)
    report_written(out / "regions.png")
    report_written(out, str(tree))


def _new_folder(path: str) -> Path:
    """Create the folder `path`; ValueError if it contains anything that this command did not write."""
    folder = output_folder(path)
    ours = (folder / "tree.json").is_file() or (folder / "painted").is_dir()
    if any(folder.iterdir()) and not ours:
        raise ValueError(f"{path} is not empty and holds no regions: name a new folder")
    return folder


def _layers(text: str | None) -> list[int] | None:
    """Parse a list of resolutions: `8,16,32`."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--layers {text}: expected resolutions such as 8,16,32") from None


def _generator(args: argparse.Namespace):
    """Load the generator of --model on --device, frozen."""
    from stylefusion_hf import StyleGenerator

    device = choose_device(args.device)
    return StyleGenerator.from_pretrained(args.model, subfolder="generator").eval().requires_grad_(False).to(device)
