"""Safe reader for OpenVINO's intermediate representation: XML with a graph of layers, and a flat file of constants.

    <net version="10">
      <layers> <layer id name type> <data .../> <input> <port id/> </input> <output> <port id> <dim/> </port> </output>
      <edges>  <edge from-layer from-port to-layer to-port/>

Constants refer to the second file by offset and size. Neither file is executed: entities and document types are
rejected, and the size of the XML is bounded before it is parsed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat

import numpy as np
import torch

from stylefusion_hf.conversion.report import printable
from stylefusion_hf.core.untrusted.inert import ConversionError, MiB

MAX_XML = 32 * MiB  # published networks have at most half a megabyte
MAX_LAYERS = 20_000
MAX_DEPTH = 16
MAX_ATTRIBUTES = 64
MAX_DIMS = 8
LARGEST_DIM = 2**24
OLDEST, NEWEST = 10, 11  # IR versions with an edge for every constant

ELEMENTS = {  # OpenVINO's element types -> numpy's, little-endian
    "f64": "<f8", "f32": "<f4", "f16": "<f2", "i64": "<i8", "i32": "<i4", "i16": "<i2", "i8": "i1",
    "u64": "<u8", "u32": "<u4", "u16": "<u2", "u8": "u1", "boolean": "?",
}  # fmt: skip

Output = tuple[str, str]  # a layer's id, and one of its output ports


@dataclass
class Layer:
    """One operation.

    Attributes:
        inputs: the source of each input, in the order of the ports.
        outputs: port -> declared dimensions; None if one of them is dynamic.
    """

    id: str
    name: str
    type: str
    attributes: dict[str, str] = field(default_factory=dict)
    ports: list[str] = field(default_factory=list)
    inputs: list[Output] = field(default_factory=list)
    outputs: dict[str, tuple[int, ...] | None] = field(default_factory=dict)

    def __str__(self) -> str:
        name = f" {printable(self.name[:80])!r}" if self.name else ""
        return f"layer {printable(self.id[:20])}{name} ({printable(self.type[:40])})"


@dataclass
class Graph:
    """The layers of a network in topological order.

    Attributes:
        file: what errors call it.
        layers: by id; each after the layers that it depends on.
        weights: the file of constants.
    """

    file: str
    layers: dict[str, Layer]
    weights: memoryview

    def error(self, problem: str) -> ConversionError:
        return ConversionError(f"{self.file}: {problem}")

    def of_type(self, kind: str) -> list[Layer]:
        return [layer for layer in self.layers.values() if layer.type == kind]

    def constant(self, layer: Layer) -> torch.Tensor:
        """Return the value of a `Const` as a view of the file."""
        kind = layer.attributes.get("element_type", "")
        if kind not in ELEMENTS:
            raise self.error(f"{layer}: holds numbers of the unknown type {printable(kind[:40])!r}")
        dtype = np.dtype(ELEMENTS[kind])
        shape = parse_dims(layer.attributes.get("shape", ""))
        offset, size = (parse_number(layer.attributes.get(key, "")) for key in ("offset", "size"))
        if shape is None or offset is None or size is None:
            raise self.error(f"{layer}: its shape, offset and size are not whole numbers within bounds")
        if size != math.prod(shape) * dtype.itemsize:
            shown = "x".join(map(str, shape)) or "one number"
            raise self.error(f"{layer}: {shown} of {kind} take {math.prod(shape) * dtype.itemsize} bytes, not {size}")
        if offset + size > len(self.weights):
            raise self.error(
                f"{layer}: ends at byte {offset + size:,} of its .bin, which has {len(self.weights):,}: truncated, or"
                " another network's"
            )
        data = np.frombuffer(self.weights, dtype, math.prod(shape), offset).reshape(shape)
        if dtype.kind == "u":
            data = data.astype(np.int64)  # torch lacks most unsigned types
        return torch.from_numpy(data if data.flags.aligned and data.flags.writeable else data.copy())

    def end_of_constants(self) -> int:
        """Return the offset of the byte after the last constant."""
        attributes = [layer.attributes for layer in self.of_type("Const")]
        ends = [(parse_number(a.get("offset", "")) or 0) + (parse_number(a.get("size", "")) or 0) for a in attributes]
        return max(ends, default=0)


def parse_number(text: str, most: int = 2**48) -> int | None:
    """Parse an integer from 0 to `most`; None for anything else."""
    text = text.strip()
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        return None
    return int(text) if int(text) <= most else None


def parse_dims(text: str) -> tuple[int, ...] | None:
    """Parse dimensions: "1, 512" -> (1, 512), "" -> (). None unless all are integers within bounds."""
    parts = text.split(",", MAX_DIMS + 1) if text.strip() else []
    dims = [parse_number(part, LARGEST_DIM) for part in parts]
    if len(dims) > MAX_DIMS or any(d is None for d in dims):
        return None
    return tuple(d for d in dims if d is not None)


# --- XML -------------------------------------------------------------------------------------------------------------


def read_graph(xml: bytes | memoryview, weights: memoryview, file: str) -> Graph:
    """Read the graph of an IR file.

    Args:
        xml, weights: contents of the .xml and the .bin.
        file: what errors call it.

    Raises:
        ConversionError: not OpenVINO's XML, declares entities, exceeds bounds, or is not an acyclic graph in which
            every input has one source.
    """
    graph = Graph(file, {}, weights)
    reader = _Reader(graph)
    if len(xml) > MAX_XML:
        raise graph.error(f"has {len(xml):,} bytes of XML; at most {MAX_XML:,} are read")
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    parser.StartDoctypeDeclHandler = reader.refuse("a document type")
    parser.EntityDeclHandler = reader.refuse("an entity")
    parser.ExternalEntityRefHandler = reader.refuse("an external entity")
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.CharacterDataHandler = reader.text
    try:
        parser.Parse(bytes(xml), True)
    except expat.ExpatError as error:
        raise graph.error(f"is not well-formed XML ({error})") from None
    except (LookupError, ValueError) as error:
        if isinstance(error, ConversionError):
            raise
        raise graph.error(f"is XML in an encoding that cannot be read ({str(error)[:80]})") from None
    _connect(graph, reader.edges)
    graph.layers = _sort_layers(graph)
    return graph


class _Reader:
    """Handlers of the XML parser, which collect a graph's layers and edges."""

    def __init__(self, graph: Graph):
        self.graph, self.edges = graph, []  # type: ignore[var-annotated]
        self.path: list[str] = []
        self.layer: Layer | None = None
        self.port: str | None = None
        self.dim = ""
        self.dims: list[int | None] = []

    def refuse(self, what: str) -> Callable[..., Any]:
        def handler(*args: object) -> Any:
            raise self.graph.error(f"declares {what}, which no network needs: it is rejected")

        return handler

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.path.append(tag)
        if len(self.path) > MAX_DEPTH or len(attributes) > MAX_ATTRIBUTES:
            raise self.graph.error("nests deeper, or has more attributes, than any network needs")
        where = "/".join(self.path)
        if len(self.path) == 1:
            self._check_root(tag, attributes)
        elif where == "net/layers/layer":
            self._start_layer(attributes)
        elif where == "net/edges/edge":
            ends = [attributes.get(key, "") for key in ("from-layer", "from-port", "to-layer", "to-port")]
            self.edges.append(ends)
            if len(self.edges) > 8 * MAX_LAYERS:
                raise self.graph.error(f"has more than {8 * MAX_LAYERS:,} edges")
        elif self.layer is not None:
            if where == "net/layers/layer/data":
                self.layer.attributes.update(attributes)
            elif where == "net/layers/layer/input/port":
                self.layer.ports.append(attributes.get("id", ""))
            elif where == "net/layers/layer/output/port":
                self.port, self.dims = attributes.get("id", ""), []
            elif where == "net/layers/layer/output/port/dim":
                self.dim = ""

    def text(self, text: str) -> None:
        if self.path[-1] == "dim" and len(self.dim) < 40:
            self.dim += text

    def end(self, tag: str) -> None:
        where = "/".join(self.path)
        if self.layer is not None:
            if where == "net/layers/layer/output/port/dim":
                self.dims.append(parse_number(self.dim, LARGEST_DIM))  # None: dynamic, "-1"
            elif where == "net/layers/layer/output/port":
                known = None if None in self.dims else tuple(d for d in self.dims if d is not None)
                if self.port in self.layer.outputs or len(self.dims) > MAX_DIMS:
                    raise self.graph.error(f"{self.layer}: has two output ports of one id, or too many dimensions")
                self.layer.outputs[self.port or ""] = known
            elif where == "net/layers/layer":
                self.layer = None
        self.path.pop()

    def _check_root(self, tag: str, attributes: dict[str, str]) -> None:
        if tag != "net":
            raise self.graph.error(f"is XML of <{printable(tag[:40])}>, not an OpenVINO network (<net>)")
        version = parse_number(attributes.get("version", ""))
        if version is None or not OLDEST <= version <= NEWEST:
            shown = printable(attributes.get("version", "")[:20])
            raise self.graph.error(f"is of IR version {shown!r}; versions {OLDEST} and {NEWEST} can be read")

    def _start_layer(self, attributes: dict[str, str]) -> None:
        layer = self.layer = Layer(attributes.get("id", ""), attributes.get("name", ""), attributes.get("type", ""))
        if layer.id in self.graph.layers:
            raise self.graph.error(f"has two layers of the id {printable(layer.id[:20])!r}")
        if len(self.graph.layers) >= MAX_LAYERS:
            raise self.graph.error(f"has more than {MAX_LAYERS:,} layers")
        self.graph.layers[layer.id] = layer


# --- Edges -----------------------------------------------------------------------------------------------------------


def _connect(graph: Graph, edges: list[list[str]]) -> None:
    """Set the source of every input port."""
    sources: dict[tuple[str, str], Output] = {}
    for giver, out, taker, port in edges:
        shown = printable(f"{giver[:20]}:{out[:20]} -> {taker[:20]}:{port[:20]}")
        if giver not in graph.layers or taker not in graph.layers:
            raise graph.error(f"its edge {shown} is of a layer that does not exist")
        if out not in graph.layers[giver].outputs or port not in graph.layers[taker].ports:
            raise graph.error(f"its edge {shown} is of a port that does not exist")
        if (taker, port) in sources:
            raise graph.error(f"two edges lead to port {printable(port[:20])} of {graph.layers[taker]}")
        sources[taker, port] = (giver, out)
    for layer in graph.layers.values():
        if len(set(layer.ports)) < len(layer.ports):
            raise graph.error(f"{layer}: has two input ports of one id")
        for port in layer.ports:
            if (layer.id, port) not in sources:
                raise graph.error(f"no edge leads to port {printable(port[:20])} of {layer}")
        layer.inputs = [sources[layer.id, port] for port in layer.ports]


def _sort_layers(graph: Graph) -> dict[str, Layer]:
    """Return the layers in topological order. ConversionError for a cycle."""
    waiting = {layer.id: len(layer.inputs) for layer in graph.layers.values()}
    takers: dict[str, list[str]] = {}
    for layer in graph.layers.values():
        for giver, _ in layer.inputs:
            takers.setdefault(giver, []).append(layer.id)
    ready = deque(name for name, count in waiting.items() if count == 0)
    order = []
    while ready:
        order.append(ready.popleft())
        for name in takers.get(order[-1], []):
            waiting[name] -= 1
            if waiting[name] == 0:
                ready.append(name)
    if len(order) < len(graph.layers):
        first = next(name for name in graph.layers if waiting[name] > 0)
        raise graph.error(f"its edges form a cycle: {graph.layers[first]} depends on itself, or on such a layer")
    return {name: graph.layers[name] for name in order}
