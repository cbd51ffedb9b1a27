"""The command line: `stylefusion COMMAND ...`.

A command is a module with `add_arguments(parser)` and `run(args)`, listed in COMMANDS. It is imported only for its own
command, and imports torch and diffusers only in `run`, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from stylefusion_hf import __version__
from stylefusion_hf.core.checks import shown
from stylefusion_hf.core.command_line import run

# command -> the module that implements it, and its line in `stylefusion --help`
COMMANDS = {
    "sheet": ("stylefusion_hf.cli.sheet", "draw a contact sheet with each region swapped in turn"),
    "fuse": ("stylefusion_hf.cli.fuse", "fuse one picture from a code per region"),
    "invert": ("stylefusion_hf.cli.invert", "find the codes of real pictures"),
    "interpolate": ("stylefusion_hf.cli.interpolate", "walk from code to code: an animation in which regions change"),
    "align": ("stylefusion_hf.cli.align", "crop faces from photographs by their landmarks, as FFHQ does"),
    "convert": ("stylefusion_hf.conversion.command", "turn a StyleGAN2 or StyleFusion checkpoint into a folder"),
    "export": ("stylefusion_hf.cli.export", "write a model as ONNX or torch.export graphs"),
    "edit": ("stylefusion_hf.cli.edit", "change one region along a direction, such as its color or size"),
    "edit-photo": ("stylefusion_hf.cli.edit_photo", "change regions of the face in a photograph, and keep the rest"),
    "directions": ("stylefusion_hf.cli.directions", "find directions of a generator and draw their effects"),
    "render": ("stylefusion_hf.cli.render", "render many pictures with their masks from a file of recipes"),
    "data": ("stylefusion_hf.cli.data", "make training data: avatars with exact region maps"),
    "regions": ("stylefusion_hf.cli.regions", "find a generator's regions without labels, or with a few"),
    "train": ("stylefusion_hf.cli.train", "train a generator, a segmenter, fusion nets, an encoder or judges"),
    "evaluate": ("stylefusion_hf.cli.evaluate", "measure a model and compare it with other methods"),
    "publish": ("stylefusion_hf.cli.publish", "upload a model to the Hugging Face Hub, with its card"),
    "space": ("stylefusion_hf.spaces_app.command", "serve a web page with a dial for every region"),
    "env": ("stylefusion_hf.cli.env", "show versions, devices and the embedded model"),
}

MAX_ERROR = 1000  # characters of an error message


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that reports errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"stylefusion: error: {shown(' '.join(message.split()), MAX_ERROR)} (see {self.prog} --help)\n")


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Build the parser of the whole command line; of the commands, only `command` gets its arguments."""
    parser = Parser(
        prog="stylefusion",
        description="One latent code per region, fused into one harmonious picture.",
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
    """Run one command. Returns 0, or 2 after one line on stderr for bad input; other errors are raised."""
    if argv is None:  # called as the command `stylefusion`, not by another program
        from stylefusion_hf.cli import _light

        _light.own_process = True
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv:
        build_parser().print_help(sys.stderr)
        return 2

    def command() -> None:
        args = build_parser(argv[0]).parse_args(argv)
        args.run(args)

    return run(command)
