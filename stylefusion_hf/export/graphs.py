"""A pipeline's networks as static graphs for other runtimes: ONNX files, or torch.export's `.pt2`.

The graphs: mapping (z, truncation psi -> s), fusion (codes of all nodes -> s), synthesis (s -> images), segmenter
(images -> logits). Each is a separate file with a dynamic batch; `export.json` describes inputs and outputs. Every
file is read back, run at two batch sizes on inputs that were not traced, and compared with the original models.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from stylefusion_hf.conversion.writing import replace_folder
from stylefusion_hf.core.codes import seeds_to_z
from stylefusion_hf.core.files import write_json
from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.export.description import CHECKED, DESCRIPTION, Exported, check_target, describe
from stylefusion_hf.export.graph_files import (
    SUFFIXES,
    Graph,
    Port,
    Run,
    check_packages,
    open_onnx,
    open_torch,
    trace,
    write_onnx,
    write_torch,
)
from stylefusion_hf.pipelines.fuse import StyleFusionPipeline

TOLERANCE = 1e-3  # largest error, relative to the output's standard deviation
RUNS = 9  # the latency is the median of these

# ----------------------------------------------------------------------------------------------------
# The exportable graphs. While tracing, models run every net and only use PyTorch's own operators.


class GraphModule(nn.Module):
    """Wraps a function as the `forward` that exporters trace. `state`: the modules and tensors that it reads."""

    def __init__(self, function: Run, **state: nn.Module | Tensor):
        super().__init__()
        self.function = function
        for name, value in state.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def graphs(pipe: StyleFusionPipeline) -> dict[str, Graph]:
    """Return the exportable graphs of a pipeline in float32 on the CPU, by name."""
    generator, fusion, segmenter = pipe.generator, pipe.fusion, pipe.segmenter
    config, nodes, width = generator.config, fusion.tree.nodes, generator.style_dim
    code = Port("style", (None, width), "packed style codes")
    images = Port(
        "images", (None, config.img_channels, *generator.picture_size), "about -1 to 1: clip; channels RGB where three"
    )

    def inputs(batch: int) -> tuple[Tensor, ...]:
        labels = torch.eye(config.label_dim or 1)[torch.arange(batch) % (config.label_dim or 1)]
        z = seeds_to_z(range(100 * batch, 101 * batch), config.z_dim)
        return (z, *((labels,) if config.label_dim else ()), torch.tensor(1.0 if batch == 1 else 0.6))

    def style(z: Tensor, *rest: Tensor) -> Tensor:
        *labels, psi = rest
        return generator.to_style(generator.truncate(generator.mapping(z, *labels), psi))

    def fuse(given: Tensor) -> Tensor:
        return fusion.fuse({node: given[:, i] for i, node in enumerate(nodes)})

    def codes(batch: int) -> Tensor:
        return style(*inputs(batch))

    found = {
        "mapping": Graph(
            "mapping",
            GraphModule(
                style,
                mapping=generator.mapping,
                weight=generator.affine_weight,
                bias=generator.affine_bias,
                mean=generator.w_avg,
            ),
            (
                Port("z", (None, config.z_dim), "normal numbers; numpy.random.RandomState(seed).randn(1, z_dim)"),
                *(
                    [Port("class_labels", (None, config.label_dim), "one-hot, or any mixture")]
                    if config.label_dim
                    else []
                ),
                Port("truncation_psi", (), "1 for none, 0 for the mean's code; a scalar for the whole batch"),
            ),
            code,
            style,
            inputs,
        ),
        "fusion": Graph(
            "fusion",
            GraphModule(fuse, fusion=fusion),
            (Port("codes", (None, len(nodes), width), "the code of every node, in the order of `nodes`"),),
            code,
            fuse,
            lambda batch: (codes(batch * len(nodes)).unflatten(0, (batch, len(nodes))),),
        ),
        "synthesis": Graph(
            "synthesis",
            GraphModule(generator.synthesis, synthesis=generator.synthesis),
            (code,),
            images,
            generator.synthesis,
            lambda batch: (codes(batch),),
        ),
    }
    if segmenter is not None:
        regions = segmenter.config.regions
        found["segmenter"] = Graph(
            "segmenter",
            GraphModule(segmenter.segment, segmenter=segmenter),
            (replace(images, meaning="-1 to 1"),),
            Port(
                "logits",
                (None, len(regions), *generator.picture_size),
                "a map for each of `regions`; a pixel is the largest's",
            ),
            segmenter.segment,
            lambda batch: (generator.synthesis(codes(batch)),),
        )
    return {name: replace(graph, module=graph.module.eval()) for name, graph in found.items()}


# ----------------------------------------------------------------------------------------------------
# The check.


def check(graph: Graph, run: Run) -> tuple[float, float]:
    """Return the largest error of `run` over the checked batch sizes, and the smallest expected standard deviation.

    Raises:
        ValueError: an output of another shape, or an error beyond the tolerance; names the graph and both numbers.
    """
    worst, deviation = 0.0, float("inf")
    for batch in CHECKED:
        inputs = graph.example(batch)
        expected, given = graph.original(*inputs), run(*inputs)
        if given.shape != expected.shape:
            raise ValueError(
                f"the exported {graph.name} gives {tuple(given.shape)} for a batch of {batch}, the model"
                f" {tuple(expected.shape)}"
            )
        error, spread = float((given - expected).abs().max()), float(expected.std())
        if not error <= TOLERANCE * spread:
            raise ValueError(
                f"the exported {graph.name} differs from the model by {error:.2g} at a batch of {batch}; at most"
                f" {TOLERANCE:g} of its standard deviation {spread:.2g} is allowed, and nothing was written"
            )
        worst, deviation = max(worst, error), min(deviation, spread)
    return worst, deviation


def latencies(runs: Sequence[Run], inputs: Sequence[Tensor]) -> list[float]:
    """Return the median seconds per call of each, after a warm-up; calls alternate, so that a busy machine is fair."""
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(RUNS + 1):
        for run, times in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run(*inputs)
            if turn:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


# ----------------------------------------------------------------------------------------------------
# The export.


@torch.no_grad()
def export(
    pipe: StyleFusionPipeline,
    out: str | os.PathLike[str],
    form: str = "onnx",
    *,
    only: Iterable[str] | None = None,
    checked: bool = True,
    overwrite: bool = False,
    sources: Iterable[str | os.PathLike[str]] = (),
    progress: bool = False,
) -> list[Exported]:
    """Write a pipeline's networks and `export.json` into a folder, which appears complete or not at all.

    Args:
        pipe: moved to the CPU and to float32.
        out: the folder; may contain files only with `overwrite`, and only those of an earlier export.
        form: "onnx" or "torch-export".
        only: names of the graphs to write; None for all that the pipeline has.
        checked: read every file back and compare it with the models.
        sources: paths that must not be overwritten.
        progress: show a progress bar.

    Raises:
        ValueError: an unknown format, a graph that the pipeline does not have, a folder that must not be replaced, or
            a graph that differs from its model.
        ImportError: the packages for the format are missing; names the extra.
        OSError: the folder cannot be written.
    """
    check_packages(form, checked)
    out, kept = Path(out), [Path(source) for source in sources]
    check_target(out, overwrite, kept)
    identity = pipe.model_identity()  # of the original weights, before the cast
    for model in pipe.components.values():
        if isinstance(model, nn.Module):
            nn.Module.to(model, "cpu", torch.float32)  # diffusers' own `to` warns about float32 modules
    available = graphs(pipe)
    names = list(available) if only is None else [name for name in available if name in set(only)]
    if missing := [name for name in dict.fromkeys(only or ()) if name not in available]:
        raise ValueError(f"this model has no {', '.join(missing)} to export: it has {', '.join(available)}")
    written = []
    with replace_folder(out, overwrite, kept) as work:
        for name in (bar := tqdm(names, disable=not progress, leave=False)):
            bar.set_description(name)
            written.append(_export_one(available[name], work, form, checked))
        files = sorted(path.name for path in work.iterdir())
        description = describe(pipe, form, [available[name] for name in names], written, files) | {"model": identity}
        write_json(work / DESCRIPTION, description)
    return [replace(item, path=Path(out, item.path.name)) for item in written]


def _export_one(graph: Graph, folder: Path, form: str, checked: bool) -> Exported:
    path = folder / f"{graph.name}{SUFFIXES[form]}"
    program = trace(graph)
    if form == "onnx":
        write_onnx(graph, program, path)
    else:
        write_torch(program, path)
    size = sum(file.stat().st_size for file in folder.glob(f"{path.name}*"))
    if not checked:
        return Exported(graph.name, path, size)
    run = open_onnx(path) if form == "onnx" else open_torch(path)
    error, deviation = check(graph, run)
    return Exported(graph.name, path, size, error, deviation, *latencies((graph.original, run), graph.example(1)))
