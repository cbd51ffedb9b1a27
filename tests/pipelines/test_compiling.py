"""torch.compile as people write it: whole models, in place, and parts; what is saved, and what a recipe names."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from stylefusion_hf import StyleFusionInversionPipeline, StyleFusionPipeline, StyleGenerator
from stylefusion_hf.models.hooks import is_compiled
from stylefusion_hf.models.loading import weights_sha256
from tests.tiny import saved_weights, tiny_generator, tiny_pipeline

CALL: dict[str, Any] = {"base": 1, "regions": {"hair": 7}, "output_type": "pt"}


class Counted:
    """A backend that runs graphs as they are and counts the runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            self.runs += 1
            return graph(*args)

        return run


def whole(pipe: Any, **options: Any) -> None:
    pipe.generator = torch.compile(pipe.generator, **options)


def in_place(pipe: Any, **options: Any) -> None:
    pipe.generator.compile(**options)


def part(pipe: Any, **options: Any) -> None:
    pipe.generator.synthesis = torch.compile(pipe.generator.synthesis, **options)


def fusion(pipe: Any, **options: Any) -> None:
    pipe.fusion = torch.compile(pipe.fusion, **options)


def segmenter(pipe: Any, **options: Any) -> None:
    pipe.segmenter.compile(**options)


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("how", [whole, in_place, part, fusion, segmenter])
def test_a_compiled_model_is_used_saved_and_recognized(how, tmp_path):
    pipe, backend = tiny_pipeline(segmenter=True), Counted()
    expected, digests = pipe(**CALL, output_masks=True), pipe.model_identity()["sha256"]
    how(pipe, backend=backend, fullgraph=True)
    for _ in range(2):
        out = pipe(**CALL, output_masks=True)
        torch.testing.assert_close(out.images, expected.images, atol=1e-4, rtol=0)
    assert backend.runs >= 2
    assert out.recipe == expected.recipe
    assert pipe.model_identity()["sha256"] == digests
    for call in ({"noise_mode": "random"}, {"base": [1, 2, 3]}, {"output_type": "latent"}, {"class_labels": None}):
        pipe(**CALL | call)
    pipe.save_pretrained(tmp_path)
    for name in ("generator", "fusion", "segmenter"):
        assert not [key for key in saved_weights(tmp_path / name) if "_orig_mod" in key]
    again = StyleFusionPipeline.from_pretrained(tmp_path)
    assert torch.equal(again(**CALL).images, expected.images)


@pytest.mark.parametrize("how", [whole, part])
def test_inversion_and_tuning_use_a_compiled_generator(how):
    pipe, backend = StyleFusionInversionPipeline(tiny_generator()), Counted()
    pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"num_inference_steps": 2, "num_tuning_steps": 1, "output_type": "pt"}
    expected = pipe(torch.full((1, 3, 32, 32), 0.4), **call)
    how(pipe, backend=backend)
    out = pipe(torch.full((1, 3, 32, 32), 0.4), **call)
    torch.testing.assert_close(out.images, expected.images, atol=1e-3, rtol=0)
    assert backend.runs >= 2
    assert not is_compiled(out.generator)
    assert isinstance(out.generator, StyleGenerator)


def test_a_model_with_a_compiled_part_loads_and_saves_plain_names(tmp_path):
    generator, plain = tiny_generator(seed=1), tiny_generator()
    generator.synthesis = torch.compile(generator.synthesis, backend="eager")
    assert list(generator.state_dict()) and not [key for key in generator.state_dict() if "_orig_mod" in key]
    generator.load_state_dict(plain.state_dict())
    assert weights_sha256(generator) == weights_sha256(plain)
    generator.save_pretrained(tmp_path)
    assert weights_sha256(StyleGenerator.from_pretrained(tmp_path)) == weights_sha256(plain)


def test_a_fresh_hierarchy_compiles_to_one_graph(tmp_path):
    tiny_pipeline().fusion.save_pretrained(tmp_path)
    code = (
        "import sys, torch\n"
        "from stylefusion_hf import FusionHierarchy\n"
        "fusion = FusionHierarchy.from_pretrained(sys.argv[1])\n"
        "leaves = ['hair', 'eyes', 'mouth', 'skin', 'clothes', 'background']\n"
        "codes = dict.fromkeys([*fusion.config.tree['fused'], *leaves], torch.randn(2, 88))\n"
        "torch.compile(fusion, backend='eager', fullgraph=True)(codes)\n"
        "torch.compile(fusion.fuse, backend='eager', fullgraph=True)(codes)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]  # a process in which nothing has used the tree
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
