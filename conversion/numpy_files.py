"""numpy's .npy and .npz, without numpy's pickles and with sizes checked against the file."""

from __future__ import annotations

import io
import math

import numpy as np

from stylefusion_hf.conversion.inert import Budget
from stylefusion_hf.conversion.zip_reader import ZipReader

MAX_HEADER = 10_000


def read_npy(buffer: memoryview, budget: Budget, name: str = "") -> np.ndarray:
    """The array of a .npy file, a view of it. ConversionError for arrays of objects, which would be pickles."""
    what = f"its array {name[:80]!r}" if name else "the array"
    head = io.BytesIO(bytes(buffer[: MAX_HEADER + 12]))
    try:
        version = np.lib.format.read_magic(head)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, columns, kind = read(head, MAX_HEADER)
    except (ValueError, SyntaxError, OverflowError, RecursionError, MemoryError, TypeError) as error:
        raise budget.error(f"{what} is damaged ({str(error)[:120]})") from None
    if kind.hasobject or kind.names or kind.kind not in "biufc":
        raise budget.error(f"{what} holds {kind}, not plain numbers: save it as numbers")
    wanted = math.prod(shape) * kind.itemsize
    data = buffer[head.tell() : head.tell() + wanted] if wanted < 2**60 else b""
    if len(data) != wanted or any(n < 0 for n in shape):
        raise budget.error(f"{what} is truncated: it claims {wanted:,} bytes, {len(buffer) - head.tell():,} are there")
    budget.charge_data(wanted)
    return np.frombuffer(data, kind).reshape(shape, order="F" if columns else "C") if wanted else np.empty(shape, kind)


def read_npz(archive: ZipReader, budget: Budget) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name."""
    return {name.removesuffix(".npy"): read_npy(archive.read(name), budget, name) for name in archive.names}
