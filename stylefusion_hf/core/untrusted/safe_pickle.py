"""Reader for untrusted checkpoints: pickles, torch, numpy and safetensors files. Executes nothing.

Why not `pickle.Unpickler` with a strict `find_class`, or `torch.load(weights_only=True)`:
- Bounds. The C unpickler allocates whatever size a file declares (frames, byte counts, memo indices), without any
  budget. torch's restricted unpickler lets a file call `bytearray`, so that forty bytes request a terabyte, and its
  legacy reader allocates each storage at the size that the file claims.
- Memory. Here byte strings are views of the memory-mapped file: reading does not copy tensors.
- One path. Everything unpickled in this package passes through the opcode loop in `machine.py`.

The rules: a global is only a name (`Global`); no module is imported for it. Calling one of the names in
`machine.CONSTRUCTORS` runs OUR function of that name, which builds a tensor, an array, a container or a number from
checked arguments; any other call becomes a `Record` of what was requested. State is stored in a `Record` and ignored
on real objects. Everything is charged to a `Budget` before it is created.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from stylefusion_hf.core.untrusted import array_files, opcodes  # noqa: F401  # importing both registers their handlers
from stylefusion_hf.core.untrusted.array_files import is_legacy, read_legacy, read_npy, read_npz, read_zip
from stylefusion_hf.core.untrusted.inert import Budget, ConversionError, Global, LazyArray, LongText, Record
from stylefusion_hf.core.untrusted.machine import Machine
from stylefusion_hf.core.untrusted.zip_reader import ZipReader

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

# Files that users often mistake for checkpoints: first bytes -> problem.
MISTAKES = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself: run `git lfs pull`, or download it again",
    b"<!doctype": WEB_PAGE,
    b"<html": WEB_PAGE,
    b"<?xml": WEB_PAGE,
    b"\x1f\x8b": "is compressed with gzip: unpack it first",
    b"BZh": "is compressed with bzip2: unpack it first",
    b"\xfd7zXZ": "is compressed with xz: unpack it first",
    b"\x89HDF": "is an HDF5 file, which no supported StyleGAN2 checkpoint uses",
    b"\x89PNG": "is a picture",
    b"\xff\xd8\xff": "is a picture",
}


def map_file(path: str | os.PathLike) -> memoryview:
    """Memory-map a file. The mapping is copy-on-write, because torch requires writable memory."""
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
    """Raise ConversionError for devices, pipes and sockets: reading them may never end, and opening them may block."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ConversionError(f"{path}: is a device, pipe or socket, not a regular file; save it to a file first")


def load(path: str | os.PathLike) -> Any:
    """Load a checkpoint file: .pkl, .pt, .pth, .npy, .npz or .safetensors, detected by content.

    Tensors are `torch.Tensor`, arrays `numpy.ndarray` (or `LazyArray`), both views of the file; dictionaries, lists,
    tuples, sets, text, bytes and numbers are built-in types; anything else is a `Record` or a `Global`.

    Raises:
        ConversionError: the file is missing, truncated, damaged, of another kind, or designed to exhaust memory.
    """
    return load_mapped(path)[0]


def load_mapped(path: str | os.PathLike) -> tuple[Any, memoryview]:
    """Load a checkpoint as `load` does; also return the mapped file, whose pages the caller may want to release."""
    buffer = map_file(path)
    if looks_like_safetensors(buffer):
        try:
            return safetensors.torch.load_file(path), buffer  # maps the file itself, checks its header
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise ConversionError(f"{path}: is a damaged safetensors file ({error})") from None
    return loads(buffer, os.fspath(path)), buffer


def looks_like_safetensors(buffer: memoryview) -> bool:
    return bytes(buffer[8:9]) == b"{" and int.from_bytes(buffer[:8], "little") <= len(buffer)


def loads(data: bytes | memoryview, name: str = "<bytes>") -> Any:
    """Load the bytes of a pickle, torch or numpy file as `load` does; error messages call it `name`."""
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
    if start[:1] != b"\x80" and start[:1] not in (b"(", b"c", b"]", b"}"):  # protocols 0 and 1 have no magic number
        raise budget.error(f"is not a checkpoint: it begins with {start[:8]!r}; .pkl, .pt, .npz and such can be read")
    return Machine(buffer, budget).load()
