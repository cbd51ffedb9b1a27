"""An OpenVINO graph as a network: its shapes and constants, its evaluation, and its layers seen from an output.

The shape of every result is computed on torch's meta device before anything is allocated.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stylefusion_hf.conversion.ir_operations import CONSTANT_INPUTS, MAX_NUMBERS, compute
from stylefusion_hf.conversion.openvino_ir import Graph, Layer, Output, parse_dims
from stylefusion_hf.conversion.report import printable
from stylefusion_hf.core.untrusted.inert import ConversionError

MAX_FOLDED = 2**25  # numbers in all results that depend on constants only

Values = dict[Output, Tensor]  # results that depend on the input are meta tensors: a shape without data


# --- Evaluation ------------------------------------------------------------------------------------------------------


def infer(graph: Graph) -> Values:
    """Infer all outputs: their values if they depend on constants only, else meta tensors of their shapes.

    Raises:
        ConversionError: as from `compute`; shapes that exceed bounds or differ from the declared ones; not exactly one
            input and one result.
    """
    for kind in ("Parameter", "Result"):
        if len(graph.of_type(kind)) != 1:
            raise graph.error(f"has {len(graph.of_type(kind))} layers of the type {kind}, expected one")
    values: Values = {}
    folded = 0
    for layer in graph.layers.values():
        if layer.type == "Result":
            if len(layer.inputs) != 1:
                raise graph.error(f"{layer}: has {len(layer.inputs)} inputs, expected one")
            continue
        inputs = [values[source] for source in layer.inputs]
        outputs: tuple[Tensor, ...]
        if layer.type == "Const":
            outputs = (graph.constant(layer),)
        elif layer.type == "Parameter":
            outputs = (_parameter(graph, layer),)
        elif layer.type == "ShapeOf":
            outputs = tuple(torch.tensor(x.shape, dtype=torch.int64) for x in inputs)
        else:
            outputs = compute(graph, layer, _to_meta(layer, inputs))
            if (largest := max(x.numel() for x in outputs)) > MAX_NUMBERS:
                raise graph.error(f"{layer}: gives {largest:,} numbers, more than can be handled")
            if not any(x.is_meta for x in inputs):
                folded += sum(x.numel() for x in outputs)
                if folded > MAX_FOLDED:
                    raise graph.error(f"{layer}: more is computed from constants than any network needs")
                outputs = compute(graph, layer, inputs)
        for (port, declared), output in zip(layer.outputs.items(), outputs, strict=False):
            if declared is not None and declared != tuple(output.shape):
                stated, found = ("x".join(map(str, shape)) or "one number" for shape in (declared, output.shape))
                raise graph.error(f"{layer}: declares an output of {stated}, but gives {found}")
            values[layer.id, port] = output
        if len(outputs) != len(layer.outputs):
            raise graph.error(f"{layer}: has {len(layer.outputs)} outputs, expected {len(outputs)}")
    return values


def _parameter(graph: Graph, layer: Layer) -> Tensor:
    """Return the network's input as a meta tensor (1, width); its batch may be dynamic in the file."""
    text = layer.attributes.get("shape", "")
    first, comma, rest = text.partition(",")
    dims = parse_dims(f"1,{rest}" if comma and first.strip() in ("-1", "?") else text)
    if dims is None or len(dims) != 2 or dims[0] != 1 or layer.attributes.get("element_type") not in ("f32", None):
        raise graph.error(f"{layer}: is of shape {printable(text[:40])!r}, expected 1, WIDTH of f32")
    return torch.empty(dims, device="meta")


def _to_meta(layer: Layer, inputs: list[Tensor]) -> list[Tensor]:
    kept = CONSTANT_INPUTS.get(layer.type, ())
    return [x if i in kept else x.to("meta") for i, x in enumerate(inputs)]


def run(graph: Graph, values: Values, known: Values, wanted: list[Output]) -> list[Tensor]:
    """Compute some outputs of a graph from known ones.

    Only the layers in between are run, and intermediate results are freed as soon as possible.

    Args:
        graph: the graph.
        values: result of `infer`.
        known: values to start from, such as the input.
        wanted: the outputs to compute.
    """
    needed: set[str] = set()
    pending = [name for name, _ in wanted]
    while pending:
        layer = graph.layers[pending.pop()]
        if layer.id in needed:
            continue
        needed.add(layer.id)
        pending += [source[0] for source in layer.inputs if source not in known and values[source].is_meta]
    uses: dict[Output, int] = {}
    for name in needed:
        for source in graph.layers[name].inputs:
            uses[source] = uses.get(source, 0) + 1
    found: Values = dict(known)
    for layer in graph.layers.values():
        if layer.id not in needed:
            continue
        inputs = [values[source] if source not in found else found[source] for source in layer.inputs]
        for port, output in zip(layer.outputs, compute(graph, layer, inputs), strict=True):
            found[layer.id, port] = output
        for source in layer.inputs:
            uses[source] -= 1
            if uses[source] == 0 and source not in wanted:
                found.pop(source, None)
    return [found[output] if output in found else values[output] for output in wanted]


# --- Traversal -------------------------------------------------------------------------------------------------------


@dataclass
class Network:
    """A graph with its inferred values, and the steps of its traversal."""

    graph: Graph
    values: Values = field(init=False)

    def __post_init__(self) -> None:
        self.values = infer(self.graph)

    @property
    def parameter(self) -> Output:
        (layer,) = self.graph.of_type("Parameter")
        return layer.id, next(iter(layer.outputs))

    @property
    def result(self) -> Output:
        return self.graph.of_type("Result")[0].inputs[0]

    def shape(self, output: Output) -> tuple[int, ...]:
        return tuple(self.values[output].shape)

    def layer(self, output: Output) -> Layer:
        return self.graph.layers[output[0]]

    def is_constant(self, output: Output) -> bool:
        return not self.values[output].is_meta

    def error(self, output: Output, expected: str) -> ConversionError:
        shape = "x".join(map(str, self.shape(output))) or "one number"
        return self.graph.error(
            f"is not a supported MobileStyleGAN: {self.layer(output)} gives {shape} where {expected} is expected"
        )

    def expect(self, output: Output, kind: str, expected: str) -> list[Output]:
        """Return the inputs of the layer that computes `output`, which must be of type `kind`."""
        layer = self.layer(output)
        if layer.type != kind:
            raise self.error(output, f"{expected} ({kind})")
        return layer.inputs

    def operands(self, output: Output, kind: str, expected: str) -> tuple[Output, Tensor]:
        """Return the varying and the constant input of a layer, in whichever order they are connected."""
        inputs = self.expect(output, kind, expected)
        varying = [source for source in inputs if not self.is_constant(source)]
        if len(inputs) != 2 or len(varying) != 1:
            raise self.error(output, f"{expected} ({kind} with one constant)")
        (other,) = (source for source in inputs if source != varying[0])
        return varying[0], self.values[other]

    def second(self, output: Output, kind: str, expected: str) -> tuple[Output, Tensor]:
        """Return the varying and the constant input of a layer; the constant must come second, like weights."""
        inputs = self.expect(output, kind, expected)
        if len(inputs) != 2 or self.is_constant(inputs[0]) or not self.is_constant(inputs[1]):
            raise self.error(output, f"{expected} ({kind} with constant weights)")
        return inputs[0], self.values[inputs[1]]

    def constants_used(self) -> set[str]:
        """Return the ids of the constants that the result depends on."""
        seen: set[str] = set()
        pending = [layer.id for layer in self.graph.of_type("Result")]
        while pending:
            layer = self.graph.layers[pending.pop()]
            if layer.id not in seen:
                seen.add(layer.id)
                pending += [giver for giver, _ in layer.inputs]
        return {layer.id for layer in self.graph.of_type("Const")} & seen

    def unused(self) -> list[str]:
        """Return the names of the constants that the result does not depend on."""
        used = self.constants_used()
        return [f"{self.graph.file}: {layer}" for layer in self.graph.of_type("Const") if layer.id not in used]

    def linear(self, output: Output, expected: str) -> tuple[Output, Tensor, Tensor]:
        """Return x, weight (out, in) and bias (out,) of a linear layer."""
        product, bias = self.operands(output, "Add", f"the bias of {expected}")
        x, weight = self.second(product, "MatMul", expected)
        attributes = self.layer(product).attributes
        if weight.ndim != 2 or attributes.get("transpose_a", "false").lower() not in ("false", "0"):
            raise self.error(product, expected)
        if attributes.get("transpose_b", "false").lower() not in ("true", "1"):
            weight = weight.t()
        if bias.numel() != len(weight) or self.shape(output) != (1, len(weight)):
            raise self.error(output, f"the bias of {expected}, one number for each of its {len(weight)} outputs")
        return x, weight, bias.flatten()

    def leaky_relu(self, output: Output, expected: str, slope: float) -> Output:
        """Return the input of a leaky ReLU."""
        x, found = self.second(output, "PReLU", expected)
        if not torch.allclose(found.float(), torch.tensor(slope)):
            raise self.error(output, f"a leaky ReLU of slope {slope}, not {float(found.flatten()[0]):g},")
        return x
