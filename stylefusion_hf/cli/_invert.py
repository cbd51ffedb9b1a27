"""Inversion of pictures, for all commands that take pictures as codes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from stylefusion_hf.cli.arguments import number
from stylefusion_hf.cli.outputs import report_written
from stylefusion_hf.core.checks import shown

if TYPE_CHECKING:
    from stylefusion_hf import StyleFusionPipeline


def count(text: str) -> int:
    """Convert an argument that is an integer from 0."""
    if not text.strip().isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"'{shown(text)}' is not an integer from 0 to 999999999")
    return int(text)


def add_inversion_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how picture files become codes."""
    group = parser.add_argument_group("pictures as codes")
    group.add_argument(
        "--optimize", type=count, metavar="STEPS", help="optimization steps from the encoder's guess (default: 0)"
    )
    group.add_argument(
        "--tune",
        type=count,
        metavar="STEPS",
        help="steps of tuning a copy of the generator, which is saved too (default: 0)",
    )
    group.add_argument(
        "--fit",
        choices=("refuse", "crop", "pad"),
        help="what to do with pictures of another shape (default: refuse); use `stylefusion align` for faces",
    )
    group.add_argument(
        "--prior", type=number, help="weight that keeps codes near the generator's own (default: 0.003)"
    )


def inversion_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return those options that were given, as arguments of StyleFusionInversionPipeline."""
    named = {"optimize": "num_inference_steps", "tune": "num_tuning_steps", "fit": "fit", "prior": "prior_weight"}
    given = {call: getattr(args, name) for name, call in named.items() if getattr(args, name) is not None}
    if args.prior is not None and not args.optimize:
        raise ValueError("--prior only affects optimization: give --optimize STEPS too")
    return given


def invert_pictures(pipe: StyleFusionPipeline, call: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Invert all pictures among a pipeline's arguments in one batch; returns the arguments with codes in their place.

    Args:
        pipe: gets the tuned generator, if there is one.
        call: arguments whose codes may be PIL images, or lists with PIL images.
        settings: from `inversion_arguments`; if empty, pictures are left to the pipeline's encoder.
    """
    found: dict[int, Image.Image] = {}

    def collect(value: Any) -> None:
        if isinstance(value, Image.Image):
            found[id(value)] = value
        elif isinstance(value, (list, tuple)):
            for item in value:
                collect(item)
        elif isinstance(value, Mapping):
            for item in value.values():
                collect(item)

    code_arguments = ("base", "regions", "nodes", "global_code")
    collect([call.get(name) for name in code_arguments])
    if not settings:
        return call
    if not found:
        flags = ", ".join("--" + n for n in ("optimize", "tune", "fit", "prior"))
        raise ValueError(f"no code is a picture file, so {flags} have no effect: leave them out")

    from stylefusion_hf import StyleFusionInversionPipeline

    noise = "none" if call.get("noise_mode") in ("none", "random") else "const"
    inversion: Any = StyleFusionInversionPipeline.from_pipe(pipe)
    out = inversion(list(found.values()), noise_mode=noise, **settings)
    print(
        f"inverted {len(found)} pictures: MSE {out.mse.mean():.4f}, feature distance {out.feature_distance.mean():.3f}"
    )
    rows = dict(zip(found, out.codes.rows(), strict=True))
    if out.generator is not None:
        pipe.register_modules(generator=out.generator)

    def replace_pictures(value: Any) -> Any:
        if isinstance(value, Image.Image):
            return rows[id(value)]
        if isinstance(value, (list, tuple)):
            return [replace_pictures(item) for item in value]
        if isinstance(value, Mapping):
            return {name: replace_pictures(item) for name, item in value.items()}
        return value

    return call | {name: replace_pictures(call[name]) for name in code_arguments if name in call}


def save_tuned_generator(pipe: StyleFusionPipeline, folder: Path, settings: Mapping[str, Any]) -> None:
    """Save the tuned generator, if there is one, in `folder`, where `--from-recipe` finds it."""
    if settings.get("num_tuning_steps"):
        from stylefusion_hf.inversion.tuned import save_tuned

        report_written(save_tuned(pipe.generator, folder), "the tuned generator, which the recipe needs")
