"""A default dtype of float64, as scientists set it, changes no picture and breaks no call."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from stylefusion_hf import StyleFusionPipeline
from stylefusion_hf.core.edits import Edit
from stylefusion_hf.core.randomness import step_generator
from stylefusion_hf.editing.directions import ganspace, sefa, style_channel
from stylefusion_hf.imaging.degradation import compress, degrade, occlude
from stylefusion_hf.models.sampling import draw_codes
from tests.models.test_mixins_models import MODELS
from tests.pipelines.test_mixins_pipelines import PIPELINES, build
from tests.tiny import draw, tiny_encoder, tiny_generator


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def in_both(call: Any) -> tuple[Any, Any]:
    """What a call gives with either default."""
    plain = call()
    torch.set_default_dtype(torch.float64)
    try:
        return plain, call()
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", PIPELINES)
def test_pictures_are_the_same(name: str, tmp_path: Any) -> None:
    specimen = PIPELINES[name]
    pipe = build(specimen)
    pipe.encoder = tiny_encoder() if name in ("invert", "photograph") else None
    for call in (specimen.call, specimen.batch):
        pipe.encoder, kept = None, pipe.encoder
        pairs = [in_both(lambda call=call: pipe(**call, output_type="pt", return_dict=False)[0])]
        pipe.encoder = kept
        pairs.append(in_both(lambda call=call: pipe(**call, output_type="pt", return_dict=False)[0]))
        for plain, wide in pairs:
            assert wide.dtype == torch.float32 and torch.equal(plain, wide)
    pipe.encoder = None
    pipe.save_pretrained(tmp_path)

    def load() -> Any:
        loaded = specimen.kind.from_pretrained(tmp_path, dtype=torch.float32)
        loaded.set_progress_bar_config(disable=True)
        return loaded(**specimen.call, output_type="pt", return_dict=False)[0]

    assert torch.equal(*in_both(load))


@pytest.mark.parametrize("name", PIPELINES)
def test_models_of_either_dtype_are_used(name: str, float64: None, tmp_path: Any) -> None:
    specimen = PIPELINES[name]
    pipe = build(specimen)
    assert pipe.dtype == torch.float64
    assert pipe(**specimen.call, output_type="pt", return_dict=False)[0].dtype == torch.float32
    pipe.to(torch.float32).save_pretrained(tmp_path)
    loaded = specimen.kind.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded(**specimen.call, output_type="pt", return_dict=False)[0].isfinite().all()
    assert torch.get_default_dtype() == torch.float64


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    specimen = MODELS[name]
    model, inputs = specimen.build(), specimen.inputs(2)
    plain, wide = in_both(lambda: model(**inputs, return_dict=False)[0].detach())
    assert plain.dtype == wide.dtype and torch.equal(plain, wide)


def test_directions_and_samples_are_the_same() -> None:
    generator = tiny_generator()

    def directions() -> list[Any]:
        found = [*sefa(generator, 2), *ganspace(generator, 2, samples=64)]
        return [*found, style_channel(generator, "conv1", 2, samples=64)]

    for plain, wide in zip(*in_both(directions), strict=True):
        assert wide.tensor.dtype == torch.float32 and torch.equal(plain.tensor, wide.tensor)
        assert plain.scale == wide.scale
    layered = sefa(generator, 1, layers=[1, 2])[0]
    pipe = StyleFusionPipeline(**build(PIPELINES["fuse"]).components)
    edit = Edit(((layered, (2.0,)),))
    assert torch.equal(*in_both(lambda: pipe(base=1, edits={"hair": edit}, output_type="pt").images))
    assert torch.equal(*in_both(lambda: draw_codes(generator, 5, step_generator(0, 1), 0.5, 0.5)))
    pictures = draw(3, 3, 32, 32).clamp(-1, 1)
    for change in (degrade, occlude, compress):
        assert torch.equal(*in_both(lambda change=change: change(pictures, step_generator(0, 2))))
