"""The interface of a generator that codes and edits rely on, so that core does not import models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class LatentSpaces(Protocol):
    """The latent spaces of a generator. Every `StyleGenerator` satisfies this protocol."""

    config: Any
    w_avg: Tensor  # (w_dim,)
    affine_bias: Tensor  # (S,), the style code of w = 0
    style_rows: Tensor  # (S,), the row of w+ that drives each entry of a style code

    @property
    def mapping(self) -> Any: ...  # callable z -> w with an attribute z_dim

    @property
    def num_ws(self) -> int: ...

    @property
    def style_dim(self) -> int: ...

    @property
    def conv_sizes(self) -> Sequence[int]: ...

    @property
    def device(self) -> Any: ...

    def to_style(self, w: Tensor) -> Tensor: ...
