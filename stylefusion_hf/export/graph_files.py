"""Static graphs as files: ONNX for other runtimes, or torch.export's `.pt2`; written, and read back as functions."""

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

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
OPSET = 20  # of ONNX
FOLDED = 2**31  # bytes of a constant
TRACED = 2  # the batch size that is traced; PyTorch takes 0 and 1 for constants

Run = Callable[..., Tensor]


@dataclass(frozen=True)
class Port:
    """An input or output; None in its shape is the batch."""

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
        module: what is traced.
        original: what it is held against: the same inputs to the same output.
        example: a batch size -> inputs as they come in use; other ones for each size.
    """

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    output: Port
    original: Run
    example: Callable[[int], tuple[Tensor, ...]]


def check_packages(form: str, checked: bool) -> None:
    """ValueError for an unknown format; ImportError where it, or its check, needs what is not installed."""
    if form not in SUFFIXES:
        raise ValueError(f"unknown format {form!r}: choose from {', '.join(SUFFIXES)}")
    if form != "onnx":
        return
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise ImportError(f"exporting to ONNX needs {' and '.join(missing)}: pip install stylefusion-hf[export]")
    if checked and importlib.util.find_spec("onnxruntime") is None:
        raise ImportError(
            "checking the graphs needs onnxruntime: pip install stylefusion-hf[export], or leave the check out with"
            " --no-check"
        )


def trace(graph: Graph) -> Any:
    """The `torch.export.ExportedProgram`, its batch dynamic."""
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} if port.shape else None for port in graph.inputs)
    with _quietly():
        return torch.export.export(graph.module, graph.example(TRACED), dynamic_shapes=(shapes,))  # of *inputs


def write_onnx(graph: Graph, program: Any, path: Path) -> None:
    """An ONNX file, its weights inside it up to ONNX's limit of 2 GB and in a file beside it above."""
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
        # What depends on weights alone is worked out now: the exporter by itself stops at a megabyte.
        onnxscript.optimizer.optimize_ir(onnx.model, input_size_limit=FOLDED, output_size_limit=FOLDED)
    for node in onnx.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces with the paths of this machine
    onnx.save(path)


def write_torch(program: Any, path: Path) -> None:
    """A `.pt2` for `torch.export.load`."""
    for part in program.graph_module.modules():  # subgraphs too
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # the paths of this machine
    with _quietly():
        torch.export.save(program, path)


def open_onnx(path: Path) -> Run:
    """An ONNX file as a function, in onnxruntime on the CPU with as many threads as PyTorch has."""
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
    """A `.pt2` as a function."""
    with _quietly():
        return torch.export.load(path).module()


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what exporters say of packages that nothing here needs, and of their own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
