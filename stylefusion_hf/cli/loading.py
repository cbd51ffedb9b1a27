"""Load the pipeline that a command line names, after checking what can be checked without torch."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

from stylefusion_hf.cli import _light
from stylefusion_hf.cli.checks import check_model, check_named_device, check_regions
from stylefusion_hf.core.devices import check_device

if TYPE_CHECKING:
    from stylefusion_hf import StyleFusionPipeline


def check_call(args: argparse.Namespace) -> None:
    """Check a command's device, model and regions before torch is imported.

    Raises:
        ValueError, OSError: no such device or model, or a region that the model does not have.
    """
    check_named_device(args.device)
    check_regions(check_model(args), args)


def load_pipeline(
    args: argparse.Namespace, class_name: str = "StyleFusionPipeline", light: bool = False
) -> StyleFusionPipeline:
    """Load the pipeline that `--model`, `--generator` and `--device` name.

    Args:
        args: parsed arguments.
        class_name: class of a pipeline of this package.
        light: import only the parts of diffusers that pipelines need; the command must not use others.

    Raises:
        ValueError, OSError: no such model, a damaged one, or no such device.
    """
    if light:
        _light.import_diffusers(check_model(args))

    from diffusers.utils import logging

    import stylefusion_hf

    pipeline_class: Any = getattr(stylefusion_hf, class_name)
    device = choose_device(args.device)
    logging.disable_progress_bar()  # components load quickly, and downloads have their own progress bars
    parts = {}
    try:
        if args.generator:
            parts["generator"] = stylefusion_hf.StyleGenerator.from_pretrained(args.generator)
        load = pipeline_class.from_embedded if not args.model else partial(pipeline_class.from_pretrained, args.model)
        pipe = load(**parts)
    finally:
        logging.enable_progress_bar()
    return pipe.to(device)


def choose_device(name: str | None) -> str:
    """Return `name`, or by default cuda if available, else cpu. ValueError for a device that torch cannot use here."""
    try:
        return check_device(name)
    except ValueError as error:
        raise ValueError(f"--device {error}") from error
