"""Exports of rectangles, other channels and StyleGAN3: the same graphs, with the pictures' own shapes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stylefusion_hf import RegionSegmenter, StyleFusionPipeline, StyleGenerator
from stylefusion_hf.export.graph_files import open_onnx, open_torch
from stylefusion_hf.export.graphs import export, graphs
from tests.export.test_export import check_traced, needs_onnx
from tests.tiny import tiny_fusion, tiny_generator, tiny_stylegan3_generator

TREE = "all*(sky, sea)"
GENERATORS: dict[str, Callable[[], StyleGenerator]] = {
    "tall": lambda: tiny_generator(resolution=8, channels=[8, 6], base_size=[4, 2]),
    "wide, transparent": lambda: tiny_generator(resolution=6, channels=[8, 6], base_size=[3, 5], img_channels=4),
    "five channels": lambda: tiny_generator(resolution=8, channels=[8, 6], img_channels=5),
    "stylegan3": tiny_stylegan3_generator,
}


def pipeline(name: str) -> StyleFusionPipeline:
    generator = GENERATORS[name]()
    segmenter = RegionSegmenter(
        regions=["sky", "sea"], channels=[4, 4], groups=2, img_channels=generator.config.img_channels
    )
    return StyleFusionPipeline(generator, tiny_fusion(generator, TREE), segmenter.eval())


@torch.no_grad()
@pytest.mark.parametrize("name", GENERATORS)
def test_every_graph_is_the_models(name: str) -> None:
    found = graphs(pipeline(name))
    assert list(found) == ["mapping", "fusion", "synthesis", "segmenter"]
    for graph in found.values():
        check_traced(graph)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("tall", "torch-export"),
        pytest.param("wide, transparent", "onnx", marks=needs_onnx),
        ("stylegan3", "torch-export"),
        pytest.param("stylegan3", "onnx", marks=[needs_onnx, pytest.mark.slow]),
    ],
)
def test_pictures_from_the_files_are_the_pipelines(name: str, form: str, tmp_path: Path) -> None:
    pipe = pipeline(name)
    expected = pipe(base=[1, 2], output_type="pt", output_masks=True)
    export(pipe, tmp_path / "out", form, only=["synthesis", "segmenter"])
    about = json.loads((tmp_path / "out" / "export.json").read_text(encoding="utf-8"))
    height, width = pipe.generator.picture_size
    shape = ["batch", pipe.generator.config.img_channels, height, width]
    assert about["graphs"]["synthesis"]["outputs"][0]["shape"] == shape
    assert about["graphs"]["segmenter"]["outputs"][0]["shape"] == ["batch", 2, height, width]
    opened = {
        graph: (open_onnx if form == "onnx" else open_torch)(tmp_path / "out" / told["file"])
        for graph, told in about["graphs"].items()
    }
    made = opened["synthesis"](expected.style_codes)
    np.testing.assert_allclose((made.clamp(-1, 1) + 1) / 2, expected.images, atol=1e-3)
    logits = opened["segmenter"](expected.images * 2 - 1)
    masks = torch.stack(list(expected.masks.values()), 1).float()
    assert (logits.argmax(1) == masks.argmax(1)).float().mean() > 0.99
