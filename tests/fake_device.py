"""A make-believe accelerator, `torch.device("fake")`, for tests of code that moves models between devices.

Its memory is the computer's own and its kernels are the CPU's, but it is as strict as CUDA: operands on different
devices are an error (apart from CPU scalars, and CPU indices where CUDA takes them). `install()` changes the process
for good (torch has one place for such a device), so tests run in a process of their own.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch.utils import _pytree as pytree

NAME = "fake"
CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
INDICES_ANYWHERE = ("aten::index", "aten::_index_put_impl_", "aten::index_put", "aten::index_put_")


class Backend:
    """What `torch.fake` offers to diffusers and accelerate, streams included (which do nothing)."""

    class Stream:
        def synchronize(self) -> None: ...

        def __enter__(self) -> Backend.Stream:
            return self

        def __exit__(self, *_: Any) -> None: ...

    @staticmethod
    def stream(stream: Any) -> Any:
        return stream

    @staticmethod
    def current_stream(device: Any = None) -> Backend.Stream:
        return Backend.Stream()

    @staticmethod
    def is_available() -> bool:
        return True

    is_initialized = is_available

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def manual_seed_all(seed: int) -> None: ...

    @staticmethod
    def empty_cache() -> None: ...

    synchronize = empty_cache


def is_fake(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == NAME


def on_device(held: torch.Tensor, made: torch.Tensor | None = None) -> torch.Tensor:
    """A tensor of the device (`made`, or a new one) that shares the memory of `held`, a CPU tensor."""
    made, memory = (
        torch._C._acc.create_empty_tensor((0,), held.dtype) if made is None else made,
        held.untyped_storage(),
    )
    device = torch.device(NAME, 0)
    storage = torch._C._construct_storage_from_data_pointer(memory.data_ptr(), device, memory.nbytes())
    storage.owner = held  # lives as long as the storage does
    shape = (held.storage_offset(), held.shape, held.stride())
    return torch.ops.aten.set_.source_Storage_storage_offset.redispatch(CPU, made, storage, *shape)


def on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor that shares the memory of a tensor of the device."""
    storage = tensor.untyped_storage()
    if storage.nbytes() == 0:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    memory = (ctypes.c_byte * storage.nbytes()).from_address(storage.data_ptr())
    flat = torch.frombuffer(memory, dtype=torch.uint8)
    flat.owner = getattr(storage, "owner", None)
    whole = flat[: storage.nbytes() // tensor.element_size() * tensor.element_size()].view(tensor.dtype)
    return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def check_devices(name: str, tensors: list[torch.Tensor]) -> None:
    """RuntimeError for operands on the CPU, as CUDA raises it."""
    for tensor in tensors:
        if not is_fake(tensor) and tensor.ndim and not name.startswith(INDICES_ANYWHERE):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and"
                f" {tensor.device}! ({name}, {tuple(tensor.shape)})"
            )


def fall_back(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Any operator: the CPU's kernel on the same memory."""
    leaves, form = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    check_devices(op._schema.name, tensors)
    own = {}
    for k, leaf in enumerate(leaves):
        if is_fake(leaf):
            leaves[k] = on_cpu(leaf)
            own[id(leaves[k])] = leaf
        elif isinstance(leaf, torch.device) and leaf.type == NAME:
            leaves[k] = torch.device("cpu")
    args, kwargs = pytree.tree_unflatten(leaves, form)
    made = op(*args, **kwargs)
    for plain in leaves:  # an `out=` that the kernel has resized
        if isinstance(plain, torch.Tensor) and id(plain) in own and plain.shape != own[id(plain)].shape:
            on_device(plain, own[id(plain)])
    return pytree.tree_map_only(torch.Tensor, lambda x: own[id(x)] if id(x) in own else on_device(x), made)


def empty(size: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None,
          memory_format: Any = None) -> torch.Tensor:  # fmt: skip
    memory_format = torch.contiguous_format if memory_format is None else memory_format
    return on_device(torch.empty(size, dtype=dtype, device="cpu", memory_format=memory_format))


def empty_strided(size: Any, stride: Any, dtype: Any = None, layout: Any = None, device: Any = None,
                  pin_memory: Any = None) -> torch.Tensor:  # fmt: skip
    return on_device(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def copy_(to: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    plain = [on_cpu(x) if is_fake(x) else x for x in (to, source)]
    if any(x.is_meta for x in plain):
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")
    with torch._C._AutoDispatchBelowAutograd():
        plain[0].copy_(plain[1])
    return to


def copy_from(source: torch.Tensor, to: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    return copy_(to, source)


def convolution(*args: Any) -> torch.Tensor:
    return fall_back(torch.ops.aten.convolution.default, *args)


def convolution_backward(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> Any:
    *settings, mask = rest
    channels = [grad.shape[1]]  # of the bias
    return fall_back(torch.ops.aten.convolution_backward.default, grad, x, weight, channels, *settings, mask)


def group_norm(*args: Any) -> Any:
    return fall_back(torch.ops.aten.native_group_norm.default, *args)


def group_norm_backward(*args: Any) -> Any:
    return fall_back(torch.ops.aten.native_group_norm_backward.default, *args)


def install() -> torch.device:
    """Register the device and return it."""
    from torch.utils import backend_registration

    backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())
    library = torch.library.Library("aten", "IMPL")
    explicit = {"empty.memory_format": empty, "empty_strided": empty_strided, "_copy_from": copy_from, "copy_": copy_}
    explicit |= {"convolution_overrideable": convolution, "convolution_backward_overrideable": convolution_backward}
    # PyTorch's own for devices without a kernel wants contiguous tensors, which CUDA's does not.
    explicit |= {"native_group_norm": group_norm, "native_group_norm_backward": group_norm_backward}
    explicit["_has_compatible_shallow_copy_type"] = lambda a, b: True
    for name, kernel in explicit.items():
        library.impl(name, kernel, "PrivateUse1")
    for name in ("as_strided", "view", "_reshape_alias", "unfold", "set_.source_Storage_storage_offset"):
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet), overload or "default")
        library.impl(name, lambda *a, op=op, **k: op.redispatch(CPU, *a, **k), "PrivateUse1")
    rest = torch.library.Library("_", "IMPL")
    rest.fallback(fall_back, "PrivateUse1")
    install.kept = library, rest  # type: ignore[attr-defined]  # kernels go with their library
    return torch.device(NAME, 0)
