"""Writing static graphs to files (ONNX, or torch.export's `.pt2`), and reading them back as functions."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stylefusion_hf.core.installing import install_command

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
OPSET = 20  # of ONNX
FOLDING_LIMIT = 2**31  # bytes of a folded constant
TRACED_BATCH = 2  # batch size for tracing; PyTorch specializes on 0 and 1
LARGEST_BATCH = 2**31 - 1  # torch 2.6 refuses a dimension without a bound wherever it compares it with the largest int

Run = Callable[..., Tensor]


@dataclass(frozen=True)
class Port:
    """An input or output of a graph; None in its shape is the batch size."""

    name: str
    shape: tuple[int | None, ...]
    meaning: str

    def to_dict(self) -> dict[str, Any]:
        shape = ["batch" if size is None else size for size in self.shape]
        return {"name": self.name, "dtype": "float32", "shape": shape, "meaning": self.meaning}


@dataclass(frozen=True)
class Graph:
    """A network to export.

    Attributes:
        module: the module to trace.
        original: reference function with the same inputs and output.
        example: batch size -> realistic inputs, different for each size.
    """

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    output: Port
    original: Run
    example: Callable[[int], tuple[Tensor, ...]]


def check_packages(form: str, checked: bool) -> None:
    """Raise ValueError for an unknown format, ImportError if it or its check needs a missing package."""
    if form not in SUFFIXES:
        raise ValueError(f"unknown format {form!r}: choose from {', '.join(SUFFIXES)}")
    if form != "onnx":
        return
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise ImportError(f"exporting to ONNX needs {' and '.join(missing)}: {install_command('export')}")
    if checked and importlib.util.find_spec("onnxruntime") is None:
        raise ImportError(
            f"checking the graphs needs onnxruntime: {install_command('export')}, or skip the check with --no-check"
        )


def trace(graph: Graph) -> Any:
    """Trace a graph into a `torch.export.ExportedProgram` with a dynamic batch."""
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    shapes = tuple({0: batch} if port.shape else None for port in graph.inputs)
    with _quietly():  # dynamic_shapes: of *inputs; strict: the default before torch 2.7
        return torch.export.export(graph.module, graph.example(TRACED_BATCH), dynamic_shapes=(shapes,), strict=False)


def write_onnx(graph: Graph, program: Any, path: Path) -> None:
    """Write an ONNX file, with the weights inside up to ONNX's limit of 2 GB, otherwise in a file next to it."""
    import onnxscript

    names = [port.name for port in graph.inputs]
    shapes = tuple({0: "batch"} if port.shape else None for port in graph.inputs)
    with _quietly():
        onnx = torch.onnx.export(
            program,
            (),
            input_names=names,
            output_names=[graph.output.name],
            dynamic_shapes=(shapes,),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert onnx is not None
        # Fold everything that only depends on weights; the exporter's default limit is one megabyte.
        onnxscript.optimizer.optimize_ir(onnx.model, input_size_limit=FOLDING_LIMIT, output_size_limit=FOLDING_LIMIT)
    ports = (*graph.inputs, graph.output)
    for port, value in zip(ports, (*onnx.model.graph.inputs, *onnx.model.graph.outputs), strict=True):
        # torch 2.6 names the batch by a symbol of its own.
        value.shape = onnxscript.ir.Shape(["batch" if size is None else size for size in port.shape])
    for node in onnx.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces with local paths
    onnx.save(path)


def write_torch(program: Any, path: Path) -> None:
    """Write a `.pt2` file for `torch.export.load`."""
    for part in program.graph_module.modules():  # subgraphs too
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # contains local paths
    with _quietly():
        torch.export.save(program, path)


def open_onnx(path: Path) -> Run:
    """Open an ONNX file as a function, run by onnxruntime on the CPU with PyTorch's number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        given = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return run


def open_torch(path: Path) -> Run:
    """Open a `.pt2` file as a function."""
    with _quietly():
        return torch.export.load(path).module()


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress the exporters' warnings about packages that are not needed here and about their own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
