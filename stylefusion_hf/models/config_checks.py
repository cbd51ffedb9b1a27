"""Checks of untrusted model configs: every value is validated before a layer is built from it.

A model's config is its constructor's arguments, so both are checked in one place against the constructor's
annotations: put `@checked_config` under diffusers' `@register_to_config`, which is here with a type that keeps the
constructor's.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from diffusers.configuration_utils import ConfigMixin, FrozenDict

from stylefusion_hf.core.checks import check_count, check_flag, check_number, short

__all__ = ["checked_config", "own_config", "positive", "register_to_config"]

F = TypeVar("F", bound=Callable[..., Any])

if TYPE_CHECKING:

    def register_to_config(init: F) -> F: ...
else:
    from diffusers.configuration_utils import register_to_config

MAX_SIZE = 2**16  # of a width or another size
MAX_LAYERS = 1024  # of a count: layers, repetitions, list entries
MAX_NAME = 1000  # characters of a string


def checked_config(init: F) -> F:
    """Wrap a constructor so that arguments of the wrong type or of absurd size raise a ValueError that names them.

    Running out of memory for the weights also becomes a one-line ValueError.
    """
    hints = get_type_hints(init)

    @wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            bound = signature(init).bind(self, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}") from None
        for name, value in list(bound.arguments.items())[1:]:
            bound.arguments[name] = _check(name, value, hints[name])
        try:
            init(*bound.args, **bound.kwargs)
        except RuntimeError as error:
            if "allocate" not in str(error) and "overflow" not in str(error):
                raise
            raise ValueError(f"{type(self).__name__}: not enough memory for a model of these sizes") from error

    return checked  # type: ignore[return-value]


def _check(name: str, value: Any, hint: Any) -> Any:
    """Return the value, sequences as lists; ValueError if it does not match the annotation."""
    if isinstance(value, np.generic):
        raise ValueError(f"{name} must be a plain number that JSON can hold, got {short(value)}: use .item()")
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    if kind is bool:
        return check_flag(name, value)
    if kind is int:
        counted = any(word in name for word in ("layers", "repeats", "num_"))
        return check_count(name, value, MAX_LAYERS if counted else MAX_SIZE, least=0)
    if kind is float:
        check_number(name, value, -1e6, 1e6)
        return value
    if kind is str:
        if not isinstance(value, str) or len(value) > MAX_NAME:
            raise ValueError(f"{name} must be a string of at most {MAX_NAME} characters, got {short(value)}")
        return value
    if get_origin(kind) is Sequence:
        if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence) or len(value) > MAX_LAYERS:
            raise ValueError(f"{name} must be a list of at most {MAX_LAYERS} entries, got {short(value)}")
        return [_check(f"{name}[{i}]", item, get_args(kind)[0]) for i, item in enumerate(value)]
    return value  # a region tree, which has its own check


def own_config(model: ConfigMixin) -> dict[str, Any]:
    """Return the constructor's arguments, without the entries that diffusers adds."""
    return {name: value for name, value in model.config.items() if not name.startswith("_")}


def positive(**numbers: float | None) -> None:
    """Raise ValueError, naming the first number that is not above 0; None counts as not given."""
    for name, number in numbers.items():
        if number is not None and not (number > 0 and math.isfinite(number)):
            raise ValueError(f"{name} must be above 0, got {short(number)}")


def drop_empty(model: Any, *names: str) -> None:
    """Remove entries that are None from a model's config, so that models without them are saved as before."""
    kept = {name: value for name, value in model.config.items() if name not in names or value is not None}
    model._internal_dict = FrozenDict(kept)
