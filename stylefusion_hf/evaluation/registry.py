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
from stylefusion_hf.evaluation.fusion_swaps import (
    REFINE_STEPS,
    MeanCode,
    MeanLook,
    RandomCode,
    RefinedSwap,
    StyleFusionSwap,
)
from stylefusion_hf.evaluation.gates import LearnedGates
from stylefusion_hf.evaluation.masked_swaps import FeatureBlending, PixelPaste
from stylefusion_hf.evaluation.methods import Method

# Constructors from a pipeline and the batch size for fitting.
METHODS: dict[str, Callable[..., Method]] = {
    "stylefusion": lambda pipe, batch: StyleFusionSwap(pipe),
    "stylefusion-wider": lambda pipe, batch: StyleFusionSwap(pipe, wider=True),
    "stylefusion-refined": lambda pipe, batch: RefinedSwap(pipe),
    "mean": lambda pipe, batch: MeanCode(pipe),
    "mean-look": lambda pipe, batch: MeanLook(pipe),
    "random-code": lambda pipe, batch: RandomCode(pipe),
    "interpolation": lambda pipe, batch: ConstantInterpolation(pipe),
    "style-mixing": lambda pipe, batch: StyleMixing(pipe),
    "editing-in-style": lambda pipe, batch: EditingInStyle(pipe, batch=batch),
    "editing-in-style-simultaneous": lambda pipe, batch: EditingInStyle(pipe, form="simultaneous", batch=batch),
    "retrieve-in-style": lambda pipe, batch: RetrieveInStyle(pipe, batch=batch),
    "local-channels": lambda pipe, batch: LocalChannels(pipe, batch=batch),
    "static-gates": lambda pipe, batch: LearnedGates(pipe, chunk_size=batch),
    "feature-blending": lambda pipe, batch: FeatureBlending(pipe),
    "pixel-paste": lambda pipe, batch: PixelPaste(pipe),
}
SLOW = ("stylefusion-refined",)  # only measured where they are asked for
BY_DEFAULT = tuple(name for name in METHODS if name not in SLOW)
RENAMED = {"stranger": "random-code"}  # names that earlier versions had
SOURCE_BLIND = ("mean", "mean-look", "random-code")  # methods that ignore the source
ALWAYS_COMPARED = ("mean", "random-code")  # included in every comparison
SAME_OBJECTIVE = "static-gates-same-objective"  # nets of constant gates, from --static-gates


def build_methods(
    pipe, names: Iterable[str] = BY_DEFAULT, batch: int | None = None, refine_steps: int = REFINE_STEPS
) -> dict[str, Method]:
    """Create methods for a pipeline by name; they are fitted on first use.

    Args:
        batch: batch size for fitting; None chooses one by picture size.
        refine_steps: of the method stylefusion-refined.

    Raises:
        ValueError: an unknown name, or a pipeline without a segmenter.
    """
    names = [RENAMED.get(name, name) for name in names]
    if unknown := [name for name in names if name not in METHODS]:
        raise ValueError(f"unknown method {unknown[0]!r}: choose from {', '.join(METHODS)}")
    if pipe.segmenter is None:
        raise ValueError("this model has no segmenter, which the methods need to locate regions: add segmenter/")
    methods = {name: METHODS[name](pipe, batch) for name in names}
    if "stylefusion-refined" in methods:
        methods["stylefusion-refined"] = RefinedSwap(pipe, refine_steps)
    return methods
