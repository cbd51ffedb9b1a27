"""What the pipelines return."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput

from stylefusion_hf.core.codes import Code
from stylefusion_hf.models.style_generator import StyleGenerator


@dataclass
class StyleFusionPipelineOutput(BaseOutput):
    """Pictures, and what they were made from.

    Args:
        images: a list of PIL images; an array (B, H, W, C) or a tensor (B, C, H, W) of numbers in [0, 1]; or, with
            `output_type="latent"`, the style codes.
        style_codes: the fused codes, (B, S), float32.
        recipe: JSON-able; `pipe.from_recipe(recipe)` makes the pictures again.
        masks: region -> (B, H, W), bool: where the segmenter sees it. Every pixel belongs to one region. None unless
            asked for.
    """

    images: Any  # its type is the caller's choice
    style_codes: torch.Tensor
    recipe: dict[str, Any]
    masks: dict[str, torch.Tensor] | None = None


@dataclass
class StyleFusionInterpolationPipelineOutput(BaseOutput):
    """The frames of a walk, and what they were made from.

    Args:
        frames: a list of PIL images; an array (F, H, W, C) or a tensor (F, C, H, W) of numbers in [0, 1]; or, with
            `output_type="latent"`, the style codes.
        style_codes: the fused codes, (F, S), float32.
        keyframes: the frame on each keyframe.
        recipe: of the keyframes, JSON-able; `StyleFusionPipeline.from_recipe(recipe)` makes their pictures.
    """

    frames: Any  # its type is the caller's choice
    style_codes: torch.Tensor
    keyframes: list[int]
    recipe: dict[str, Any]


@dataclass
class StyleFusionInversionPipelineOutput(BaseOutput):
    """Codes of given pictures.

    Args:
        images: the pictures of the codes: a list of PIL images, an array or a tensor in [0, 1]; or, with
            `output_type="latent"`, the style codes (B, S).
        codes: a `Code` of B rows, in the space that was asked for.
        mse: (B,), the mean squared error of these pictures, in units of [-1, 1].
        feature_distance: (B,), how unlike the given pictures they look: `features.map_distance`.
        steps: (B,), of optimisation that each picture took.
        generator: the tuned copy; None without tuning.
    """

    images: Any  # its type is the caller's choice
    codes: Code
    mse: torch.Tensor
    feature_distance: torch.Tensor
    steps: torch.Tensor
    generator: StyleGenerator | None = None
