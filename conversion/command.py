"""Convert a StyleGAN2, StyleGAN3 or MobileStyleGAN of any known format into a folder for this package and diffusers.

    stylefusion convert ffhq.pkl converted/ffhq --with-discriminator
    stylefusion convert weights/ffhq_weights.json converted/ffhq --generator stylegan2-ffhq-config-f.pt
    stylefusion convert random_face-2021.7.21.1-py3-none-any.whl converted/faces
    stylefusion convert interfacegan/boundaries converted/directions

Nothing in a checkpoint is executed, and nothing is uploaded. See docs/reference/convert.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

KINDS = ("auto", "nvidia", "tensorflow", "rosinality", "e4e", "mobilestylegan", "stylefusion", "directions")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        type=Path,
        help="the checkpoint, JSON of nets, directions, or OpenVINO networks (wheel, folder or .xml)",
    )
    parser.add_argument("destination", metavar="DEST", type=Path, help="the folder to write")
    parser.add_argument("--kind", choices=KINDS, default="auto", help="the kind of SOURCE (default: detected)")
    parser.add_argument("--with-discriminator", action="store_true", help="also convert the discriminator")
    parser.add_argument(
        "--dtype", choices=("fp32", "fp16"), default="fp32", help="fp16 adds an fp16 variant to the float32 files"
    )
    parser.add_argument("--psi", type=float, metavar="NUMBER", help="the model's default truncation")
    parser.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="split weights larger than this (default: 5GB)"
    )
    parser.add_argument(
        "--previews",
        type=_previews,
        metavar="128,256|none",
        help="fit preview heads of these sizes to a MobileStyleGAN, in half a minute (default: 128,256 below its own"
        " size), or to a StyleGAN3 (default: none)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DEST if it is not empty")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    check = parser.add_argument_group("check")
    check.add_argument(
        "--reference",
        type=Path,
        metavar="FILE",
        help="outputs of the original to compare with: a .safetensors file, or the .png of a seed",
    )
    check.add_argument(
        "--reference-seed", type=int, metavar="N", help="seed of the .png, if its name does not contain it"
    )
    check.add_argument(
        "--reference-class", type=int, metavar="N", help="class of the .png, for a class-conditional model"
    )
    nets = parser.add_argument_group("fusion nets and directions")
    nets.add_argument(
        "--generator",
        type=Path,
        metavar="PATH",
        help="for fusion nets, the generator's checkpoint; for directions, the converted model",
    )
    nets.add_argument(
        "--tree",
        metavar="TREE",
        help="region tree if the JSON is ambiguous: ffhq, car, church, a tree's text or .json file",
    )
    nets.add_argument(
        "--space", choices=("z", "w", "w+", "s"), help="space of the directions, if their files are ambiguous"
    )
    nets.add_argument("--layers", metavar="0-3,7", help="rows of w+ that the directions apply to")


def run(args: argparse.Namespace) -> None:
    from stylefusion_hf.conversion.convert import convert
    from stylefusion_hf.conversion.report import next_step, printable

    report = convert(
        args.source,
        args.destination,
        kind=args.kind,
        generator=args.generator,
        with_discriminator=args.with_discriminator,
        dtype=args.dtype,
        truncation_psi=args.psi,
        tree=args.tree,
        space=args.space,
        layers=_rows(args.layers),
        reference=args.reference,
        reference_seed=args.reference_seed,
        reference_class=args.reference_class,
        previews=args.previews,
        overwrite=args.overwrite,
        max_shard_size=args.max_shard_size,
        progress=not args.no_progress,
    )
    print(printable(f"converted {args.source} to {args.destination}"))
    print(report.table())
    print(printable(f"next: {next_step(report, str(args.destination))}"))
    if report.mismatches:
        raise ValueError(
            f"{args.destination} was written, but differs from {args.reference} in {'; '.join(report.mismatches)}"
        )


def _previews(text: str) -> tuple[int, ...]:
    """Parse sizes: "128,256" -> (128, 256); "none" -> ()."""
    if text == "none":
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 6 for part in parts):
        raise argparse.ArgumentTypeError(f"expected sizes such as 128,256, or none; got {text[:80]!r}")
    return tuple(map(int, parts))


def _rows(text: str | None) -> list[int] | None:
    """Parse rows of w+: "0-3,7" -> [0, 1, 2, 3, 7]."""
    if text is None:
        return None
    rows: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not first.isdecimal() or not last.isdecimal() or not int(first) <= int(last) <= 64:
            raise ValueError(f"--layers: expected rows such as 0-3,7, got {text!r}")
        rows += range(int(first), int(last) + 1)
    return sorted(set(rows))
