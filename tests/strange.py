"""Wrong values for any argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from stylefusion_hf import Code, Direction
from tests.tiny import W_DIM, Z_DIM


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("there is no text of this")


class Lengthy:
    def __repr__(self) -> str:
        return "line\n" * 1000


def strange_values() -> dict[str, Any]:
    """A name -> a value, made anew; nothing of it is right everywhere."""
    loop: list[Any] = []
    loop.append(loop)
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    older = Direction("older", "w", torch.ones(W_DIM))
    return {
        "None": None, "True": True, "numpy bool": np.bool_(True), "zero": 0, "negative": -1, "half": 0.5,
        "NaN": float("nan"), "infinite": float("inf"), "huge": 10**30, "of 5000 digits": 10**5000,
        "negative, of 5000 digits": -(10**5000), "text": "x", "no text": "", "long text": "x" * 10**6,
        "two lines": "a\nb", "NUL": "\0", "bytes": b"x", "complex": 1j, "object": object(), "class": int,
        "function": len, "set": {1}, "dict": {}, "dict of a region": {"hair": 1}, "dict of a number": {1: 2},
        "generator": (i for i in range(3)), "unprintable": Unprintable(), "lengthy": Lengthy(),
        "empty list": [], "list of an empty list": [[]], "mixed list": [1, "x"], "list of None": [None],
        "list in itself": loop, "deep list": deep, "tuple": (), "range": range(3), "huge range": range(10**12),
        "numpy int": np.int64(3), "large numpy int": np.uint64(2**63), "numpy float": np.float32(0.5),
        "integers": np.arange(3), "floats": np.zeros((2, 16)), "a float array": np.array(1.5),
        "long double": np.zeros((1, 16), np.longdouble), "big-endian": np.zeros((1, 16), ">f4"),
        "half floats": np.zeros((1, 16), np.float16), "empty array": np.zeros((0, 16)),
        "complex array": np.zeros((1, 16), complex), "objects": np.array([1, None], dtype=object),
        "texts": np.array(["a"]), "bools": np.array([True, False]), "dates": np.array(["2020-01-01"], "M8[D]"),
        "records": np.zeros(2, dtype=[("a", "f4")]), "masked": np.ma.zeros((1, 16)),
        "scalar tensor": torch.tensor(1.0), "vector": torch.zeros(16), "tensor": torch.zeros(2, 16),
        "3-d tensor": torch.zeros(1, 8, 16), "integer tensor": torch.zeros(2, 16, dtype=torch.long),
        "bool tensor": torch.zeros(2, dtype=torch.bool), "empty tensor": torch.zeros(0, 16),
        "NaN tensor": torch.full((1, Z_DIM), torch.nan), "huge tensor": torch.full((1, Z_DIM), 3e38),
        "double beyond float": torch.full((1, Z_DIM), 1e300, dtype=torch.double),
        "meta tensor": torch.zeros(1, 16, device="meta"), "sparse tensor": torch.zeros(1, 16).to_sparse(),
        "complex tensor": torch.zeros(1, 16, dtype=torch.complex64),
        "with a gradient": torch.zeros(1, 16, requires_grad=True),
        "ten million rows": torch.zeros(1, 16).expand(10**7, 16),
        "picture": Image.new("RGB", (32, 32)), "small picture": Image.new("L", (9, 9)),
        "no picture": Image.new("RGB", (0, 0)), "float picture": Image.new("F", (32, 32)),
        "code": Code(torch.zeros(2, W_DIM), "w"), "direction": older, "edit": older(3.0),
        "direction of NaN": (older, float("nan")), "direction of text": (older, "x"),
        "random numbers": torch.Generator(), "list of random numbers": [torch.Generator()],
        "file that is not there": "/nonexistent/x.png",
    }  # fmt: skip
