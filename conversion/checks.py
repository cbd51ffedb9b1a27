"""Checks of a converted folder: load it as a user would, render a sample, and compare it with a reference."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from stylefusion_hf.conversion.rendering import LARGEST, render, render_size
from stylefusion_hf.core.checks import short
from stylefusion_hf.core.codes import labels_to_tensor, seeds_to_z
from stylefusion_hf.core.sizes import describe_size
from stylefusion_hf.core.untrusted.inert import ConversionError
from stylefusion_hf.core.untrusted.safe_pickle import load
from stylefusion_hf.imaging.images import check_image, opened_image, pixels_to_tensor
from stylefusion_hf.imaging.modes import ALPHA, MODES
from stylefusion_hf.models.discriminator import StyleGAN2Discriminator
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.models.stylegan2 import StyleGAN2Generator
from stylefusion_hf.models.stylegan3 import StyleGAN3Generator

HELP = "docs/reference/convert.md"
CODE_TOLERANCE = 1e-4  # relative to the largest number of a code
IMAGE_TOLERANCE = 1e-3  # relative to a picture's standard deviation
PIXEL_TOLERANCE = 2.0  # of 255 levels, for 8-bit pictures, possibly rendered on another device
USUAL_PSI = (1.0, 0.7, 0.5)
MAX_SAMPLES = 1024  # in a reference


@dataclass
class Comparison:
    """One compared quantity; `error` and `tolerance` are in the same units."""

    what: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


def is_too_large(generator: StyleGenerator) -> bool:
    """Return whether a picture needs more memory than a check may take."""
    most = 2 * LARGEST if isinstance(generator, StyleGAN3Generator) else LARGEST  # 1024 px of configuration R fit
    return render_size(generator.config, tiled=isinstance(generator, StyleGAN2Generator)) > most


def first_label(generator: StyleGenerator, batch: int) -> torch.Tensor | None:
    """Return labels (batch, label_dim) of the first class, or None for an unconditional generator."""
    if not generator.config.label_dim:
        return None
    return torch.eye(1, generator.config.label_dim).expand(batch, -1)


@torch.inference_mode()
def sample_statistics(generator: StyleGenerator, seed: int = 0) -> dict[str, Any]:
    """Render a sample and return its mean, standard deviation, minimum and maximum.

    ConversionError if the sample is constant or not finite.
    """
    config = generator.config
    if is_too_large(generator):
        return {"not rendered, too large for a check": describe_size(generator.picture_size)}
    w = generator.mapping(seeds_to_z([seed], config.z_dim), first_label(generator, 1))
    image = render(generator, generator.to_style(generator.truncate(w, config.truncation_psi)))
    if not image.isfinite().all() or float(image.std()) == 0:
        raise ConversionError(f"the converted generator renders no picture from seed {seed}: the weights are broken")
    figures = {"mean": image.mean(), "std": image.std(), "min": image.min(), "max": image.max()}
    return {"seed": seed, "psi": config.truncation_psi} | {k: round(float(v), 4) for k, v in figures.items()}


@torch.inference_mode()
def check_fusion(generator: StyleGenerator, folder: Path) -> dict[str, float]:
    """Check the converted nets: equal codes must be returned unchanged, different ones mix to finite numbers."""
    fusion = FusionHierarchy.from_pretrained(folder / "fusion")
    nodes = fusion.tree.nodes
    z = seeds_to_z(range(len(nodes)), generator.config.z_dim)
    codes = generator.to_style(generator.truncate(generator.mapping(z, first_label(generator, len(nodes))), 0.7))
    same = fusion.fuse(dict.fromkeys(nodes, codes[:1]))
    mixed = fusion.fuse({node: codes[i : i + 1] for i, node in enumerate(nodes)})
    if not torch.equal(same, codes[:1]) or not mixed.isfinite().all():
        raise ConversionError("the converted fusion nets do not give equal codes back: their weights are broken")
    return {"fusion nets": len(fusion.tree.fused), "fused std": round(float(mixed.std()), 4)}


# --- Comparison with a reference --------------------------------------------------------------------


def compare(
    folder: Path, reference: Path, seed: int | None = None, class_label: int | None = None
) -> list[Comparison]:
    """Compare a converted generator with outputs of the original code.

    If the name of a reference does not contain its truncation, the usual values are tried, and the line names the one
    that matches best.

    Args:
        folder: contains `generator/`, and optionally `discriminator/`.
        reference: the picture of a seed (.png), or a .safetensors of `z` (B, z_dim), optionally `c` (B, labels) and
            `mean_latent`, and any of `w` or `ws`, `ws_psi{p}[_cutoff{n}]`, `s.conv{i}`, `s.rgb{i}`, `image` or
            `image_const`, `image_none`, `logits`.
        seed: seed of the picture; by default the number after "seed" in its name, as in NVIDIA's seed0085.png,
            else the last number.
        class_label: class of the picture; by default the number after "class" in its name.

    Raises:
        ConversionError: the reference cannot be read, or belongs to another model.
    """
    try:
        return _compare(folder, reference, seed, class_label)
    except ConversionError:
        raise
    except (RuntimeError, LookupError, ValueError, TypeError) as error:
        problem = " ".join(str(error).split())[:200]
        raise ConversionError(f"{reference}: does not fit this generator ({problem}); see {HELP}") from None


def _compare(folder: Path, reference: Path, seed: int | None, class_label: int | None) -> list[Comparison]:
    generator = StyleGenerator.from_pretrained(folder / "generator")
    if is_too_large(generator):
        raise ConversionError(f"{reference}: the generator is too large to be rendered for a comparison")
    if reference.suffix.lower() in (".png", ".webp"):
        return [_compare_picture(generator, reference, seed, class_label)]
    if reference.suffix.lower() in (".jpg", ".jpeg"):
        raise ConversionError(f"{reference}: a JPEG has lost too much for a comparison; give the .png of a seed")
    if class_label is not None:
        raise ConversionError(f"{reference}: a class is for the picture of a seed; a .safetensors holds its own, in c")
    data = load(reference)
    if not isinstance(data, Mapping) or not all(isinstance(value, torch.Tensor) for value in data.values()):
        raise ConversionError(f"{reference}: a reference is a .safetensors, or the .png of a seed")
    z = data.get("z")
    if z is None or tuple(z.shape[1:]) != (generator.config.z_dim,) or not 1 <= len(z) <= MAX_SAMPLES:
        wanted = f"(batch, {generator.config.z_dim}), of at most {MAX_SAMPLES} samples"
        raise ConversionError(f"{reference}: has no z of shape {wanted}, to render from")
    results = _compare_codes(generator, data, z.float())
    pictures = data.get("image_const", data.get("image"))
    if pictures is not None and "logits" in data and (folder / "discriminator").is_dir():
        discriminator = StyleGAN2Discriminator.from_pretrained(folder / "discriminator")
        with torch.inference_mode():
            logits = discriminator(pictures.float(), data.get("c")).logits
        results.append(Comparison("logits", _relative(logits, data["logits"]), 10 * CODE_TOLERANCE))
    if not results:
        raise ConversionError(f"{reference}: holds nothing to compare with; see {HELP} for the names")
    return results


@torch.inference_mode()
def _compare_codes(generator: Any, data: Mapping[str, torch.Tensor], z: torch.Tensor) -> list[Comparison]:
    results = []
    if "mean_latent" in data:
        results.append(Comparison("mean of w", _relative(generator.w_avg, data["mean_latent"].reshape(-1)), 1.0))
        generator.w_avg.copy_(data["mean_latent"].reshape(-1))  # the mean that the reference was truncated toward
    w = generator.mapping(z, data.get("c"))
    # Every truncation that can be meant, by name: the codes are (B, num_ws, w_dim).
    candidates: dict[str, torch.Tensor] = {}
    for psi in dict.fromkeys((*USUAL_PSI, generator.config.truncation_psi)):
        candidates[f"psi {psi:g}"] = generator.truncate(w, psi)[:, None].expand(-1, generator.num_ws, -1)
    for name in data:
        if match := re.fullmatch(r"ws_psi([\d.]+)(?:_cutoff(\d+))?", name):
            cutoff = None if match[2] is None else int(match[2])
            codes = generator.truncate(w, float(match[1]), cutoff)
            codes = codes if codes.ndim == 3 else codes[:, None].expand(-1, generator.num_ws, -1)
            candidates[name.removeprefix("ws_").replace("psi", "psi ").replace("_cutoff", ", cutoff ")] = codes
            results.append(Comparison(name, _relative(codes, data[name]), CODE_TOLERANCE))
    for name in ("w", "ws"):
        if name in data:
            expected = data[name]
            if expected.ndim == 2:
                expected = expected[:, None].expand(-1, generator.num_ws, -1)
            errors = {k: _relative(codes, expected) for k, codes in candidates.items()}
            results.append(_best(name, errors, CODE_TOLERANCE))
    styles = {k: generator.to_style(codes) for k, codes in candidates.items()}
    vectors = [f"s.{name}" for name in generator.split_style(next(iter(styles.values()))) if f"s.{name}" in data]
    if vectors:
        parts = {k: generator.split_style(s) for k, s in styles.items()}
        errors = {k: max(_relative(part[name[2:]], data[name]) for name in vectors) for k, part in parts.items()}
        results.append(_best(f"{len(vectors)} style vectors", errors, CODE_TOLERANCE))
    for name, mode in (("image", "const"), ("image_const", "const"), ("image_none", "none")):
        if name in data:
            expected, config = data[name].float(), generator.config
            if expected.shape != (len(z), config.img_channels, *generator.picture_size):
                results.append(Comparison(f"{name}, of another shape", math.inf, IMAGE_TOLERANCE))
                continue
            pictures = {k: render(generator, s, mode) for k, s in styles.items()}
            errors = {k: _distance(picture, expected) for k, picture in pictures.items()}
            results.append(_best(name, errors, IMAGE_TOLERANCE))
    return results


@torch.inference_mode()
def _compare_picture(generator: Any, path: Path, seed: int | None, class_label: int | None) -> Comparison:
    config, in_name = generator.config, re.search(r"class[-_]?(\d{1,9})", path.stem)
    named = re.findall(r"seed[-_]?(\d+)", path.stem)
    numbers = named or re.findall(r"\d+", path.stem.replace(in_name[0], "") if in_name else path.stem)
    if seed is None and not numbers:
        raise ConversionError(f"{path}: its name has no seed; rename it like seed0085.png, or give --reference-seed")
    seed = int(numbers[-1]) if seed is None else seed
    if class_label is None and in_name and config.label_dim:
        class_label = int(in_name[1])
    if config.label_dim and class_label is None:
        raise ConversionError(
            f"{path}: a picture does not record its class, which this conditional model needs: give --reference-class,"
            f" 0 to {config.label_dim - 1}"
        )
    labels = None if class_label is None else labels_to_tensor([_check_class(class_label)], config.label_dim)
    try:
        with opened_image(path, ["PNG", "WEBP"]) as picture:
            if picture.size != generator.picture_size[::-1]:
                size = f"{picture.height} x {picture.width} pixels"
                raise ConversionError(
                    f"{path}: has {size}, the generator makes {describe_size(generator.picture_size)}"
                )
            levels = _levels(picture, config.img_channels)
    except ConversionError:
        raise
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path}: cannot be read as a picture ({error})") from None
    expected = levels[None]
    w = generator.mapping(seeds_to_z([seed], config.z_dim), labels)

    def differences(suffix: str = "") -> dict[str, float]:
        errors = {}
        for psi in dict.fromkeys((*USUAL_PSI, config.truncation_psi)):
            image = render(generator, generator.to_style(generator.truncate(w, psi)))
            errors[f"psi {psi:g}{suffix}"] = float(((image * 127.5 + 127.5).clamp(0, 255) - expected).abs().mean())
        return errors

    errors = differences()
    if min(errors.values()) > PIXEL_TOLERANCE and _set_noise_of_seed(generator, seed):
        errors |= differences(", noise of the seed as TensorFlow's generate.py draws it")
    return _best(f"picture of seed {seed}, mean difference in levels", errors, PIXEL_TOLERANCE)


def _check_class(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ConversionError(f"--reference-class is a class, an integer from 0; got {short(value)}")
    return value


def _set_noise_of_seed(generator: Any, seed: int) -> bool:
    """Set the noise as NVIDIA's TensorFlow scripts do: after z, every layer's from the same random stream.

    Returns whether the generator has noise.
    """
    random = np.random.RandomState(seed)
    random.randn(1, generator.config.z_dim)
    layers = [layer for layer in getattr(generator.synthesis, "convs", ()) if getattr(layer, "use_noise", False)]
    for layer in layers:
        noise = random.randn(*layer.noise_const.shape)
        layer.noise_const.copy_(torch.from_numpy(noise))
    return bool(layers)


def _levels(picture: Image.Image, channels: int) -> torch.Tensor:
    """Return the picture's levels (channels, H, W), 0 to 255. ConversionError unless it has the model's channels."""
    if channels not in MODES:
        raise ConversionError(
            f"the generator's img_channels is {channels}, as in no picture file: give a .safetensors as --reference"
        )
    if channels in ALPHA and not picture.has_transparency_data:
        raise ConversionError(
            f"the reference has mode {picture.mode}, the generator's pictures {MODES[channels]}: give one with its"
            " transparency"
        )
    return (pixels_to_tensor(check_image(picture, "the reference", channels)) + 1) * 127.5


def _best(what: str, errors: Mapping[str, float], tolerance: float) -> Comparison:
    """Return the comparison with the candidate that matches best, naming it."""
    name = min(errors, key=lambda key: errors[key])
    return Comparison(f"{what} at {name}", errors[name], tolerance)


def _relative(given: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference relative to the largest expected number; infinity if the shapes differ."""
    if given.shape != expected.shape:
        return float("inf")
    return float((given - expected).abs().max() / expected.abs().max())


def _distance(given: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference in units of the expected pictures' standard deviation."""
    return float("inf") if given.shape != expected.shape else float((given - expected).abs().max() / expected.std())
