"""Serve the Space on this machine: a page with a dial for every region of a picture.

    stylefusion space
    stylefusion space --model my-model --model user/repo --port 8000
    stylefusion space --directions directions.safetensors --host 0.0.0.0

Repeat --model to let visitors choose between models. A Space on the Hub reads STYLEFUSION_MODEL and
STYLEFUSION_DIRECTIONS instead. Requires the extra `space`: pip install '.[space]' in a checkout.
See docs/guides/space.md.
"""

from __future__ import annotations

import argparse

from stylefusion_hf.cli.arguments import add_device_argument, positive
from stylefusion_hf.cli.checks import check_file, check_model, check_named_device, check_port
from stylefusion_hf.core.installing import install_command
from stylefusion_hf.spaces_app import EMBEDDED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    models = parser.add_argument_group("models")
    models.add_argument(
        "--model", action="append", metavar="FOLDER|ID", help="a folder, a Hub id or `embedded` (default: embedded)"
    )
    models.add_argument(
        "--directions", metavar="FILE", help="directions of the first model (default: found at startup)"
    )
    add_device_argument(models)
    server = parser.add_argument_group("server")
    server.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 admits other machines (default: 127.0.0.1)"
    )
    server.add_argument("--port", type=positive, help="port to listen on (default: the first free one from 7860)")


def run(args: argparse.Namespace) -> None:
    check_named_device(args.device)
    for model in args.model or [EMBEDDED]:
        check_model(argparse.Namespace(model=None if model == EMBEDDED else model))
    if args.directions:
        check_file(args.directions, "--directions")
    check_port(args.host, args.port)
    try:
        from stylefusion_hf.spaces_app import app
    except ImportError as error:
        if (error.name or "").split(".")[0] != "gradio":
            raise
        raise ImportError(f"the Space needs gradio: {install_command('space')}") from error
    app.main(args.model or [EMBEDDED], args.device, args.directions, server_name=args.host, server_port=args.port)
