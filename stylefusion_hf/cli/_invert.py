"""What commands that take pictures share: how pictures become codes, and what is written beside the result."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from stylefusion_hf.cli._shared import number, wrote
from stylefusion_hf.core.checks import shown

if TYPE_CHECKING:
    from stylefusion_hf import StyleFusionPipeline


def count(text: str) -> int:
    """An argument that is an integer from 0."""
    if not text.strip().isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"'{shown(text)}' is no integer from 0 to 999999999")
    return int(text)


def add_inversion_arguments(parser: argparse.ArgumentParser) -> None:
    """How picture files become codes."""
    group = parser.add_argument_group("pictures as codes")
    group.add_argument("--optimize", type=count, metavar="STEPS", help="improve the encoder's guess (default: 0)")
    group.add_argument(
        "--tune",
        type=count,
        metavar="STEPS",
        help="then tune a copy of the generator, which is saved too (default: 0)",
    )
    group.add_argument(
        "--fit",
        choices=("refuse", "crop", "pad"),
        help="what happens to pictures that are not square (default: refuse); faces want `stylefusion align`",
    )
    group.add_argument("--prior", type=number, help="how firmly codes stay near the generator's own (default: 0.003)")


def inversion_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """What was given of these, as arguments of StyleFusionInversionPipeline."""
    named = {"optimize": "num_inference_steps", "tune": "num_tuning_steps", "fit": "fit", "prior": "prior_weight"}
    given = {call: getattr(args, name) for name, call in named.items() if getattr(args, name) is not None}
    if args.prior is not None and not args.optimize:
        raise ValueError("--prior says how codes are optimised: give --optimize STEPS too")
    return given


def invert_pictures(pipe: StyleFusionPipeline, call: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A pipeline's arguments with every picture inverted, all of them together.

    Args:
        pipe: takes the tuned generator, where there is one.
        call: arguments whose codes may be PIL images, or lists that have some.
        settings: as from `inversion_arguments`; where it is empty, pictures are left to the pipeline's encoder.
    """
    found: dict[int, Image.Image] = {}

    def look(value: Any) -> None:
        if isinstance(value, Image.Image):
            found[id(value)] = value
        elif isinstance(value, (list, tuple)):
            for item in value:
                look(item)
        elif isinstance(value, Mapping):
            for item in value.values():
                look(item)

    codes_of = ("base", "regions", "nodes", "global_code")
    look([call.get(name) for name in codes_of])
    if not settings:
        return call
    if not found:
        flags = ", ".join("--" + n for n in ("optimize", "tune", "fit", "prior"))
        raise ValueError(f"no code is a picture file, so that {flags} have no effect: leave them out")

    from stylefusion_hf import StyleFusionInversionPipeline

    noise = "none" if call.get("noise_mode") in ("none", "random") else "const"
    out: Any = StyleFusionInversionPipeline.from_pipe(pipe)(list(found.values()), noise_mode=noise, **settings)
    print(
        f"inverted {len(found)} pictures: MSE {out.mse.mean():.4f}, feature distance {out.feature_distance.mean():.3f}"
    )
    rows = dict(zip(found, out.codes.rows(), strict=True))
    if out.generator is not None:
        pipe.register_modules(generator=out.generator)

    def replaced(value: Any) -> Any:
        if isinstance(value, Image.Image):
            return rows[id(value)]
        if isinstance(value, (list, tuple)):
            return [replaced(item) for item in value]
        if isinstance(value, Mapping):
            return {name: replaced(item) for name, item in value.items()}
        return value

    return call | {name: replaced(call[name]) for name in codes_of if name in call}


def save_beside(pipe: StyleFusionPipeline, folder: Path, settings: Mapping[str, Any]) -> None:
    """The tuned generator, where there is one, into `folder`, where `--from-recipe` finds it."""
    if settings.get("num_tuning_steps"):
        from stylefusion_hf.inversion.tuned import save_tuned

        wrote(save_tuned(pipe.generator, folder), "the tuned generator, which the recipe needs")
