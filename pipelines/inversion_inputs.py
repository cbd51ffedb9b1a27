"""An inversion's arguments: their types, checks of settings and callback, and the codes that it starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict, get_args

import torch

from stylefusion_hf.core.checks import check_count, short
from stylefusion_hf.core.codes import Code, check_shapes
from stylefusion_hf.imaging.images import Fit
from stylefusion_hf.inversion.optimization import SPACES
from stylefusion_hf.models.latents import encode
from stylefusion_hf.models.style_generator import StyleGenerator

TENSOR_INPUTS = ("latents", "losses")  # tensors that a callback may request


class InversionOptions(TypedDict, total=False):
    """The arguments of a call that do not decide about its result's type."""

    latent_type: Literal["w+", "w", "s"]
    num_inference_steps: int
    num_tuning_steps: int
    start: str | Code | None
    fit: Fit
    masks: Any
    region_weights: Mapping[str, float] | None
    pixel_weight: float
    feature_weight: float
    prior_weight: float
    learning_rate: float
    tuning_learning_rate: float
    locality_weight: float
    tolerance: float
    patience: int
    noise_mode: Literal["none", "const"]
    batch_size: int | None
    preview_resolution: int | None
    num_final_steps: int
    generator: torch.Generator | Sequence[torch.Generator] | None
    callback_on_step_end: Callable[..., Any] | None
    callback_on_step_end_tensor_inputs: Sequence[str]
    return_dict: bool


def check_settings(
    latent_type: Any, fit: Any, noise_mode: Any, steps: Any, tuning_steps: Any, patience: Any, batch_size: Any
) -> tuple[int, int, int, int | None]:
    """Return steps, tuning steps, patience and batch size as integers; ValueError names the argument."""
    if not isinstance(latent_type, str) or latent_type not in SPACES:
        listed = ", ".join(SPACES)
        raise ValueError(f"latent_type must be one of {listed} for inverted pictures, got {short(latent_type)}")
    if not isinstance(fit, str) or fit not in get_args(Fit):
        raise ValueError(f"fit must be one of {', '.join(map(repr, get_args(Fit)))}; got {short(fit)}")
    steps = check_count("num_inference_steps", steps, 10**6, least=0)
    tuning_steps = check_count("num_tuning_steps", tuning_steps, 10**6, least=0)
    patience = check_count("patience", patience, 10**6)
    if batch_size is not None:
        batch_size = check_count("batch_size", batch_size, 2**20)
    if not isinstance(noise_mode, str) or noise_mode not in ("none", "const"):
        raise ValueError(f"noise_mode of an inversion must be none or const, got {short(noise_mode)}")
    return steps, tuning_steps, patience, batch_size


def check_callback(callback: Any, requested: Any) -> None:
    """Raise ValueError unless this is a function or None, with a list of names from TENSOR_INPUTS."""
    if not (callback is None or callable(callback)):
        raise ValueError(f"callback_on_step_end must be a function, got {short(callback)}")
    known = f"callback_on_step_end_tensor_inputs must be a list of names from {', '.join(TENSOR_INPUTS)}"
    if not isinstance(requested, (list, tuple)):
        raise ValueError(f"{known}, got {short(requested)}")
    for name in requested:
        if not isinstance(name, str) or name not in TENSOR_INPUTS:
            raise ValueError(f"{known}, got {short(name)}")


def check_generators(generator: Any, pictures: int | None = None) -> None:
    """Raise ValueError unless this is a `torch.Generator`, None, or a list of one, or of one per picture."""
    listed = isinstance(generator, (list, tuple))
    if not all(item is None or isinstance(item, torch.Generator) for item in (generator if listed else [generator])):
        raise ValueError(f"generator must be a torch.Generator, or a list of one per picture, got {short(generator)}")
    if listed and (not generator or None in generator or (pictures and len(generator) not in (1, pictures))):
        count = "pictures" if pictures is None else f"{pictures} pictures"
        raise ValueError(f"generator is a list of length {len(generator)} for {count}: give one, or one per picture")


def replaced_latents(returned: Any, latents: torch.Tensor | None) -> torch.Tensor | None:
    """Return the latents that a callback returned in place of `latents`, or None; ValueError for anything else."""
    if not (returned is None or isinstance(returned, Mapping)):
        raise ValueError(f"callback_on_step_end must return a dict or None, got {short(returned)}")
    new = None if returned is None else returned.get("latents")
    if new is not None and latents is not None and (not torch.is_tensor(new) or new.shape != latents.shape):
        kind = tuple(new.shape) if torch.is_tensor(new) else short(new)
        raise ValueError(f"callback_on_step_end: latents must be a tensor of shape {tuple(latents.shape)}, got {kind}")
    return new


def start_codes(
    generator: StyleGenerator, encoder: Any, start: Any, targets: torch.Tensor, space: str, batch: int
) -> torch.Tensor:
    """Return the codes (B, ...) in `space` that the optimization starts from.

    Args:
        start: "encoder", "mean" or a `Code`; None for "encoder" where there is one, else "mean".
        targets: the pictures (B, C, H, W) in [-1, 1].
        batch: how many pictures the encoder sees at once.

    Raises:
        ValueError: another `start`, no encoder, another number of codes than pictures, or codes that cannot be
            converted to `space`.
    """
    start = ("mean" if encoder is None else "encoder") if start is None else start
    count, device = len(targets), targets.device
    if isinstance(start, Code):
        if start.space != "z":  # z is refused below
            check_shapes(generator, {"start": [start]})
        codes = start.tensor.detach().to(device, torch.float32)
        if len(codes) not in (1, count):
            raise ValueError(f"start has {len(codes)} codes for {count} pictures: give as many, or one")
        given = start.space
    elif isinstance(start, str) and start == "encoder":
        if encoder is None:
            raise ValueError('start="encoder", but this pipeline has no encoder: load it with encoder=, or "mean"')
        dtype = getattr(encoder, "dtype", torch.float32)
        codes = torch.cat([encode(encoder, part.to(dtype)).float() for part in targets.split(batch)])
        given = "w+"
    elif isinstance(start, str) and start == "mean":
        codes, given = generator.w_avg.to(device, torch.float32)[None], "w"
    else:
        raise ValueError(f'start must be "encoder", "mean" or a Code, got {short(start)}')
    codes = _to_space(generator, codes, given, space)
    return codes.expand(count, *codes.shape[1:]).clone()


def _to_space(generator: StyleGenerator, codes: torch.Tensor, given: str, space: str) -> torch.Tensor:
    """Convert codes to another space; w+ becomes w by averaging its rows."""
    if given == space:
        return codes
    if space == "s" and given in ("w", "w+"):
        return to_style(generator, codes, given)
    if (given, space) == ("w", "w+"):
        return codes[:, None].expand(-1, generator.num_ws, -1)
    if (given, space) == ("w+", "w"):
        return codes.mean(dim=1)
    raise ValueError(f"start is a code in {given}, which cannot be converted to {space}: choose latent_type={given!r}")


def to_style(generator: StyleGenerator, codes: torch.Tensor, space: str) -> torch.Tensor:
    """Convert codes in w, w+ or s to style codes (B, style_dim) in float32."""
    if space == "s":
        return codes
    return generator.to_style(codes.to(generator.affine_weight)).float()
