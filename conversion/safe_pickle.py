"""Reads checkpoints from strangers: pickles of any age, torch's files, numpy's and safetensors; executes nothing.

Why an opcode loop of its own, not `pickle.Unpickler` with a strict `find_class` nor `torch.load(weights_only=True)`:
- Bounds. The C unpickler allocates what a file declares before it looks (frames, byte counts, memo indices) and knows
  no budget. torch's restricted unpickler lets a file call `bytearray`, so that forty bytes ask for a terabyte, and its
  legacy reader allocates each storage at the size that the file claims.
- Memory. Here byte strings are views of the memory-mapped file: reading copies no tensor.
- One path. Whatever is unpickled in this package passes through the loop in `machine.py`.

The rules: a global is a name and nothing else (`Global`), no module is ever imported for it. Calling one of the names
in `machine.CONSTRUCTORS` runs OUR function of that name, which makes a tensor, an array, a container or a number of
checked arguments; calling anything else makes a `Record` of what was asked for. State fills in a `Record`; on real
objects it does nothing. Everything is charged to a `Budget` before it is made.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from stylefusion_hf.conversion import opcodes, torch_files  # noqa: F401  # both register what the loop uses
from stylefusion_hf.conversion.inert import Budget, ConversionError, Global, LazyArray, LongText, Record
from stylefusion_hf.conversion.machine import Machine
from stylefusion_hf.conversion.numpy_files import read_npy, read_npz
from stylefusion_hf.conversion.torch_files import is_legacy, read_legacy, read_zip
from stylefusion_hf.conversion.zip_reader import ZipReader

__all__ = [
    "Budget",
    "ConversionError",
    "Global",
    "LazyArray",
    "LongText",
    "Record",
    "load",
    "load_mapped",
    "loads",
    "map_file",
]

WEB_PAGE = "is a web page, not a checkpoint: the download was refused or needs a confirmation"

# What people have by mistake in a file that should be a checkpoint.
MISTAKES = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself: run `git lfs pull`, or download it again",
    b"<!doctype": WEB_PAGE,
    b"<html": WEB_PAGE,
    b"<?xml": WEB_PAGE,
    b"\x1f\x8b": "is compressed with gzip: unpack it first",
    b"BZh": "is compressed with bzip2: unpack it first",
    b"\xfd7zXZ": "is compressed with xz: unpack it first",
    b"\x89HDF": "is an HDF5 file, which holds no StyleGAN2 checkpoint that is known here",
    b"\x89PNG": "is a picture",
    b"\xff\xd8\xff": "is a picture",
}


def map_file(path: str | os.PathLike) -> memoryview:
    """The file's bytes, mapped and not read. Copy-on-write, because torch wants memory that it may write to."""
    path = Path(path)
    if path.is_dir():
        raise ConversionError(f"{path}: is a folder, expected a checkpoint file")
    check_ordinary(path)
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ConversionError(f"{path}: the file is empty; download it again")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read ({error.strerror or error})") from error


def check_ordinary(path: Path) -> None:
    """ConversionError for devices and pipes, which may have no end, and may block for ever when they are opened."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ConversionError(f"{path}: is no ordinary file but a device, pipe or socket; save it to a file first")


def load(path: str | os.PathLike) -> Any:
    """The object in a checkpoint file of any kind: .pkl, .pt, .pth, .npy, .npz, .safetensors, told apart by content.

    Tensors are `torch.Tensor`, arrays `numpy.ndarray` (or `LazyArray`), both views of the file; dictionaries, lists,
    tuples, sets, text, bytes and numbers are plain; all else is a `Record` or a `Global`.

    Raises:
        ConversionError: the file is missing, truncated, damaged, of another kind, or made to exhaust the machine.
    """
    return load_mapped(path)[0]


def load_mapped(path: str | os.PathLike) -> tuple[Any, memoryview]:
    """As `load`, with the mapped file, whose pages a caller may want to drop in between."""
    buffer = map_file(path)
    if looks_like_safetensors(buffer):
        try:
            return safetensors.torch.load_file(path), buffer  # maps it itself; checks its header against the size
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise ConversionError(f"{path}: is a damaged safetensors file ({error})") from None
    return loads(buffer, os.fspath(path)), buffer


def looks_like_safetensors(buffer: memoryview) -> bool:
    return bytes(buffer[8:9]) == b"{" and int.from_bytes(buffer[:8], "little") <= len(buffer)


def loads(data: bytes | memoryview, name: str = "<bytes>") -> Any:
    """As `load`, from the bytes of a pickle, a torch file or a numpy file; `name` stands in error messages."""
    buffer = memoryview(data)
    budget = Budget(name, len(buffer))
    start = bytes(buffer[:64])
    prose = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for magic, problem in MISTAKES.items():
        if start.startswith(magic) or prose.startswith(magic):
            raise budget.error(problem)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        archive = ZipReader(buffer, budget)
        if archive.names and all(entry.endswith(".npy") for entry in archive.names):
            return read_npz(archive, budget)
        return read_zip(archive, budget)
    if start.startswith(b"\x93NUMPY"):
        return read_npy(buffer, budget)
    if is_legacy(buffer):
        return read_legacy(buffer, budget)
    if start[:1] != b"\x80" and start[:1] not in (b"(", b"c", b"]", b"}"):  # protocols 0 and 1 have no magic
        raise budget.error(f"is no checkpoint: it begins with {start[:8]!r}; .pkl, .pt, .npz and the like can be read")
    return Machine(buffer, budget).load()
