"""The command line: `stylefusion COMMAND ...`.

A command is a module with `add_arguments(parser)` and `run(args)`, listed in COMMANDS. It is imported only when its
command is named, and imports torch and diffusers only in `run`, so that every `--help` is instant.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from stylefusion_hf import __version__

# command -> the module that implements it, and what `stylefusion --help` says of it
COMMANDS = {
    "sheet": ("stylefusion_hf.cli.sheet", "draw a contact sheet: every region swapped by its own code"),
    "fuse": ("stylefusion_hf.cli.fuse", "fuse one picture from a code per region"),
    "invert": ("stylefusion_hf.cli.invert", "find codes of real pictures"),
    "interpolate": ("stylefusion_hf.cli.interpolate", "walk from code to code: a film in which regions change"),
    "align": ("stylefusion_hf.cli.align", "cut faces out of photographs by their landmarks, as FFHQ does"),
    "convert": ("stylefusion_hf.conversion.command", "turn a StyleGAN2 or StyleFusion checkpoint into a folder"),
    "export": ("stylefusion_hf.cli.export", "write a model as ONNX or torch.export graphs"),
    "edit": ("stylefusion_hf.cli.edit", "change one region along a direction, such as its colour or size"),
    "directions": ("stylefusion_hf.cli.directions", "find directions of a generator, and draw what they do"),
    "render": ("stylefusion_hf.cli.render", "render a file of recipes: many pictures with their masks"),
    "data": ("stylefusion_hf.cli.data", "make training data: avatars with exact region maps"),
    "regions": ("stylefusion_hf.cli.regions", "find a generator's regions, without labels or with a few"),
    "train": ("stylefusion_hf.cli.train", "train a generator, a segmenter, fusion nets, an encoder or judges"),
    "evaluate": ("stylefusion_hf.cli.evaluate", "measure a model, and other methods on the same pairs"),
    "publish": ("stylefusion_hf.cli.publish", "upload a model to the Hugging Face Hub, with its card"),
    "space": ("stylefusion_hf.spaces_app.command", "serve a page with a dial for every region"),
    "env": ("stylefusion_hf.cli.env", "show versions, devices and the embedded model"),
}

# What bad input raises, here and in the libraries below; anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"stylefusion: error: {message} (see {self.prog} --help)\n")


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of the whole command line; only `command`, where it is one, gets its own arguments."""
    parser = Parser(
        prog="stylefusion",
        description="One latent code per region, fused into one harmonised picture.",
        epilog="`stylefusion COMMAND --help` explains a command. STYLEFUSION_DEBUG=1 shows where an error comes from.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"stylefusion-hf {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name, (module, summary) in COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=summary,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == command:
            implementation = import_module(module)
            subparser.description = (implementation.__doc__ or summary).strip()
            implementation.add_arguments(subparser)
            subparser.set_defaults(run=implementation.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0, or 2 after one line on stderr for bad input. Other errors are raised."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv:
        build_parser().print_help(sys.stderr)
        return 2
    try:
        args = build_parser(argv[0]).parse_args(argv)
        args.run(args)
        sys.stdout.flush()  # a closed pipe shows here rather than at exit
    except BrokenPipeError:  # `stylefusion env | head -1`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("\nstylefusion: interrupted", file=sys.stderr)
        return 130
    except USER_ERRORS as error:
        if os.environ.get("STYLEFUSION_DEBUG", "0") not in ("", "0"):
            raise
        print(f"stylefusion: error: {describe(error)}", file=sys.stderr)
        return 2
    return 0


def describe(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"  # without "[Errno 2]"
    return " ".join(str(error).split()) or type(error).__name__
