"""What diffusers' own model tests ask of a model, for every model class of the package."""

import copy
import importlib.util
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel
from diffusers.utils import BaseOutput
from safetensors.torch import load, save_file

import stylefusion_hf
from stylefusion_hf import FeatureLabeller, HubSegmenter, StyleGAN2Discriminator, StyleGenerator
from stylefusion_hf.evaluation.judges import PortraitJudge
from stylefusion_hf.models.discriminator import ProjectedDiscriminator
from stylefusion_hf.models.loading import StrictModelMixin
from tests.devices import from_device, same, to_device
from tests.tiny import (
    NUM_WS,
    STYLE_DIM,
    W_DIM,
    Z_DIM,
    draw,
    tiny_encoder,
    tiny_fusion,
    tiny_generator,
    tiny_mobile_generator,
    tiny_segmenter,
    tiny_stylegan3_generator,
)
from tests.tiny_hub import FACE, configs

WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass
class Specimen:
    """A tiny model, `inputs(batch)` for its `forward`, and the shape of a sample of its first output."""

    build: Callable[[], Any]
    inputs: Callable[[int], dict[str, Any]]
    shape: tuple[int, ...]
    # float16 and bfloat16: the standard deviation of the difference, in units of the output's
    tolerance: tuple[float, float] = (0.02, 0.1)


def codes(batch: int) -> dict[str, Any]:
    tree = tiny_fusion(tiny_generator()).tree
    return {"codes": {node: draw(batch, STYLE_DIM, seed=k) for k, node in enumerate(tree.nodes)}}


def seeded(build: Callable[[], Any]) -> Callable[[], Any]:
    def built() -> Any:
        torch.manual_seed(0)
        return build().eval()

    return built


MODELS = {
    "generator": Specimen(tiny_generator, lambda n: {"latents": draw(n, Z_DIM)}, (3, 32, 32)),
    "mobile generator": Specimen(tiny_mobile_generator, lambda n: {"latents": draw(n, Z_DIM)}, (3, 32, 32)),
    "mobile generator, preview": Specimen(
        lambda: tiny_mobile_generator(preview_resolutions=[8, 16]), lambda n: {"latents": draw(n, Z_DIM)}, (3, 32, 32)
    ),
    "stylegan3 generator": Specimen(tiny_stylegan3_generator, lambda n: {"latents": draw(n, Z_DIM)}, (3, 32, 32)),
    "discriminator": Specimen(
        # each sample by itself, without the standard deviation over the batch
        seeded(lambda: StyleGAN2Discriminator(resolution=16, channels=[12, 8, 4], mbstd_channels=0)),
        lambda n: {"images": draw(n, 3, 16, 16)},
        (1,),
    ),
    "grown discriminator": Specimen(
        seeded(lambda: StyleGAN2Discriminator(resolution=16, channels=[12, 8, 4], mbstd_channels=0, input_skips=2)),
        lambda n: {"images": draw(n, 3, 16, 16)},
        (1,),
    ),
    "projected discriminator": Specimen(
        # groups of one: each sample by itself
        seeded(
            lambda: ProjectedDiscriminator(
                {"regions": ["a", "b"], "channels": [8, 8, 8]}, resolution=16, width=8, mbstd_group_size=1
            )
        ),
        lambda n: {"images": draw(n, 3, 16, 16)},
        (1,),
    ),
    "fusion": Specimen(lambda: tiny_fusion(tiny_generator()), codes, (STYLE_DIM,)),
    "fusion, standardized": Specimen(
        lambda: tiny_fusion(tiny_generator(), standardise=True, gate_bias=True), codes, (STYLE_DIM,)
    ),
    "segmenter": Specimen(tiny_segmenter, lambda n: {"images": draw(n, 3, 15, 9)}, (6, 15, 9)),
    "labeller": Specimen(
        seeded(
            lambda: FeatureLabeller(regions=["a", "b"], resolutions=[4, 8], channels=[3, 5], hidden=[6], members=2)
        ),
        lambda n: {"maps": {4: draw(n, 3, 4, 4), 8: draw(n, 5, 8, 8)}},
        (2, 8, 8),
    ),
    "encoder": Specimen(tiny_encoder, lambda n: {"images": draw(n, 3, 32, 32)}, (NUM_WS, W_DIM)),
    "portrait judge": Specimen(
        seeded(lambda: PortraitJudge(channels=[8] * 4, reduced=4, features=8, groups=2, resolution=32)),
        lambda n: {"images": draw(n, 3, 32, 32)},
        (2, 2),
    ),
}


if importlib.util.find_spec("transformers") is not None:  # the extra `segmenter`
    CLASSES: dict[str, Any] = {"regions": ["back", "front"], "classes": [[0, 18, 3], [1, 2]]}
    MODELS["hub segmenter"] = Specimen(
        seeded(lambda: HubSegmenter(network=configs(FACE)["segformer"], size=[32], **CLASSES)),
        lambda n: {"images": draw(n, 3, 40, 36)},
        (2, 40, 36),
    )


@pytest.fixture(params=MODELS)
def specimen(request: pytest.FixtureRequest) -> Specimen:
    return MODELS[request.param]


@pytest.fixture
def model(specimen: Specimen) -> Any:
    return specimen.build()


def run(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The first output, computed on the device of the tests; the model comes back."""
    with torch.no_grad():
        found = from_device(to_device(model)(**to_device(inputs), return_dict=False)[0])
    model.to("cpu")
    return found


def cast(value: Any, dtype: torch.dtype) -> Any:
    return {k: cast(v, dtype) for k, v in value.items()} if isinstance(value, dict) else value.to(dtype)


def flat(value: Any) -> list[torch.Tensor]:
    """All tensors of an output."""
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [tensor for item in values if item is not None for tensor in flat(item)]


def same_weights(a: Any, b: Any) -> bool:
    """Wherever they are: a model that has computed is on the device of the tests."""
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(from_device(x[key]), from_device(y[key])) for key in x)


def test_every_model_class_is_here() -> None:
    interfaces = (ModelMixin, StyleGenerator)
    exported = [getattr(stylefusion_hf, name) for name in stylefusion_hf.__all__]
    public = {kind for kind in exported if isinstance(kind, type) and issubclass(kind, ModelMixin)} - {*interfaces}
    tested = {type(specimen.build()) for specimen in MODELS.values()}
    if "hub segmenter" not in MODELS:
        tested.add(HubSegmenter)
    every = {*StrictModelMixin.__subclasses__(), *StyleGenerator.__subclasses__()} - {*interfaces}
    assert public | every == tested


# ----------------------------------------------------------------------------------------------------
# Calls.


def test_output_of_the_right_shape_and_the_same_each_time(specimen, model):
    inputs = specimen.inputs(3)
    first = run(model, inputs)
    assert first.shape == (3, *specimen.shape)
    assert first.isfinite().all()
    assert same(run(model, inputs), first)
    assert same(run(specimen.build(), inputs), first)


def test_a_sample_equals_its_single_run(specimen, model):
    batch = run(model, specimen.inputs(3))
    singles = [cut(specimen.inputs(3), k) for k in range(3)]
    found = torch.cat([run(model, single) for single in singles])
    torch.testing.assert_close(found, batch, rtol=1e-4, atol=1e-4)


def cut(value: Any, k: int) -> Any:
    return {name: cut(v, k) for name, v in value.items()} if isinstance(value, dict) else value[k : k + 1]


def test_tuple_equals_output_class(specimen, model):
    with torch.no_grad():
        output, parts = model(**specimen.inputs(2)), model(**specimen.inputs(2), return_dict=False)
    assert isinstance(output, BaseOutput) and isinstance(parts, tuple)
    pairs = list(zip(flat(output.to_tuple()), flat(parts), strict=True))
    assert pairs and all(torch.equal(a, b) for a, b in pairs)


def test_arguments(specimen, model):
    parameters = inspect.signature(type(model).forward).parameters
    assert parameters["return_dict"].default is True
    assert next(iter(specimen.inputs(1))) == list(parameters)[1]
    with pytest.raises(TypeError, match="unknown_argument"):
        model(**specimen.inputs(1), unknown_argument=1)
    with pytest.raises(TypeError, match="unknown_argument"):
        type(model)(**dict(model.config), unknown_argument=1)


def test_inputs_are_tensors_of_real_numbers(specimen, model):
    def changed(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
        return {k: changed(part, change) for k, part in value.items()} if isinstance(value, dict) else change(value)

    for change, found in (
        (lambda x: x.long(), "Tensor of torch.int64"),
        (lambda x: x.to(torch.complex64), "Tensor of torch.complex64"),
        (lambda x: x.numpy(), "ndarray of float32"),
    ):
        with pytest.raises(ValueError, match=rf"floating-point numbers, got {found}$"):
            model(**changed(specimen.inputs(1), change))


@pytest.mark.parametrize("which", [0, 1], ids=["fp16", "bf16"])
def test_dtypes(specimen, model, which):
    dtype = (torch.float16, torch.bfloat16)[which]
    expected = run(model, specimen.inputs(3))
    assert model.dtype == torch.float32
    assert model.to(dtype) is model
    assert model.dtype == dtype and {p.dtype for p in model.parameters()} == {dtype}
    found = run(model, cast(specimen.inputs(3), dtype))
    assert found.dtype == dtype
    assert float((found.float() - expected).std() / expected.std()) < specimen.tolerance[which]
    assert run(model.to(torch.float64), cast(specimen.inputs(3), torch.float64)).dtype == torch.float64


def test_devices(specimen, model):
    assert model.to("cpu").device.type == "cpu"
    assert model.to("meta").device.type == "meta"
    if torch.cuda.is_available():
        there = specimen.build().to("cuda")
        inputs = {
            k: {n: c.cuda() for n, c in v.items()} if isinstance(v, dict) else v.cuda()
            for k, v in specimen.inputs(2).items()
        }
        torch.testing.assert_close(
            run(there, inputs).cpu(), run(specimen.build(), specimen.inputs(2)), rtol=1e-3, atol=1e-3
        )


# Tests of their own, with more of their arguments, compile the generator and the hierarchy.
@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith(("generator", "fusion"))])
def test_it_compiles_whole(name):
    specimen = MODELS[name]
    model = specimen.build()
    expected = run(model, specimen.inputs(2))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(run(compiled, specimen.inputs(2)), expected, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


# ----------------------------------------------------------------------------------------------------
# Training.


def test_gradients_reach_every_parameter(specimen, model):
    model.train()
    outputs = model(**specimen.inputs(4), return_dict=False)
    sum(tensor.square().mean() for tensor in flat(outputs)).backward()  # type: ignore[union-attr]
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    # noise is not scaled yet, and a net whose sigmoid is saturated has none to speak of: zero is a gradient too
    assert without == []
    assert any(p.grad.abs().sum() > 0 for p in model.parameters())
    step = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = copy.deepcopy(model)
    step.step()
    assert not same_weights(before, model)


def test_training_mode(specimen, tmp_path):
    model = specimen.build().train()
    assert model.training
    run(model, specimen.inputs(2))  # nothing is counted or dropped: the same as in eval
    torch.testing.assert_close(run(model, specimen.inputs(2)), run(model.eval(), specimen.inputs(2)))
    model.save_pretrained(tmp_path)
    assert not type(model).from_pretrained(tmp_path).training
    model.requires_grad_(False)
    assert not any(p.requires_grad for p in model.parameters())


def test_averaged_weights(specimen, tmp_path):
    model = specimen.build()
    average = EMAModel(model.parameters(), decay=0.9, model_cls=type(model), model_config=model.config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    average.step(model.parameters())
    average.save_pretrained(tmp_path)
    loaded = EMAModel.from_pretrained(tmp_path, type(model))
    assert all(torch.equal(a, b) for a, b in zip(loaded.shadow_params, average.shadow_params, strict=True))
    average.store(model.parameters())
    average.copy_to(model.parameters())
    own = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), model.parameters(), strict=True))


def test_gradient_checkpointing_is_refused_where_there_is_none(model):
    if model._supports_gradient_checkpointing:
        model.enable_gradient_checkpointing()
        assert model.is_gradient_checkpointing
    else:
        with pytest.raises(ValueError, match="does not support gradient checkpointing"):
            model.enable_gradient_checkpointing()


# ----------------------------------------------------------------------------------------------------
# Saving and loading.


def test_save_and_load(specimen, model, tmp_path):
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", WEIGHTS}
    loaded = type(model).from_pretrained(tmp_path)
    assert same_weights(loaded, model)
    assert same(run(loaded, specimen.inputs(2)), run(model, specimen.inputs(2)))
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "config.json").read_text()
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tmp_path / WEIGHTS).read_bytes()
    loaded.save_pretrained(tmp_path)  # where its weights may still be mapped into memory
    assert same_weights(type(model).from_pretrained(tmp_path), model)
    folder = tmp_path / "pipe" / "part"
    model.save_pretrained(folder)
    assert same_weights(type(model).from_pretrained(folder.parent, subfolder="part"), model)


def test_config(specimen, model, tmp_path):
    model.save_config(tmp_path)
    config = type(model).load_config(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == config
    again = type(model).from_config(config)
    assert {k: tuple(v.shape) for k, v in again.state_dict().items()} == {
        k: tuple(v.shape) for k, v in model.state_dict().items()
    }
    names = set(inspect.signature(type(model).__init__).parameters) - {"self"}
    assert names - {"base_size", "row_axes"} <= set(config)  # which squares, and encoders of all axes, leave out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_load_in_a_dtype(specimen, model, tmp_path, dtype):
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=dtype)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert same_weights(loaded, model.to(dtype))
    assert torch.get_default_dtype() == torch.float32
    assert same(run(loaded, cast(specimen.inputs(2), dtype)), run(model, cast(specimen.inputs(2), dtype)))


def test_variants(model, tmp_path):
    kind = type(model)
    model.save_pretrained(tmp_path)
    half = copy.deepcopy(model).to(torch.float16)
    half.save_pretrained(tmp_path, variant="fp16")
    name = "diffusion_pytorch_model.fp16.safetensors"
    assert (tmp_path / name).is_file()
    assert same_weights(kind.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16), half)
    assert same_weights(kind.from_pretrained(tmp_path), model)
    (tmp_path / name).unlink()
    with pytest.raises(OSError, match=f"{kind.__name__} cannot be loaded from .*: there is no {name}"):
        kind.from_pretrained(tmp_path, variant="fp16")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards(model, tmp_path, variant):
    size = sum(p.numel() for p in model.parameters()) * 4
    kind, dot = type(model), f".{variant}" if variant else ""
    model.save_pretrained(tmp_path, variant=variant)
    model.save_pretrained(tmp_path, variant=variant, max_shard_size=size // 2)
    index = json.loads((tmp_path / f"{WEIGHTS}.index{dot}.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 1
    assert {path.name for path in tmp_path.glob("*.safetensors")} == files  # the whole one is gone
    assert same_weights(kind.from_pretrained(tmp_path, variant=variant), model)
    model.save_pretrained(tmp_path, variant=variant)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", f"diffusion_pytorch_model{dot}.safetensors"}
    assert same_weights(kind.from_pretrained(tmp_path, variant=variant), model)


def test_no_path_of_this_machine_is_saved(model, tmp_path):
    model.save_pretrained(tmp_path / "one")
    loaded = type(model).from_pretrained(tmp_path / "one")
    assert loaded.config["_name_or_path"] == str(tmp_path / "one")
    loaded.save_pretrained(tmp_path / "two")
    assert str(tmp_path) not in (tmp_path / "two" / "config.json").read_text()
    assert loaded.config["_name_or_path"] == str(tmp_path / "one")  # but in memory


def test_damaged_files_are_one_clear_error(model, tmp_path):
    kind = type(model)

    def fails(error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message) as found:
            kind.from_pretrained(tmp_path)
        assert len(str(found.value).splitlines()) == 1
        assert str(tmp_path) in str(found.value)

    model.save_pretrained(tmp_path)
    file = tmp_path / WEIGHTS
    whole = file.read_bytes()
    tensors = load(whole)  # not the file, which is mapped into memory and cut short below
    file.write_bytes(whole[: len(whole) // 2])
    fails(OSError, rf"{kind.__name__} cannot be loaded from .*: its weights are truncated")
    file.unlink()
    fails(OSError, f"there is no {WEIGHTS}")
    first = sorted(tensors)[0]
    save_file({k: v for k, v in tensors.items() if k != first}, file, metadata={"format": "pt"})
    fails(ValueError, "is incomplete")
    save_file({k: v[None] if k == first else v for k, v in tensors.items()}, file, metadata={"format": "pt"})
    fails(ValueError, rf"do not fit {kind.__name__}'s config\.json: .*{first}")
    file.write_bytes(whole)
    (tmp_path / "config.json").write_text("{")
    fails(OSError, "config")
    (tmp_path / "config.json").unlink()
    fails(OSError, "config")


def test_pickles_are_not_read_unless_asked_for(model, tmp_path):
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert not list(tmp_path.glob("*.safetensors"))
    with pytest.raises(OSError, match=f"there is no {WEIGHTS}"):
        type(model).from_pretrained(tmp_path)
    assert same_weights(type(model).from_pretrained(tmp_path, use_safetensors=False), model)


def test_copies_and_counts(specimen, model, tmp_path):
    twin = copy.deepcopy(model)
    assert same(run(twin, specimen.inputs(1)), run(model, specimen.inputs(1)))
    assert model.num_parameters() == sum(p.numel() for p in model.parameters())
    assert type(model).__doc__ and type(model).forward.__doc__
    loaded = type(model)(**{k: v for k, v in model.config.items() if not k.startswith("_")})
    loaded.load_state_dict(model.state_dict())
    assert same(run(loaded.eval(), specimen.inputs(1)), run(model, specimen.inputs(1)))


def test_a_hierarchy_without_nets_can_be_saved(tmp_path: Path) -> None:
    """Where no node is fused there are no weights at all."""
    fusion = tiny_fusion(tiny_generator(), "all(face, hair)")
    fusion.save_pretrained(tmp_path)
    assert type(fusion).from_pretrained(tmp_path).tree == fusion.tree
