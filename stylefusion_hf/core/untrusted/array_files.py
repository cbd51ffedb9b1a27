"""File formats of torch (legacy and zip) and numpy (.npy and .npz), read by the rules of `safe_pickle`.

A storage is a checked view of the file; a tensor is a view of its storage. Neither `torch.load` nor `numpy.load` is
called.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stylefusion_hf.core.untrusted.inert import Budget, Global, Record
from stylefusion_hf.core.untrusted.machine import CONSTRUCTORS, MAX_ARGUMENTS, Machine
from stylefusion_hf.core.untrusted.rebuild import check_shape, stands_in_for
from stylefusion_hf.core.untrusted.zip_reader import ZipReader

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a legacy file
VERSION = 1001
MAX_NESTED = 1  # NVIDIA's snapshots contain torch.save bytes; deeper nesting would be an attack

DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Byte": torch.uint8,
    "Char": torch.int8,
    "Short": torch.int16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
STORAGES = {f"{module}.{name}Storage": kind for name, kind in DTYPES.items() for module in ("torch", "torch.cuda")}
STORAGES |= {"torch.storage.UntypedStorage": torch.uint8}
NAMED_DTYPES = {str(kind): kind for kind in DTYPES.values()}


@dataclass(eq=False)
class Storage:
    """A storage of `numel` numbers at `view`, which is None during the first pass over a legacy file."""

    dtype: torch.dtype
    numel: int
    view: memoryview | None
    budget: Budget

    def __post_init__(self) -> None:
        if self.view is not None and self.view.readonly:  # inflated or short data; torch requires writable memory
            self.budget.charge_held(len(self.view))
            self.view = memoryview(bytearray(self.view))

    def __repr__(self) -> str:
        return f"<storage of {self.numel:,} {self.dtype}>"


# --- Tensors --------------------------------------------------------------------------------------


def make_tensor(machine: Machine, storage: Any, offset: Any, size: Any, stride: Any, kind: Any = None) -> Any:
    """Build a tensor that views a storage and lies inside it; an expanded one (stride 0) repeats its numbers."""
    if not isinstance(storage, Storage):
        return NotImplemented
    if storage.view is None:
        return Record("torch.Tensor")
    size = check_shape(machine, size, "a tensor")
    if type(stride) is not tuple or any(type(step) is not int or not 0 <= step < 2**48 for step in stride):
        raise machine.damaged("a tensor with impossible strides")
    kind = kind or storage.dtype
    held = storage.numel * storage.dtype.itemsize // kind.itemsize
    numel = math.prod(size)
    if len(size) != len(stride) or type(offset) is not int or offset < 0:
        raise machine.damaged("a tensor with impossible dimensions")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if numel and last >= held:
        raise machine.damaged(f"a tensor of shape {size} reaches beyond its storage of {held:,} numbers")
    machine.budget.charge(1000)
    machine.budget.charge_data(numel * kind.itemsize)
    if not numel:
        return torch.empty(size, dtype=kind)
    return torch.frombuffer(storage.view, dtype=kind, count=held).as_strided(size, stride, offset)


@stands_in_for("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
def tensor(machine: Machine, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    return make_tensor(machine, storage, offset, size, stride)


@stands_in_for("torch._utils._rebuild_tensor_v3")
def typed_tensor(machine: Machine, storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> Any:
    kind = next((NAMED_DTYPES[x.path] for x in more if isinstance(x, Global) and x.path in NAMED_DTYPES), None)
    return NotImplemented if kind is None else make_tensor(machine, storage, offset, size, stride, kind)


@stands_in_for("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
def parameter(machine: Machine, data: Any, *_: Any) -> Any:
    return data if isinstance(data, (torch.Tensor, Record)) else NotImplemented


@stands_in_for("torch._tensor._rebuild_from_type_v2", "torch._tensor._rebuild_from_type")
def tensor_of_type(machine: Machine, function: Any, kind: Any, args: Any, *_: Any) -> Any:
    known = isinstance(function, Global) and function.path.startswith("torch._utils._rebuild_")
    known = known and type(args) is tuple and len(args) <= MAX_ARGUMENTS
    return CONSTRUCTORS[function.path](machine, *args) if known and function.path in CONSTRUCTORS else NotImplemented


@stands_in_for("torch.storage._load_from_bytes")
def nested_file(machine: Machine, data: Any) -> Any:
    """Read torch.save bytes inside a pickle, once per distinct byte string, however often the file refers to it."""
    if not isinstance(data, (bytes, memoryview)) or machine.nested >= MAX_NESTED:
        return NotImplemented
    cache = machine.budget.nested
    if id(data) not in cache:
        cache[id(data)] = (data, read_torch(memoryview(data), machine.budget, machine.nested + 1))
    return cache[id(data)][1]


# --- torch's files ------------------------------------------------------------------------------


def read_torch(buffer: memoryview, budget: Budget, nested: int = 0) -> Any:
    """Load the object in a torch file of either format. ConversionError if it is neither."""
    if bytes(buffer[:2]) == b"PK":
        return read_zip(ZipReader(buffer, budget), budget, nested)
    return read_legacy(buffer, budget, nested)


def is_legacy(buffer: memoryview) -> bool:
    """Return whether a file begins with the magic number of the legacy format."""
    return MAGIC.to_bytes(10, "little") in bytes(buffer[:32])


def _storage_id(budget: Budget, key: Any) -> tuple[str, torch.dtype, int, Any]:
    """Parse torch's persistent id ("storage", type, key, device, numel[, view]) into (key, dtype, numel, view)."""
    if type(key) is not tuple or len(key) < 5 or key[0] != "storage" or not isinstance(key[1], Global):
        raise budget.error("damaged (a persistent object that is not a storage)")
    kind = STORAGES.get(key[1].path)
    if kind is None or type(key[2]) is not str or type(key[4]) is not int or not 0 <= key[4] < 2**48:
        raise budget.error(f"damaged, or a storage of an unknown kind ({key[1].path[:60]})")
    return key[2], kind, key[4], key[5] if len(key) > 5 else None


def _module_class(key: Any) -> Global | None:
    """Return the class's name for a legacy file's id of a module's class, ("module", class, file, source code)."""
    is_class = type(key) is tuple and len(key) == 4 and key[0] == "module" and isinstance(key[1], Global)
    return key[1] if is_class else None


def read_zip(archive: ZipReader, budget: Budget, nested: int = 0) -> Any:
    """Load a zip file as torch.save writes it since 1.6: data.pkl, and one entry per storage."""
    pickles = [name for name in archive.names if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(pickles) != 1 or any(name.endswith("/constants.pkl") for name in archive.names):
        kind = "a TorchScript archive, which holds code" if pickles else "a zip file, but not one of torch.save"
        raise budget.error(f"is {kind}: give the checkpoint itself, as torch.save or numpy.savez wrote it")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.names and bytes(archive.read(f"{root}byteorder")) != b"little":
        raise budget.error("was written on a big-endian machine: save it again on a little-endian one")
    known: dict[str, Storage] = {}

    def persistent(key: Any) -> Storage:
        name, kind, numel, _ = _storage_id(budget, key)
        if name not in known:
            view = archive.read(f"{root}data/{name}")
            if len(view) < numel * kind.itemsize:
                raise budget.error(f"damaged: storage {name[:80]!r} claims {numel:,} numbers, has {len(view):,} bytes")
            known[name] = Storage(kind, numel, view, budget)
        found = known[name]
        if (found.dtype, found.numel) != (kind, numel):
            raise budget.error(f"damaged (two descriptions of storage {name[:80]!r})")
        return found

    return Machine(archive.read(pickles[0]), budget, 0, persistent, nested).load()


def read_legacy(buffer: memoryview, budget: Budget, nested: int = 0) -> Any:
    """Load a legacy file: pickles of magic number, version, machine and object, then the storages' keys and data."""
    position = 0

    def load(persistent: Callable[[Any], Any] | None = None) -> Any:
        nonlocal position
        machine = Machine(buffer, budget, position, persistent, nested)
        result = machine.load()
        position = machine.position
        return result

    if load() != MAGIC:
        raise budget.error("is not a torch.save checkpoint (wrong magic number)")
    if load() != VERSION:
        raise budget.error("is a torch.save file of an unknown version")
    system = load()
    if not isinstance(system, Mapping) or system.get("little_endian") is not True:
        raise budget.error("was written on a big-endian machine, or is damaged")
    # The object precedes the data it refers to: read it once for the storages' descriptions, then again with the data.
    begin, described = position, {}  # type: ignore[var-annotated]

    def describe(key: Any) -> Storage | Global:
        if (found := _module_class(key)) is not None:
            return found
        name, kind, numel, _ = _storage_id(budget, key)
        if described.setdefault(name, (kind, numel)) != (kind, numel):
            raise budget.error(f"damaged (two descriptions of storage {name[:80]!r})")
        return Storage(kind, numel, None, budget)

    load(describe)
    keys = load()
    known: dict[str, Storage] = {}
    if type(keys) is not list or any(type(key) is not str or key not in described for key in keys):
        raise budget.error("damaged (its storages do not match its description of them)")
    for key in keys:
        kind, numel = described[key]
        stored = int.from_bytes(bytes(buffer[position : position + 8]), "little")
        start, position = position + 8, position + 8 + numel * kind.itemsize
        if stored != numel or position > len(buffer):
            raise budget.error(
                f"truncated or damaged: storage {key[:80]!r} claims {numel:,} numbers, the file ends before"
            )
        known[key] = Storage(kind, numel, buffer[start:position], budget)

    def persistent(key: Any) -> Storage | Global:
        if (found := _module_class(key)) is not None:
            return found
        name, kind, _, view = _storage_id(budget, key)
        if name not in known:
            raise budget.error(f"truncated or damaged: the data of storage {name[:80]!r} are missing")
        if view is None:
            return known[name]
        # A view of a storage: (name, offset, count).
        if type(view) is not tuple or len(view) != 3 or any(type(n) is not int or n < 0 for n in view[1:]):
            raise budget.error(f"damaged (a part of storage {name[:80]!r})")
        whole, first, count = known[name], view[1], view[2]
        if first + count > whole.numel or whole.view is None:
            raise budget.error(f"damaged (a part of storage {name[:80]!r} reaches beyond it)")
        part = whole.view[first * kind.itemsize : (first + count) * kind.itemsize]
        return Storage(kind, count, part, budget)

    return Machine(buffer, budget, begin, persistent, nested).load()


# --- numpy's files ------------------------------------------------------------------------------

# numpy always writes its header in this order. We match it; numpy's own reader parses it as Python.
HEADER = re.compile(rb"\{'descr': '([<>=|]?\w+)', 'fortran_order': (True|False), 'shape': \(([\dL, ]*)\),? *\}\s*")


def read_npy(buffer: memoryview, budget: Budget, name: str = "") -> np.ndarray:
    """Return the array in a .npy file as a view of the buffer. ConversionError for object arrays (pickles)."""
    what = f"its array {name[:80]!r}" if name else "the array"
    start = bytes(buffer[:12])
    wide = start[6:7] != b"\x01"  # version 1 stores the header's length in two bytes, later versions in four
    begin = 12 if wide else 10
    size = int.from_bytes(start[8:begin], "little")
    match = HEADER.fullmatch(bytes(buffer[begin : begin + size])) if size <= 10_000 else None
    if start[:6] != b"\x93NUMPY" or match is None or begin + size > len(buffer):
        raise budget.error(f"{what} is damaged, or not a plain array of numbers")
    code, columns = match[1].decode(), match[2] == b"True"
    if re.fullmatch(r"[<>=|]?(b1|[iu][1248]|f[248]|c8|c16)", code) is None:
        raise budget.error(f"{what} holds {code!r}, not plain numbers: save it as numbers")
    shape = tuple(int(n) for n in re.findall(rb"\d{1,15}", match[3]))
    kind = np.dtype(code)
    wanted, left = math.prod(shape) * kind.itemsize, len(buffer) - begin - size
    if wanted > left or len(shape) > 16 or math.prod(max(n, 1) for n in shape) > 2**48:
        raise budget.error(f"{what} is truncated: it claims {wanted:,} bytes, {left:,} are there")
    budget.charge_data(wanted)
    if not wanted:
        return np.empty(shape, kind)
    data = buffer[begin + size : begin + size + wanted]
    return np.frombuffer(data, kind).reshape(shape, order="F" if columns else "C")


def read_npz(archive: ZipReader, budget: Budget) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file by name."""
    return {name.removesuffix(".npy"): read_npy(archive.read(name), budget, name) for name in archive.names}
