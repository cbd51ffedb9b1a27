"""Every method by name, for `stylefusion evaluate --methods a,b,c`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from stylefusion_hf.evaluation.baselines import (
    ConstantInterpolation,
    EditingInStyle,
    LocalChannels,
    RetrieveInStyle,
    StyleMixing,
)
from stylefusion_hf.evaluation.fusion_swaps import MeanCode, MeanLook, StrangerCode, StyleFusionSwap
from stylefusion_hf.evaluation.gates import LearnedGates
from stylefusion_hf.evaluation.masked_swaps import FeatureBlending, PixelPaste
from stylefusion_hf.evaluation.methods import Method

# From a pipeline and how many pictures it may render at once while fitting.
METHODS: dict[str, Callable[..., Method]] = {
    "stylefusion": lambda pipe, batch: StyleFusionSwap(pipe),
    "stylefusion-wider": lambda pipe, batch: StyleFusionSwap(pipe, wider=True),
    "mean": lambda pipe, batch: MeanCode(pipe),
    "mean-look": lambda pipe, batch: MeanLook(pipe),
    "stranger": lambda pipe, batch: StrangerCode(pipe),
    "interpolation": lambda pipe, batch: ConstantInterpolation(pipe),
    "style-mixing": lambda pipe, batch: StyleMixing(pipe),
    "editing-in-style": lambda pipe, batch: EditingInStyle(pipe, batch=batch),
    "editing-in-style-simultaneous": lambda pipe, batch: EditingInStyle(pipe, form="simultaneous", batch=batch),
    "retrieve-in-style": lambda pipe, batch: RetrieveInStyle(pipe, batch=batch),
    "local-channels": lambda pipe, batch: LocalChannels(pipe, batch=batch),
    "static-gates": lambda pipe, batch: LearnedGates(pipe, at_once=batch),
    "feature-blending": lambda pipe, batch: FeatureBlending(pipe),
    "pixel-paste": lambda pipe, batch: PixelPaste(pipe),
}
IGNORING = ("mean", "mean-look", "stranger")  # what a method reads that ignores the source
ALWAYS = ("mean", "stranger")  # in every comparison, whatever methods are asked for
TRAINED_ALIKE = "static-gates-trained-alike"  # nets of constant gates, from --static-gates


def build_methods(pipe, names: Iterable[str] = METHODS, batch: int | None = None) -> dict[str, Method]:
    """Methods of a pipeline by name, not fitted yet.

    batch: pictures that a method may render at once while fitting; None: what their size allows.

    Raises:
        ValueError: an unknown name (lists them), or a pipeline without a segmenter.
    """
    names = list(names)
    if unknown := [name for name in names if name not in METHODS]:
        raise ValueError(f"unknown method {unknown[0]!r}: choose from {', '.join(METHODS)}")
    if pipe.segmenter is None:
        raise ValueError("this model has no segmenter, so no method can tell where a region is")
    return {name: METHODS[name](pipe, batch) for name in names}
