"""Export a model as static graphs that run without this package: ONNX, or torch.export's .pt2.

Mapping, fusion, synthesis and the segmenter are written as one file each, with a dynamic batch size; export.json
describes their inputs and outputs. Every file is read back and compared with the model before it is put in place.
See docs/reference/export.md.

    stylefusion export --out export
    stylefusion export --model my-model --format torch-export --only synthesis --out synthesis-pt2
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stylefusion_hf.cli.loading import check_call, load_pipeline
from stylefusion_hf.cli.outputs import report_written

FORMATS = ("onnx", "torch-export")
GRAPHS = ("mapping", "fusion", "synthesis", "segmenter")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="(default: onnx)")
    parser.add_argument("--out", default="export", metavar="DIR", help="folder to write (default: export)")
    parser.add_argument("--only", action="append", choices=GRAPHS, help="only this graph; repeatable (default: all)")
    parser.add_argument("--no-check", action="store_true", help="do not compare the files with the model")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument("--model", metavar="FOLDER|ID", help="a folder or a Hub id (default: the embedded model)")
    # Graphs have no device; they are traced and compared on the CPU.
    parser.set_defaults(device="cpu", generator=None)


def run(args: argparse.Namespace) -> None:
    check_call(args)

    from stylefusion_hf.export.description import check_target, table
    from stylefusion_hf.export.graph_files import check_packages
    from stylefusion_hf.export.graphs import TOLERANCE, export

    # Check everything that can be checked before a model is downloaded.
    out, checked = Path(args.out), not args.no_check
    sources = [Path(args.model)] if args.model and Path(args.model).is_dir() else []
    check_packages(args.format, checked)
    check_target(out, args.overwrite, sources)
    exported = export(
        load_pipeline(args),
        out,
        args.format,
        only=args.only,
        checked=checked,
        overwrite=args.overwrite,
        sources=sources,
        progress=True,
    )
    print(table(exported))
    if checked:
        print(f"each compared with the model at batch sizes 1 and 3; allowed: {TOLERANCE:g} of the standard deviation")
    else:
        print("--no-check: not compared with the model")
    report_written(out, f"{', '.join(item.name for item in exported)} and export.json")
