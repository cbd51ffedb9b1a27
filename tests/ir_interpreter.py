"""Computes a network in OpenVINO's format as its file says, layer by layer: what converted models are held to.

Written apart from the converter, for files that are trusted.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

TYPES = {"f32": np.float32, "i64": np.int64, "i32": np.int32}


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")] if text.strip() else []


class Interpreter:
    """A network from its .xml and the .bin beside it."""

    def __init__(self, path: Path):
        root = ET.parse(path).getroot()
        self.weights = path.with_suffix(".bin").read_bytes()
        self.layers = {layer.get("id"): layer for layer in root.find("layers")}
        self.sources: dict[str, dict[str, tuple[str, str]]] = {name: {} for name in self.layers}
        for edge in root.find("edges"):
            end = (edge.get("from-layer"), edge.get("from-port"))
            self.sources[edge.get("to-layer")][edge.get("to-port")] = end

    def inputs(self, name: str) -> list[tuple[str, str]]:
        ports = self.layers[name].find("input")
        return [] if ports is None else [self.sources[name][port.get("id")] for port in ports]

    def of_type(self, *kinds: str) -> list[str]:
        return [name for name, layer in self.layers.items() if layer.get("type") in kinds]

    @torch.inference_mode()
    def __call__(self, given: torch.Tensor, *wanted: str) -> list[torch.Tensor]:
        """The result, and then the first outputs of the layers in `wanted`."""
        (result,) = self.of_type("Result")
        ends = [*self.inputs(result), *((name, self.first_port(name)) for name in wanted)]
        left = dict.fromkeys(self.layers, 0)
        for name in self.layers:
            for giver, _ in self.inputs(name):
                left[giver] += 1
        values: dict[str, dict[str, torch.Tensor]] = {}
        stack = [name for name, _ in ends]
        while stack:
            name = stack[-1]
            missing = [giver for giver, _ in self.inputs(name) if giver not in values]
            if name in values:
                stack.pop()
            elif missing:
                stack += missing
            else:
                args = [values[giver][port] for giver, port in self.inputs(name)]
                outputs = self.compute(name, args, given)
                ports = [port.get("id") for port in self.layers[name].find("output")]
                values[name] = dict(zip(ports, outputs, strict=True))
                for giver, _ in self.inputs(name):  # 1024 px do not fit into memory otherwise
                    left[giver] -= 1
                    if not left[giver] and giver not in wanted:
                        values[giver] = {}
        return [values[name][port] for name, port in ends]

    def first_port(self, name: str) -> str:
        return self.layers[name].find("output")[0].get("id")

    def compute(self, name: str, args: list[torch.Tensor], given: torch.Tensor) -> list[torch.Tensor]:
        layer = self.layers[name]
        data = layer.find("data")
        has = {} if data is None else data.attrib
        match layer.get("type"), args:
            case "Parameter", _:
                return [given]
            case "Const", _:
                array = np.frombuffer(self.weights, np.uint8, int(has["size"]), int(has["offset"]))
                array = np.frombuffer(array.tobytes(), TYPES[has["element_type"]])
                return [torch.from_numpy(array.copy()).reshape(numbers(has["shape"]))]
            case "Add", (a, b):
                return [a + b]
            case "Multiply", (a, b):
                return [a * b]
            case "Power", (a, b):
                return [torch.pow(a, b)]
            case "ReduceMean", (x, axes):
                return [x.mean(axes.tolist(), keepdim=has["keep_dims"] == "true")]
            case "MatMul", (a, b):
                assert has["transpose_a"] == "false"
                return [a @ (b.t() if has["transpose_b"] == "true" else b)]
            case "PReLU", (x, slope):
                return [F.prelu(x, slope)]
            case "ShapeOf", (x,):
                return [torch.tensor(x.shape)]
            case "Gather", (x, index, axis):
                return [torch.from_numpy(np.asarray(np.take(x.numpy(), index.numpy(), axis.item())))]
            case "Unsqueeze", (x, axes):
                return [torch.from_numpy(np.expand_dims(x.numpy(), tuple(axes.tolist())))]
            case "Squeeze", (x, axes):
                return [torch.from_numpy(np.squeeze(x.numpy(), tuple(axes.tolist())))]
            case "Concat", parts:
                return [torch.cat(parts, int(has["axis"]))]
            case "Reshape", (x, shape):
                sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(shape.tolist())]
                return [x.reshape(sizes)]
            case "Broadcast", (x, shape):
                sizes = shape.tolist()
                return [x.expand(torch.broadcast_shapes(x.shape, sizes) if has["mode"] == "bidirectional" else sizes)]
            case "Tile", (x, repeats):
                return [x.repeat(repeats.tolist())]
            case "VariadicSplit", (x, axis, sizes):
                return list(x.split(sizes.tolist(), int(axis)))
            case "Convolution", (x, weight):
                return [F.conv2d(x, weight, None, *self.geometry(has))]
            case "GroupConvolution", (x, weight):
                return [F.conv2d(x, weight.flatten(0, 1), None, *self.geometry(has), weight.shape[0])]
            case "GroupConvolutionBackpropData", (x, weight):
                stride, padding, dilation = self.geometry(has)
                return [
                    F.conv_transpose2d(x, weight.flatten(0, 1), None, stride, padding, 0, weight.shape[0], dilation)
                ]
            case kind, _:
                raise NotImplementedError(kind)

    @staticmethod
    def geometry(has: dict[str, str]) -> tuple[list[int], list[int], list[int]]:
        assert has["pads_begin"] == has["pads_end"]
        return numbers(has["strides"]), numbers(has["pads_begin"]), numbers(has["dilations"])
