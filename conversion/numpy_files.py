"""Reader for numpy's .npy and .npz files that rejects pickled objects and checks sizes against the file."""

from __future__ import annotations

import math
import re

import numpy as np

from stylefusion_hf.conversion.inert import Budget
from stylefusion_hf.conversion.zip_reader import ZipReader

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
