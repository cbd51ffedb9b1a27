"""Models under hooks and compilers: what accelerate, diffusers and torch.compile put around a model, and its core.

Hooks bring weights to a device (offloading) or to a dtype (layerwise casting) for the duration of a module's own call.
So everything here follows two rules: a model is used through `model(...)` alone, and a module touches its own tensors
in its own `forward` alone. `tests/pipelines/test_offloading.py` holds every model to both.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

CASTING = "layerwise_casting"  # diffusers' name of its hook
PREFIX = "_orig_mod."  # torch.compile's, in the names of a compiled module's tensors
# Attributes that hooks leave on a module instance; `to` and others: accelerate's warnings about dispatched models.
HOOKED = ("_hf_hook", "_old_forward", "_diffusers_hook", "forward", "to", "cuda", "npu", "xpu", "mlu", "sdaa", "musa")

# ----------------------------------------------------------------------------------------------------
# What surrounds a model.


def unwrap(model: Any) -> Any:
    """Return the module inside `torch.compile(module)`, or the model itself."""
    return getattr(model, "_orig_mod", model)


def is_compiled(model: Any) -> bool:
    """Return whether the model or a part of it is compiled, by `torch.compile(module)` or `module.compile()`."""
    if not isinstance(model, nn.Module):
        return False
    return any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in _parts(model))


def run_eagerly(model: Any) -> AbstractContextManager[Any]:
    """A context in which a compiled model runs uncompiled: for calls whose graph would not pay, or that have none."""
    return torch.compiler.set_stance("force_eager") if is_compiled(model) else nullcontext()


def has_hooks(model: Any) -> bool:
    """Return whether accelerate or diffusers has hooks in the model, so that its tensors may not be in place."""
    if not isinstance(model, nn.Module):
        return False
    return any("_hf_hook" in m.__dict__ or "_diffusers_hook" in m.__dict__ for m in _parts(unwrap(model)))


def execution_device(model: nn.Module) -> torch.device:
    """Return the device on which the model computes: that of its hooks, else of its tensors."""
    for module in unwrap(model).modules():
        for hook in _accelerate_hooks(module):
            if (device := getattr(hook, "execution_device", None)) is not None:
                return torch.device(device)
    return model.device  # type: ignore[return-value]  # diffusers' own, which knows its group offloading


def bring_back(model: Any) -> None:
    """Bring an offloaded model to its device that is not called but used by a method, as a component of another
    package may be: accelerate's hooks only do so for a call."""
    hook = getattr(model, "_hf_hook", None)
    if hook is not None and hasattr(hook, "pre_forward"):
        hook.pre_forward(model)


def _parts(model: nn.Module) -> list[nn.Module]:
    """Return a module and all modules in it; several times as fast as `modules()`, and every call asks."""
    found, rest = [], [model]
    while rest:
        found.append(rest.pop())
        rest += [part for part in found[-1]._modules.values() if part is not None]
    return found


def _accelerate_hooks(module: nn.Module) -> tuple[Any, ...]:
    hook = getattr(module, "_hf_hook", None)
    return () if hook is None else tuple(getattr(hook, "hooks", (hook,)))


def _casting(module: nn.Module) -> Any:
    registry = getattr(module, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(CASTING)


# ----------------------------------------------------------------------------------------------------
# What is below: tensors and plain copies.


def true_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of a model's saved state, with their numbers, wherever hooks keep these.

    Names are those of the uncompiled model, dtypes those in which it computes. Tensors may be on different devices,
    and are not for writing.
    """
    model = unwrap(model)
    for name, tensor in model.state_dict().items():
        prefix, _, last = name.rpartition(".")
        yield name.replace(PREFIX, ""), _known(model.get_submodule(prefix.replace(PREFIX, "")), last, tensor)


def true_tensor(model: nn.Module, name: str) -> Tensor:
    """Return one of `true_tensors`, a tensor of the model itself and not of a part."""
    return _known(unwrap(model), name, getattr(unwrap(model), name).detach())


def plain_copy(model: Any, device: Any = None, dtype: torch.dtype | None = None) -> Any:
    """Return a copy of a model without hooks and compilers, its tensors on `device`, floating-point ones in `dtype`.

    Only a copy has all weights in place at once, as many steps of an optimization need them.
    """
    model = unwrap(model)
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None or id(tensor) in memo:
                continue
            known = _known(module, name, tensor.detach())
            made = known.to(device, dtype if known.is_floating_point() else None, copy=True)
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if is_parameter else made
        memo |= {id(vars(module)[name]): None for name in HOOKED if name in vars(module)}  # are not copied
    for module in list(model.modules())[::-1]:
        if "_orig_mod" in module._modules:
            memo[id(module)] = copy.deepcopy(module._orig_mod, memo)
    made = copy.deepcopy(model, memo)
    for module in made.modules():
        for name in HOOKED:
            vars(module).pop(name, None)
    return made


def fingerprint(model: nn.Module) -> tuple[Any, ...]:
    """Return what changes if a model's weights are replaced, or changed in place other than through `.data`.

    Cheap, and the same while hooks move the weights.
    """
    model = unwrap(model)
    if not has_hooks(model):
        tensors = [t for m in _parts(model) for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
        return (id(model), *((t.data_ptr(), t.dtype, 0 if t.is_inference() else t._version) for t in tensors))
    weights = [(id(p), p.dtype, p._version) for p in model.parameters() if not p.is_meta]
    maps = [id(table) for m in model.modules() for hook in _accelerate_hooks(m) if (table := _table(hook)) is not None]
    buffers = [float(b.float().sum()) for b in model.buffers() if not b.is_meta]
    return (id(model), *weights, *maps, *buffers)


def _known(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Return the numbers of a module's tensor, from where accelerate keeps it and in the dtype for computation."""
    for hook in _accelerate_hooks(module) if tensor.is_meta else ():
        if _table(hook) is not None:
            tensor = hook.weights_map[name]
    if tensor.is_meta:
        kind = type(module).__name__
        raise ValueError(f"the weights {name!r} of {kind} are on the meta device, which keeps no numbers")
    casting = _casting(module)
    return tensor if casting is None or tensor.dtype != casting.storage_dtype else tensor.to(casting.compute_dtype)


def _table(hook: Any) -> Any:
    """Return the dict in which a hook of accelerate keeps a model's weights, or None."""
    table = getattr(hook, "weights_map", None)
    return getattr(table, "dataset", table)


# ----------------------------------------------------------------------------------------------------
# Layerwise casting of layers that are not torch's.


class OwnWeightsCasting(ModelHook):
    """diffusers' layerwise casting for a module's own weights: kept in one dtype, computed with in another.

    diffusers casts whole modules of known classes. Of other modules only the weights are cast, tensors of two or more
    dimensions: biases, noise and filters are small, and need their precision.
    """

    _is_stateful = False

    def __init__(self, storage_dtype: torch.dtype, compute_dtype: torch.dtype, non_blocking: bool):
        super().__init__()
        self.storage_dtype, self.compute_dtype, self.non_blocking = storage_dtype, compute_dtype, non_blocking

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        self._cast(module, self.storage_dtype)
        return module

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._cast(module, self.compute_dtype)
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        self._cast(module, self.storage_dtype)
        return output

    def _cast(self, module: nn.Module, dtype: torch.dtype) -> None:
        for weight in own_weights(module):
            weight.data = weight.data.to(dtype, non_blocking=self.non_blocking)


def own_weights(module: nn.Module) -> list[nn.Parameter]:
    """Return a module's own parameters of two or more dimensions, without its parts'."""
    return [p for p in module._parameters.values() if p is not None and p.ndim > 1 and p.is_floating_point()]


def compute_dtype(layer: nn.Module) -> torch.dtype:
    """Return the dtype in which a layer with a `weight` computes, whatever it is kept in."""
    hook = _casting(layer)
    return layer.weight.dtype if hook is None else hook.compute_dtype  # type: ignore[return-value]


def cast_own_weights(module: nn.Module, storage: torch.dtype, compute: torch.dtype, non_blocking: bool) -> None:
    """Have a module's own weights kept in `storage`, unless diffusers casts them already."""
    if not own_weights(module):
        return
    registry = HookRegistry.check_if_exists_or_initialize(module)
    if registry.get_hook(CASTING) is None:
        registry.register_hook(OwnWeightsCasting(storage, compute, non_blocking), CASTING)
