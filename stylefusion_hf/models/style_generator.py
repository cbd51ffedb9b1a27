"""What every generator of this package is: z --mapping--> w --affine--> s --synthesis--> picture.

Pipelines, fusion nets, edits, inversion and evaluation know a generator by this interface alone. A style code s packs
the vectors of all convolutions (`conv0`, `conv1`, ...), then those of all layers that make pictures (`rgb0`, ...). One
matrix holds all affine layers, so that a code comes from one product.
"""

from __future__ import annotations

import json
import math
import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from stylefusion_hf.core.checks import check_path, short
from stylefusion_hf.core.codes import NOISE_MODES
from stylefusion_hf.core.hub_files import snapshot
from stylefusion_hf.core.named_models import find_model
from stylefusion_hf.core.sizes import size_at
from stylefusion_hf.models.layers import MappingNetwork, check_real
from stylefusion_hf.models.loading import StrictModelMixin

OUTPUTS = ("w", "s", "picture")  # of a generator's call


@dataclass
class GeneratorOutput(BaseOutput):
    """What a generator's call gives.

    Args:
        sample: images (B, C, H, W), about [-1, 1].
        style_codes: the packed codes (B, S) that they were made from.
        features: {height: (B, c, height, height)}, if requested.
        latents: with `output="w"`, the codes in w (B, w_dim) or w+ (B, num_ws, w_dim), and nothing else.
    """

    sample: torch.Tensor = None  # type: ignore[assignment]  # is there unless `output` says otherwise
    style_codes: torch.Tensor = None  # type: ignore[assignment]  # likewise
    features: dict[int, torch.Tensor] | None = None
    latents: torch.Tensor | None = None


class StyleGenerator(StrictModelMixin, ConfigMixin):
    """The interface of generators with a style space, and what they share.

    A subclass sets `mapping` and `synthesis`, calls `_add_affine`, and has in its config `resolution`, `channels` (one
    count for each resolution that has features, from 4 up, unless it overrides `feature_sizes`), `img_channels`,
    `z_dim`, `w_dim`, `label_dim`, `truncation_psi` and, if it has noise inputs, `use_noise`.

    Pictures may be rectangular. Every resolution is a height; `size_at` gives the height and the width of it.

    `StyleGenerator.from_pretrained` loads whichever generator a folder or repository holds.

    Attributes:
        mapping: z (B, z_dim), and labels (B, label_dim) if there are any -> w (B, w_dim).
        synthesis: `synthesis(s, noise_mode="const", return_features=False, generator=None, up_to=None)`: style codes
            (B, S) -> images (B, C, H, W), or (images, {height: features (B, c, height, width)}).
        w_avg: (w_dim,), the mean of w.
        style_rows: (S,), the row of w+ that each number of a style code comes from.
    """

    _group_offload_block_modules = ("mapping", "synthesis")  # whose blocks are moved one by one

    config: Any
    mapping: MappingNetwork
    synthesis: Any  # each architecture's own network
    affine_weight: Tensor
    affine_bias: Tensor
    affine_gain: float
    w_avg: Tensor
    style_rows: Tensor

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, **kwargs: Any) -> Self:
        if cls is not StyleGenerator:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        kind = _saved_class(find_model(check_path(pretrained_model_name_or_path)), kwargs)
        return kind.from_pretrained(pretrained_model_name_or_path, **kwargs)

    def _add_affine(self, w_dim: int, gain: float = 1.0, spread: float = 1.0) -> None:
        """The affine layers w -> s. Their bias starts at one, so that a style starts as "leave as it is".

        Args:
            gain: of the stored weights when they are used.
            spread: the stored weights' standard deviation.
        """
        self.register_buffer("w_avg", torch.zeros(w_dim))
        self.affine_weight = nn.Parameter(torch.randn(self.style_dim, w_dim) * spread)
        self.affine_bias = nn.Parameter(torch.ones(self.style_dim))
        self.affine_gain = gain
        rows = zip([*self._conv_rows, *self._rgb_rows], self.style_sizes.values(), strict=True)
        numbers = [row for row, size in rows for _ in range(size)]
        self.register_buffer("style_rows", torch.tensor(numbers), persistent=False)

    # --- Shapes ------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def conv_sizes(self) -> list[int]:
        """Widths of the convolutions' style vectors."""

    @property
    @abstractmethod
    def rgb_sizes(self) -> list[int]:
        """Widths of the style vectors of the layers that make pictures."""

    @property
    @abstractmethod
    def conv_resolutions(self) -> list[int]:
        """For each convolution, the height of what it gives."""

    @property
    @abstractmethod
    def rgb_resolutions(self) -> list[int]:
        """For each layer that makes a picture, the height of the features that it reads."""

    @property
    @abstractmethod
    def num_ws(self) -> int:
        """Rows of w+."""

    @property
    @abstractmethod
    def _conv_rows(self) -> list[int]: ...

    @property
    @abstractmethod
    def _rgb_rows(self) -> list[int]: ...

    @property
    def style_sizes(self) -> dict[str, int]:
        """Widths of all style vectors by name, in the order in which a code packs them: conv0, ..., rgb0, ..."""
        conv, rgb = self.conv_sizes, self.rgb_sizes
        names = [f"conv{i}" for i in range(len(conv))] + [f"rgb{k}" for k in range(len(rgb))]
        return dict(zip(names, [*conv, *rgb], strict=True))

    @property
    def style_resolutions(self) -> dict[str, int]:
        """The resolution that each style vector acts at, by name."""
        return dict(zip(self.style_sizes, [*self.conv_resolutions, *self.rgb_resolutions], strict=True))

    @property
    def style_dim(self) -> int:
        """S, the length of a packed style code."""
        return sum(self.conv_sizes) + sum(self.rgb_sizes)

    @property
    def base_size(self) -> tuple[int, int]:
        """(height, width) of the smallest features: 4 x 4, but for rectangular pictures and those of other sizes."""
        height, width = self.config.get("base_size") or (4, 4)
        return height, width

    @property
    def picture_size(self) -> tuple[int, int]:
        """(height, width) of the pictures."""
        return self.size_at(self.config.resolution)

    @property
    def aspect(self) -> float:
        """Width of the pictures divided by their height."""
        return self.base_size[1] / self.base_size[0]

    @property
    def mean_side(self) -> int:
        """Side of the square with as many pixels as a picture, which memory and time go by."""
        height, width = self.picture_size
        return height if height == width else math.isqrt(height * width)

    def size_at(self, height: int) -> tuple[int, int]:
        """(height, width) of pictures and features of that height, in the pictures' aspect ratio."""
        return size_at(height, self.base_size)

    @property
    def feature_sizes(self) -> dict[int, int]:
        """{height: channels} of the feature maps that `synthesis` returns."""
        return {self.base_size[0] * 2**k: width for k, width in enumerate(self.config.channels)}

    @property
    def has_noise(self) -> bool:
        """Whether pictures depend on noise inputs."""
        return bool(self.config.get("use_noise", False))

    @property
    @abstractmethod
    def picture_sizes(self) -> list[int]:
        """The heights that `synthesis(s, up_to=height)` gives a picture of, the full size last."""

    # --- From space to space -----------------------------------------------------------------------------------------

    def truncate(self, w: torch.Tensor, psi: float | torch.Tensor, cutoff: int | None = None) -> torch.Tensor:
        """Move w toward the mean: mean + psi * (w - mean).

        Args:
            w: (B, w_dim) or w+ (B, num_ws, w_dim).
            psi: 1 leaves w alone, 0 gives the mean; a number, or a tensor of one.
            cutoff: truncate only the first so many rows; the result is then always w+.
        """
        return self(w, None, "w", psi, cutoff, return_dict=False, output="w")[0]

    def _truncate(self, w: torch.Tensor, psi: float | torch.Tensor, cutoff: int | None) -> torch.Tensor:
        self._check_w(w)
        mean = self.w_avg.to(w)
        if cutoff is None:
            return mean + psi * (w - mean)
        if not 0 <= cutoff <= self.num_ws:
            raise ValueError(f"truncation cutoff must be between 0 and {self.num_ws} (the rows of w+), got {cutoff}")
        rows = w.unsqueeze(1).expand(-1, self.num_ws, -1) if w.ndim == 2 else w
        return torch.cat([mean + psi * (rows[:, :cutoff] - mean), rows[:, cutoff:]], dim=1)

    def to_style(self, w: torch.Tensor) -> torch.Tensor:
        """w (B, w_dim) or w+ (B, num_ws, w_dim) -> packed style codes (B, S)."""
        return self(w, latent_type="w", return_dict=False, output="s")[0]

    def _to_style(self, w: torch.Tensor) -> torch.Tensor:
        self._check_w(w)
        weight, bias = (self.affine_weight * self.affine_gain).to(w.dtype), self.affine_bias.to(w.dtype)
        if w.ndim == 2:
            return torch.addmm(bias, w, weight.t())
        every = torch.matmul(w, weight.t())  # (B, num_ws, S): one product; each number is then taken from its own row
        return every.gather(1, self.style_rows.expand(w.shape[0], 1, -1)).squeeze(1) + bias

    def split_style(self, s: torch.Tensor) -> dict[str, torch.Tensor]:
        """Packed codes (B, S) -> {"conv0": (B, c), ..., "rgb0": (B, c), ...}, views of the same memory."""
        check_style(s, self.style_dim)
        sizes = self.style_sizes
        return dict(zip(sizes, s.split(list(sizes.values()), dim=1), strict=True))

    def move_style(self, s: Tensor, translate: Sequence[float] = (0.0, 0.0), rotate: float = 0.0) -> Tensor:
        """Return the style codes (B, S) of rotated and moved pictures.

        Args:
            s: style codes (B, S).
            translate: right and down, in fractions of the width.
            rotate: degrees, counterclockwise, about the middle.

        Raises:
            ValueError: the architecture has no input that can move.
        """
        raise ValueError(
            f"translate and rotate move the Fourier input of a StyleGAN3; a {type(self).__name__} has none: leave them"
            " out, or take a StyleGAN3Generator"
        )

    def _check_w(self, w: torch.Tensor) -> None:
        d, n = self.w_avg.shape[0], self.num_ws
        check_real("w", w)
        if not ((w.ndim == 2 and w.shape[1] == d) or (w.ndim == 3 and tuple(w.shape[1:]) == (n, d))):
            raise ValueError(
                f"expected w of shape (batch, {d}) or w+ of shape (batch, {n}, {d}), got {tuple(w.shape)}"
            )

    @torch.no_grad()
    def estimate_w_avg(
        self, num_samples: int = 4096, seed: int = 0, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Set and return the mean of w over a seeded draw of z: for checkpoints that do not store one."""
        z = torch.randn(
            num_samples, self.config.z_dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float32
        )
        w = self.mapping(z.to(self.affine_weight), class_labels)
        self.w_avg.copy_(w.float().mean(dim=0))
        return self.w_avg

    # --- The call: what hooks and compilers see ----------------------------------------------------------------------

    def forward(
        self,
        latents: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        latent_type: str = "z",
        truncation_psi: float | torch.Tensor = 1.0,
        truncation_cutoff: int | None = None,
        noise_mode: str = "const",
        return_dict: bool = True,
        *,
        output: str = "picture",
        return_features: bool = False,
        generator: torch.Generator | None = None,
        up_to: int | None = None,
    ) -> GeneratorOutput | tuple:
        """Images from latents of any space: z (B, z_dim), w (B, w_dim), w+ (B, num_ws, w_dim) or s (B, S).

        Every use of the weights passes through this call, that of `to_style` and `truncate` too: offloading, layerwise
        casting and torch.compile act on calls.

        Args:
            truncation_psi, truncation_cutoff: apply to z, and to w and w+ with `output="w"`.
            output: how far to go: "w" (mapped and truncated), "s" (style codes) or "picture".
            return_features, generator, up_to: as in `synthesis`.
            return_dict: False gives (images, style codes) and the features, if requested; with `output` "w" or "s" a
                tuple of that alone.

        Raises:
            ValueError: an unknown `latent_type` or `output`, or a wrong shape.
        """
        if latent_type not in ("z", "w", "w+", "s"):
            raise ValueError(f"unknown latent_type {latent_type!r}; choose from z, w, w+, s")
        if output not in OUTPUTS or (output == "w" and latent_type == "s"):
            raise ValueError(f"unknown output {short(output)} of latents in {latent_type}; choose from w, s, picture")
        w = s = latents
        if latent_type == "z":
            w = self.mapping(latents, class_labels)
            if isinstance(truncation_psi, torch.Tensor) or truncation_psi != 1.0:
                w = self._truncate(w, truncation_psi, truncation_cutoff)
        elif output == "w":
            w = self._truncate(w, truncation_psi, truncation_cutoff)
        if output == "w":
            return GeneratorOutput(latents=w) if return_dict else (w,)
        if latent_type != "s":
            s = self._to_style(w)
        if output == "s":
            return GeneratorOutput(style_codes=s) if return_dict else (s,)
        options = {"noise_mode": noise_mode, "generator": generator, "up_to": up_to}
        if return_features:
            image, features = self.synthesis(s, return_features=True, **options)
            made = GeneratorOutput(sample=image, style_codes=s, features=features)
            return made if return_dict else (image, s, features)
        image = self.synthesis(s, **options)
        return GeneratorOutput(sample=image, style_codes=s) if return_dict else (image, s)


# --- Checks of synthesis' arguments ----------------------------------------------------------------------------------


def check_style(s: Tensor, width: int) -> None:
    """ValueError unless `s` is (batch, width), of floating-point numbers."""
    check_real("a style code", s)
    if s.ndim != 2 or s.shape[1] != width:
        raise ValueError(f"a style code of this generator is (batch, {width}), got {tuple(s.shape)}")


def check_noise_mode(noise_mode: str) -> None:
    if noise_mode not in NOISE_MODES:
        raise ValueError(f"unknown noise_mode {noise_mode!r}; choose from {', '.join(NOISE_MODES)}")


def check_up_to(up_to: int | None, resolutions: Sequence[int], name: str = "up_to") -> int:
    """The resolution to stop at; ValueError if it is none of `resolutions`, the last of which is the default."""
    if up_to is None:
        return resolutions[-1]
    if not isinstance(up_to, int) or isinstance(up_to, bool) or up_to not in resolutions:
        raise ValueError(f"{name} is one of {', '.join(map(str, resolutions))}, got {short(up_to)}")
    return up_to


def draw_noise(size: int | tuple[int, int], batch: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """(batch, 1, height, width) of normal numbers on the device of `like`, for (height, width) or a square's side."""
    device = like.device if generator is None else generator.device
    shape = (batch, 1, *((size, size) if isinstance(size, int) else size))
    return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(like.device)


# --- Loading ---------------------------------------------------------------------------------------------------------


def _saved_class(path: str, options: dict[str, Any]) -> type[StyleGenerator]:
    """The class that a saved generator's config names; StyleGAN2's where it names none, for its errors."""
    name = f"{options.get('subfolder') or ''}/{StyleGenerator.config_name}".lstrip("/")
    if os.path.exists(path):
        saved = _class_name(os.path.join(path, name))
    else:
        with snapshot(path, name, options.get("revision"), options) as (folder, _):
            saved = _class_name(os.path.join(folder, name))
    return generator_class(saved, f"{path} holds no generator of this package: its {name}")


def generator_class(saved: str | None, what: str) -> type[StyleGenerator]:
    """The class of a config's `_class_name`; ValueError, which begins with `what`, if it is no generator's."""
    package = import_module("stylefusion_hf")  # which knows every class by its public name
    found = getattr(package, str(saved), None) if saved in package.__all__ else None
    if isinstance(found, type) and issubclass(found, StyleGenerator) and found is not StyleGenerator:
        return found
    if saved is None:
        return package.StyleGAN2Generator
    raise ValueError(f"{what} is of a {short(saved)}")


def _class_name(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.loads(file.read(2**24)).get("_class_name")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, str) else None


StyleGenerator.__module__ = "stylefusion_hf"
