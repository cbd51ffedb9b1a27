"""The operations of OpenVINO graphs that exported MobileStyleGANs use, in torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.conversion.openvino_ir import Graph, Layer, parse_dims
from stylefusion_hf.conversion.report import printable
from stylefusion_hf.core.untrusted.inert import ConversionError

MAX_NUMBERS = 2**27  # in one result: half a gigabyte


class _Unsupported(Exception):
    """An attribute or argument that is not supported."""


# --- Arguments -------------------------------------------------------------------------------------------------------


def _integers(x: Tensor) -> list[int]:
    if x.is_meta:
        raise _Unsupported("takes a shape or an axis that depends on the input")
    return [int(v) for v in x.flatten().tolist()]


def _pair(layer: Layer, name: str, default: int) -> tuple[int, int]:
    text = layer.attributes.get(name)
    dims = (default, default) if text is None else parse_dims(text)
    if dims is None or len(dims) != 2:
        raise _Unsupported(f"has {name}={printable(str(text)[:40])!r}, expected two numbers")
    return dims[0], dims[1]


def _flag(layer: Layer, name: str, default: bool) -> bool:
    return layer.attributes.get(name, str(default)).lower() in ("true", "1")


def _geometry(layer: Layer) -> dict[str, Any]:
    """Return stride, padding and dilation of a convolution, which must pad all sides equally."""
    begin, end = _pair(layer, "pads_begin", 0), _pair(layer, "pads_end", 0)
    if begin != end or layer.attributes.get("auto_pad", "explicit") not in ("explicit", "notset"):
        raise _Unsupported("pads its sides unequally or automatically")
    return {"stride": _pair(layer, "strides", 1), "padding": begin, "dilation": _pair(layer, "dilations", 1)}


# --- Operations ------------------------------------------------------------------------------------------------------


def _matmul(layer: Layer, a: Tensor, b: Tensor) -> Tensor:
    a = a.transpose(-1, -2) if _flag(layer, "transpose_a", False) else a
    return a @ (b.transpose(-1, -2) if _flag(layer, "transpose_b", False) else b)


def _convolution(layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, **_geometry(layer))


def _group_convolution(layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight.flatten(0, 1), groups=weight.shape[0], **_geometry(layer))


def _group_transposed(layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
    if any(_pair(layer, "output_padding", 0)):
        raise _Unsupported("has output_padding")
    return F.conv_transpose2d(x, weight.flatten(0, 1), groups=weight.shape[0], **_geometry(layer))


def _prelu(layer: Layer, x: Tensor, slope: Tensor) -> Tensor:
    if slope.numel() > 1:
        slope = slope.flatten().view(-1, *[1] * (x.ndim - 2))
    return torch.where(x < 0, x * slope, x)


def _reshape(layer: Layer, x: Tensor, shape: Tensor) -> Tensor:
    sizes = _integers(shape)
    if _flag(layer, "special_zero", False):
        sizes = [x.shape[i] if size == 0 and i < x.ndim else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def _squeeze(layer: Layer, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(_integers(axes)))


def _unsqueeze(layer: Layer, x: Tensor, axes: Tensor) -> Tensor:
    for axis in sorted(axis % (x.ndim + axes.numel()) for axis in _integers(axes)):
        x = x.unsqueeze(axis)
    return x


def _gather(layer: Layer, x: Tensor, index: Tensor, axis: Tensor) -> Tensor:
    (dim,) = _integers(axis)
    chosen = torch.tensor(_integers(index), device=x.device)
    chosen = torch.where(chosen < 0, chosen + x.shape[dim], chosen)
    taken = x.index_select(dim, chosen)
    return taken.squeeze(dim) if index.ndim == 0 else taken


def _concat(layer: Layer, *parts: Tensor) -> Tensor:
    return torch.cat(parts, int(layer.attributes.get("axis", "0")))


def _variadic_split(layer: Layer, x: Tensor, axis: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
    (dim,), lengths = _integers(axis), _integers(sizes)
    lengths = [x.shape[dim] - sum(s for s in lengths if s >= 0) if s == -1 else s for s in lengths]
    return x.split(lengths, dim)


def _split(layer: Layer, x: Tensor, axis: Tensor) -> tuple[Tensor, ...]:
    count = int(layer.attributes.get("num_splits", "0"))
    (dim,) = _integers(axis)
    if count < 1 or x.shape[dim] % count:
        raise _Unsupported(f"splits {x.shape[dim]} into {count}")
    return x.split(x.shape[dim] // count, dim)


def _broadcast(layer: Layer, x: Tensor, shape: Tensor) -> Tensor:
    sizes = _integers(shape)
    if layer.attributes.get("mode", "numpy") == "bidirectional":
        sizes = list(torch.broadcast_shapes(x.shape, sizes))
    return x.expand(sizes)


def _tile(layer: Layer, x: Tensor, repeats: Tensor) -> Tensor:
    counts = _integers(repeats)
    counts = [1] * (x.ndim - len(counts)) + counts
    sizes = [1] * (len(counts) - x.ndim) + list(x.shape)
    if math.prod(n * c for n, c in zip(sizes, counts, strict=True)) > MAX_NUMBERS:
        raise _Unsupported("repeats its input beyond any network's size")
    return x.repeat(counts)


def _mean(layer: Layer, x: Tensor, axes: Tensor) -> Tensor:
    return x.mean(tuple(_integers(axes)), keepdim=_flag(layer, "keep_dims", False))


def _transpose(layer: Layer, x: Tensor, order: Tensor) -> Tensor:
    return x.permute(_integers(order))


def _convert(layer: Layer, x: Tensor) -> Tensor:
    kind = layer.attributes.get("destination_type", "")
    if kind not in ("f32", "f64", "f16", "i64", "i32"):
        raise _Unsupported(f"converts to {printable(kind[:40])!r}")
    names = {"f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "i64": torch.int64, "i32": torch.int32}
    return x.to(names[kind])


OPERATIONS: Mapping[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "Add": lambda layer, a, b: a + b,
    "Broadcast": _broadcast,
    "Concat": _concat,
    "Convert": _convert,
    "Convolution": _convolution,
    "Divide": lambda layer, a, b: a / b,
    "Gather": _gather,
    "GroupConvolution": _group_convolution,
    "GroupConvolutionBackpropData": _group_transposed,
    "MatMul": _matmul,
    "Multiply": lambda layer, a, b: a * b,
    "PReLU": _prelu,
    "Power": lambda layer, a, b: a**b,
    "ReduceMean": _mean,
    "Reshape": _reshape,
    "Split": _split,
    "Sqrt": lambda layer, x: x.sqrt(),
    "Squeeze": _squeeze,
    "Subtract": lambda layer, a, b: a - b,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "VariadicSplit": _variadic_split,
}

# Inputs that are shapes, axes or counts: their values are needed even to compute shapes.
CONSTANT_INPUTS = {
    "Broadcast": (1,), "Gather": (1, 2), "ReduceMean": (1,), "Reshape": (1,), "Split": (1,), "Squeeze": (1,),
    "Tile": (1,), "Transpose": (1,), "Unsqueeze": (1,), "VariadicSplit": (1, 2),
}  # fmt: skip


def compute(graph: Graph, layer: Layer, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Compute a layer's outputs, one per output port.

    Raises:
        ConversionError: an unsupported operation, or inputs that do not fit it; names the layer.
    """
    operation = OPERATIONS.get(layer.type)
    if operation is None:
        raise graph.error(f"{layer}: is an unsupported operation")
    try:
        results = operation(layer, *inputs)
    except ConversionError:
        raise
    except _Unsupported as error:
        raise graph.error(f"{layer}: {error}") from None
    except (RuntimeError, ValueError, TypeError, LookupError, OverflowError) as error:
        shapes = ", ".join("x".join(map(str, x.shape)) or "one number" for x in inputs)
        reason = printable(" ".join(str(error).split())[:80])
        raise graph.error(f"{layer}: its inputs ({shapes}) do not fit it ({reason})") from None
    outputs = results if isinstance(results, tuple) else (results,)
    if len(outputs) != len(layer.outputs):
        raise graph.error(f"{layer}: has {len(layer.outputs)} outputs, expected {len(outputs)}")
    return outputs
