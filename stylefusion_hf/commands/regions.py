"""Find a generator's regions, for models that have no segmenter.

    stylefusion regions discover --model MODEL --out regions          # looks at nothing but the generator
    stylefusion regions update regions                                # after editing regions/tree.json
    stylefusion train fusion --model MODEL --regions regions --output_dir runs/fusion

Look at regions/regions.png: samples, tinted by region, and the tree. tree.json holds its names, which you may edit.
"""

from __future__ import annotations

import argparse

from stylefusion_hf.commands._shared import number, output_folder, positive, seed, wrote


def add_arguments(parser: argparse.ArgumentParser) -> None:
    jobs = parser.add_subparsers(dest="job", metavar="JOB", required=True, parser_class=type(parser))
    discover = jobs.add_parser(
        "discover", help="find regions in the generator's features", description="Find regions.", allow_abbrev=False
    )
    discover.add_argument("--model", required=True, metavar="FOLDER|ID", help="a folder or Hub id with generator/")
    discover.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    discover.add_argument("--num-regions", type=positive, help="how many (default: as many as are stable)")
    discover.add_argument("--max-regions", type=positive, default=12, help="at most (default: 12)")
    discover.add_argument("--clusters", type=positive, default=28, help="fine clusters before joining (default: 28)")
    discover.add_argument("--min-area", type=number, default=0.003, help="of a region, a share (default: 0.003)")
    discover.add_argument("--layers", metavar="8,16,32", help="feature maps to read, by their pixels")
    discover.add_argument("--samples", type=positive, default=1500, help="for the segmenters (default: 1500)")
    discover.add_argument("--steps", type=positive, default=500, help="of each segmenter's training (default: 500)")
    discover.add_argument("--seed", type=seed, default=0, help="of samples and clusterings (default: 0)")
    discover.add_argument("--device", help="cpu, cuda ... (default: cuda where there is one, else cpu)")
    update = jobs.add_parser(
        "update", help="take up an edited tree.json", description="Take up an edited tree.json.", allow_abbrev=False
    )
    update.add_argument("folder", metavar="DIR", help="what `regions discover` wrote")


def run(args: argparse.Namespace) -> None:
    from stylefusion_hf.region_folders import find_regions, update_regions

    if args.job == "update":
        tree = update_regions(args.folder)
        wrote(args.folder, f"the regions {', '.join(tree.leaves)}")
        return
    out = new_folder(args.out)
    tree_of = find_regions(
        out,
        load_generator(args.model, args.device),
        args.samples,
        args.steps,
        args.seed,
        num_regions=args.num_regions,
        max_regions=args.max_regions,
        clusters=args.clusters,
        min_area=args.min_area,
        resolutions=layers(args.layers),
    )
    tree = update_regions(tree_of)
    wrote(out / "regions.png")
    wrote(out, str(tree))


def new_folder(path: str):
    """`path`, made; ValueError where it holds anything but regions that this command wrote."""
    folder = output_folder(path)
    if any(folder.iterdir()) and not (folder / "tree.json").is_file():
        raise ValueError(f"{path} is not empty and holds no regions: name a new folder")
    return folder


def layers(text: str | None) -> list[int] | None:
    """`8,16,32` as numbers."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--layers {text}: expected pixels such as 8,16,32") from None


def load_generator(model: str, device: str | None):
    """The generator of a folder or Hub id, frozen."""
    import torch

    from stylefusion_hf import StyleGAN2Generator

    generator = StyleGAN2Generator.from_pretrained(model, subfolder="generator")
    return generator.eval().requires_grad_(False).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
