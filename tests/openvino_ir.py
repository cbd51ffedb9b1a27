"""Writes small MobileStyleGANs in OpenVINO's format: random ones, of any size, under any names.

An `Emitter` computes each layer's output as it adds it, so that ports declare the right shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import torch
import torch.nn.functional as F

KINDS = {torch.float32: ("f32", "FP32"), torch.int64: ("i64", "I64"), torch.int32: ("i32", "I32")}


@dataclass
class Node:
    """One output of a layer, and its numbers."""

    layer: int
    port: int
    value: torch.Tensor


@dataclass
class Emitter:
    """A graph in the making.

    Attributes:
        name: gives a layer's name from its number: free text.
    """

    name: Callable[[int], str] = field(default=lambda i: f"op_{i}")
    layers: list[str] = field(default_factory=list)
    edges: list[tuple[int, int, int, int]] = field(default_factory=list)
    weights: bytearray = field(default_factory=bytearray)
    places: dict[bytes, int] = field(default_factory=dict)

    def op(
        self, kind: str, inputs: Sequence[Node], values: torch.Tensor | Sequence[torch.Tensor], **attributes
    ) -> list[Node]:
        """Add a layer that computes `values` from `inputs`."""
        number = len(self.layers)
        values = [values] if isinstance(values, torch.Tensor) else list(values)
        given = "".join(self._port(k, node.value) for k, node in enumerate(inputs))
        made = "".join(self._port(len(inputs) + k, value) for k, value in enumerate(values))
        data = "".join(f" {key}={quoteattr(str(value))}" for key, value in attributes.items())
        self.layers.append(
            f'<layer id="{number}" name={quoteattr(self.name(number))} type="{kind}" version="opset1">'
            + (f"<data{data}/>" if data else "")
            + (f"<input>{given}</input>" if inputs else "")
            + (f"<output>{made}</output>" if values else "")
            + "</layer>"
        )
        self.edges += [(node.layer, node.port, number, k) for k, node in enumerate(inputs)]
        return [Node(number, len(inputs) + k, value) for k, value in enumerate(values)]

    def one(self, kind: str, inputs: Sequence[Node], value: torch.Tensor, **attributes) -> Node:
        return self.op(kind, inputs, value, **attributes)[0]

    def const(self, value, dtype: torch.dtype = torch.float32) -> Node:
        value = torch.as_tensor(value, dtype=dtype)
        data = value.numpy().tobytes()
        if data not in self.places or len(data) > 64:
            self.places[data] = len(self.weights)
            self.weights += data
        shape = ", ".join(map(str, value.shape))
        where = {"offset": self.places[data], "size": len(data)}
        return self.one("Const", [], value, element_type=KINDS[dtype][0], shape=shape, **where)

    def ints(self, *values: int) -> Node:
        return self.const(list(values), torch.int64)

    def _port(self, number: int, value: torch.Tensor) -> str:
        dims = "".join(f"<dim>{size}</dim>" for size in value.shape)
        return f'<port id="{number}" precision="{KINDS[value.dtype][1]}">{dims}</port>'

    def xml(self) -> str:
        edges = "".join(
            f'<edge from-layer="{a}" from-port="{b}" to-layer="{c}" to-port="{d}"/>' for a, b, c, d in self.edges
        )
        layers = "\n".join(self.layers)
        head = '<?xml version="1.0" ?>\n<net name="any" version="10">'
        return f"{head}\n<layers>\n{layers}\n</layers>\n<edges>{edges}</edges>\n<meta_data/>\n</net>\n"

    def save(self, folder: Path, stem: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}.xml").write_text(self.xml())
        (folder / f"{stem}.bin").write_bytes(self.weights)
        return folder / f"{stem}.xml"

    # --- Layers that are used often ---

    def add(self, a: Node, b: Node) -> Node:
        return self.one("Add", [a, b], a.value + b.value, auto_broadcast="numpy")

    def multiply(self, a: Node, b: Node) -> Node:
        return self.one("Multiply", [a, b], a.value * b.value, auto_broadcast="numpy")

    def prelu(self, x: Node, slope: float = 0.2) -> Node:
        return self.one("PReLU", [x, self.const([slope])], F.leaky_relu(x.value, slope))

    def size(self, x: Node, axis: int) -> Node:
        """(1,), one of x's sizes, as exporters find it."""
        shape = self.one("ShapeOf", [x], torch.tensor(x.value.shape), output_type="i64")
        which, zero = self.const(axis, torch.int32), self.const(0, torch.int64)
        picked = self.one("Gather", [shape, which, zero], shape.value[axis], batch_dims=0)
        return self.one("Unsqueeze", [picked, self.ints(0)], picked.value[None])

    def reshape(self, x: Node, *sizes: Node) -> Node:
        shape = self.one("Concat", sizes, torch.cat([s.value for s in sizes]), axis=0)
        return self.one("Reshape", [x, shape], x.value.reshape(shape.value.tolist()), special_zero="true")


@dataclass
class Spec:
    """The random network to write."""

    channels: Sequence[int] = (12, 8, 6)  # at 4, 8, ... px
    w_dim: int = 16
    z_dim: int = 16
    mapping: Sequence[int] = (16, 16)  # widths of the mapping network's layers
    img_channels: int = 3
    noise: bool = True
    seed: int = 0
    slope: float = 0.2
    mapping_gain: float = math.sqrt(2)
    gain: float = 1.0  # a factor on all gains of styles
    flipped: bool = False  # operands the other way around
    name: Callable[[int], str] = field(default=lambda i: f"op_{i}")

    @property
    def resolution(self) -> int:
        return 4 * 2 ** len(self.channels)


def write_mapping(spec: Spec) -> Emitter:
    """z -> w."""
    e, draw = Emitter(spec.name), torch.Generator().manual_seed(spec.seed)
    z = e.one("Parameter", [], torch.randn(1, spec.z_dim), shape=f"1, {spec.z_dim}", element_type="f32")
    square = e.one("Power", [z, e.const([[2.0]])], z.value**2)
    mean = e.one("ReduceMean", [square, e.ints(1)], square.value.mean(1, keepdim=True), keep_dims="true")
    shifted = e.add(mean, e.const([[1e-8]]))
    root = e.one("Power", [shifted, e.const([[0.5]])], shifted.value**0.5)
    inverse = e.one("Power", [root, e.const([[-1.0]])], root.value**-1)
    x = e.multiply(z, e.multiply(e.const([[1.0]]), inverse))
    for width in spec.mapping:
        weight = e.const(torch.randn(width, x.value.shape[1], generator=draw) / math.sqrt(x.value.shape[1]))
        product = e.one("MatMul", [x, weight], x.value @ weight.value.t(), transpose_a="false", transpose_b="true")
        bias = e.const(torch.randn(width, generator=draw) * 0.3)
        bias = e.reshape(bias, e.ints(1), e.size(product, 1))
        x = e.multiply(e.prelu(e.add(product, bias), spec.slope), e.const([[spec.mapping_gain]]))
    e.op("Result", [x], [])
    return e


def write_synthesis(spec: Spec) -> Emitter:
    """w -> picture."""
    e, draw = Emitter(spec.name), torch.Generator().manual_seed(spec.seed + 1)

    def normal(*shape: int, std: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=draw) * std

    w = e.one("Parameter", [], torch.randn(1, spec.w_dim), shape=f"1, {spec.w_dim}", element_type="f32")

    def scale(x: Node, gain: float | None) -> Node:
        count = x.value.shape[1]
        weight = e.const(normal(count, spec.w_dim, std=0.5 / math.sqrt(spec.w_dim)))
        product = e.one("MatMul", [w, weight], w.value @ weight.value.t(), transpose_a="false", transpose_b="true")
        style = e.add(product, e.const(1 + normal(1, count, std=0.3)))
        style = e.reshape(style, e.size(w, 0), e.ints(-1), e.ints(1), e.ints(1))
        if gain is not None:
            style = e.multiply(style, e.const([[[[gain * spec.gain]]]]))
        return e.multiply(*((x, style) if spec.flipped else (style, x)))

    def finish(x: Node) -> Node:
        channels, size = x.value.shape[1:3]
        if spec.noise:
            x = e.add(x, e.const(normal(1, 1, size, size, std=0.1)))
        return e.prelu(e.add(x, e.const(normal(1, channels, 1, 1, std=0.2))), spec.slope)

    def conv(x: Node, weight: torch.Tensor, groups: int = 1) -> Node:
        pad = weight.shape[-1] // 2
        given = e.const(weight[:, None] if groups > 1 else weight)
        kind = "GroupConvolution" if groups > 1 else "Convolution"
        sides = {"strides": "1, 1", "dilations": "1, 1", "pads_begin": f"{pad}, {pad}", "pads_end": f"{pad}, {pad}"}
        return e.one(
            kind, [x, given], F.conv2d(x.value, weight, padding=pad, groups=groups), **sides, auto_pad="explicit"
        )

    def grow(x: Node, taps: tuple[float, float], vertical: bool) -> Node:
        channels = x.value.shape[1]
        kernel = (torch.tensor(taps) / math.sqrt(2)).view(1, 1, 2, 1) if vertical else None
        kernel = (torch.tensor(taps) / math.sqrt(2)).view(1, 1, 1, 2) if kernel is None else kernel
        weight = kernel.repeat(channels, 1, 1, 1)
        stride = (2, 1) if vertical else (1, 2)
        sides = {"strides": f"{stride[0]}, {stride[1]}", "pads_begin": "0, 0", "pads_end": "0, 0"}
        value = F.conv_transpose2d(x.value, weight, stride=stride, groups=channels)
        inputs = [x, e.const(weight[:, None])]
        return e.one("GroupConvolutionBackpropData", inputs, value, **sides, dilations="1, 1", output_padding="0, 0")

    def wavelets(x: Node) -> Node:
        channels = x.value.shape[1] // 4
        parts = x.value.split([channels, 3 * channels], 1)
        low, rest = e.op("VariadicSplit", [x, e.const(1, torch.int64), e.ints(channels, 3 * channels)], parts)
        rest = e.reshape(rest, e.size(x, 0), e.ints(channels), e.ints(3), e.size(x, 2), e.size(x, 3))
        split = e.op("VariadicSplit", [rest, e.const(2, torch.int64), e.ints(1, 1, 1)], rest.value.split(1, 2))
        lh, hl, hh = (e.one("Squeeze", [part, e.ints(2)], part.value.squeeze(2)) for part in split)
        plus, minus = (1.0, 1.0), (1.0, -1.0)
        left = grow(e.add(grow(low, plus, True), grow(lh, minus, True)), plus, False)
        right = grow(e.add(grow(hl, plus, True), grow(hh, minus, True)), minus, False)
        return e.add(left, right)

    width = spec.channels[0]
    x = e.const(normal(1, width, 4, 4))
    ones = e.one("Concat", [e.size(w, 0), e.ints(1), e.ints(1), e.ints(1)], torch.ones(4, dtype=torch.int64), axis=0)
    x = e.one("Broadcast", [x, ones], x.value, mode="bidirectional")
    x = e.one("Tile", [x, ones], x.value)
    x = finish(conv(scale(x, 1 / math.sqrt(9 * width)), normal(width, width, 3, 3)))
    for width in spec.channels[1:]:
        x = wavelets(scale(x, None))
        for _ in range(2):
            count = x.value.shape[1]
            x = conv(scale(x, 1 / math.sqrt(9 * count)), normal(count, 1, 3, 3, std=math.sqrt(count)), count)
            x = finish(conv(x, normal(width, count, 1, 1, std=1 / math.sqrt(count))))
    x = conv(scale(x, 1 / math.sqrt(width)), normal(4 * spec.img_channels, width, 1, 1, std=0.5))
    x = wavelets(e.add(x, e.const(normal(1, 4 * spec.img_channels, 1, 1, std=0.1))))
    e.op("Result", [x], [])
    return e


def write_model(folder: Path, spec: Spec | None = None, stems: tuple[str, str] = ("a", "b")) -> Path:
    """Both networks into a folder: the mapping network under the first name."""
    spec = spec or Spec()
    write_mapping(spec).save(folder, stems[0])
    write_synthesis(spec).save(folder, stems[1])
    return folder


def floats(data: bytes) -> np.ndarray:
    """The .bin as numbers that can be changed."""
    return np.frombuffer(bytearray(data[: len(data) // 4 * 4]), "<f4")
