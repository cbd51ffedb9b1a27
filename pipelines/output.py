"""Output classes of the pipelines."""

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import torch
from diffusers.utils import BaseOutput

from stylefusion_hf.core.codes import Code
from stylefusion_hf.imaging.photographs import Photograph
from stylefusion_hf.models.style_generator import StyleGenerator

OutputType: TypeAlias = Literal["pil", "np", "pt", "latent"]
Pictures = TypeVar("Pictures")  # list of PIL images, array or tensor, by `output_type`


@dataclass
class StyleFusionPipelineOutput(BaseOutput, Generic[Pictures]):
    """Pictures, with the codes and the recipe they were made from.

    Args:
        images: a list of PIL images; an array (B, H, W, C) or a tensor (B, C, H, W) of numbers in [0, 1]; or, with
            `output_type="latent"`, the style codes.
        style_codes: the fused codes, (B, S), float32.
        recipe: JSON-serializable; `pipe.from_recipe(recipe)` makes the pictures again.
        masks: region -> (B, H, W), bool: the pixels that the segmenter assigns to it. Every pixel belongs to exactly
            one region. None unless `output_masks=True`.
    """

    images: Pictures
    style_codes: torch.Tensor
    recipe: dict[str, Any]
    masks: dict[str, torch.Tensor] | None = None


@dataclass
class StyleFusionInterpolationPipelineOutput(BaseOutput, Generic[Pictures]):
    """The frames of a walk, with the codes and the recipe they were made from.

    Args:
        frames: a list of PIL images; an array (F, H, W, C) or a tensor (F, C, H, W) of numbers in [0, 1]; or, with
            `output_type="latent"`, the style codes.
        style_codes: the fused codes, (F, S), float32.
        keyframes: the frame index of each keyframe.
        recipe: recipe of the keyframes, JSON-serializable; `StyleFusionPipeline.from_recipe(recipe)` makes their
            pictures.
    """

    frames: Pictures
    style_codes: torch.Tensor
    keyframes: list[int]
    recipe: dict[str, Any]


@dataclass
class StyleFusionInversionPipelineOutput(BaseOutput, Generic[Pictures]):
    """Codes found for the given pictures, with the reconstructions and their errors.

    Args:
        images: the reconstructions: a list of PIL images, an array or a tensor in [0, 1]; or, with
            `output_type="latent"`, the style codes (B, S).
        codes: a `Code` with B rows, in the requested space.
        mse: (B,), mean squared error of the reconstructions, for pixels in [-1, 1].
        feature_distance: (B,), perceptual distance from the given pictures: `features.map_distance`.
        steps: (B,), optimization steps that each picture took.
        generator: the tuned copy of the generator; None without tuning.
    """

    images: Pictures
    codes: Code
    mse: torch.Tensor
    feature_distance: torch.Tensor
    steps: torch.Tensor
    generator: StyleGenerator | None = None


@dataclass
class StyleFusionPhotoPipelineOutput(BaseOutput):
    """Edited photographs, with what was found about the faces in them. N pictures of P photographs.

    Args:
        images: the N edited photographs, upright: a list of PIL images of the photographs' own modes and sizes; of
            photographs of one size also an array (N, H, W, C) or a tensor (N, C, H, W) of numbers in [0, 1]; or, with
            `output_type="latent"`, the fused style codes (N, S).
        photographs: the same with the metadata of their files: `photographs[0].save("new.jpg")`. None for style codes.
        masks: N PIL images of mode L: how much of each pixel was replaced; 0 where it kept its value. None for style
            codes.
        reconstructions: what the model makes of the P faces without a change, aligned: a list of PIL images.
        codes: a `Code` with P rows, in the requested space.
        mse: (P,), mean squared error of the reconstructions, for pixels in [-1, 1].
        feature_distance: (P,), perceptual distance from the aligned faces: `features.map_distance`.
        explained: (P,), the share of the variance in the middle of the aligned face that the reconstruction explains:
            1 for the same picture, 0 for a plain color.
        landmarks: P arrays (68, 2) or (5, 2), where the faces are.
        recipes: N recipes, JSON-serializable; `pipe.from_recipe(recipe, photograph)` makes the picture again.
        generator: the tuned copy of the generator; None without tuning.
    """

    images: Any  # its type is the caller's choice
    photographs: list[Photograph] | None
    masks: list[Any] | None
    reconstructions: list[Any]
    codes: Code
    mse: torch.Tensor
    feature_distance: torch.Tensor
    explained: torch.Tensor
    landmarks: list[Any]
    recipes: list[dict[str, Any]]
    generator: StyleGenerator | None = None
