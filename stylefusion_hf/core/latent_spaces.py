"""What codes and edits need to know of a generator, so that they stand below the models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class LatentSpaces(Protocol):
    """The latent spaces of a generator; every `StyleGenerator` has them."""

    config: Any
    w_avg: Tensor  # (w_dim,)
    affine_bias: Tensor  # (S,), the style code of w = 0
    style_rows: Tensor  # (S,), the row of w+ that drives each number of a style code

    @property
    def mapping(self) -> Any: ...  # callable, with z_dim

    @property
    def num_ws(self) -> int: ...

    @property
    def style_dim(self) -> int: ...

    @property
    def conv_sizes(self) -> Sequence[int]: ...

    @property
    def device(self) -> Any: ...

    def to_style(self, w: Tensor) -> Tensor: ...
