"""Folders from strangers: damaged weights, other JSON, absurd sizes. An error names the file; nothing of it is run."""

from __future__ import annotations

import json
import logging
import pickle
import resource
import shutil
import struct
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from safetensors.torch import load_file, save

from stylefusion_hf import (
    Code,
    Direction,
    StyleFusionInterpolationPipeline,
    StyleFusionInversionPipeline,
    StyleFusionPipeline,
    StyleGAN2Discriminator,
)
from stylefusion_hf.core.code_files import load_codes, save_codes
from stylefusion_hf.core.edits import load_directions, save_directions
from stylefusion_hf.core.recipes import Recipe
from tests.refusals import MANY, Refusal, attempt, examples
from tests.tiny import tiny_encoder, tiny_fusion, tiny_generator, tiny_segmenter

WEIGHTS, INDEX = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"
MODELS: dict[str, Any] = {
    "generator": tiny_generator,
    "fusion": lambda: tiny_fusion(tiny_generator(), "all*(face*(mouth, skin), hair)"),
    "segmenter": tiny_segmenter,
    "encoder": tiny_encoder,
    "discriminator": lambda: StyleGAN2Discriminator(resolution=8, channels=[8, 8]),
}
PIPELINES = (StyleFusionPipeline, StyleFusionInterpolationPipeline, StyleFusionInversionPipeline)


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.CRITICAL)  # diffusers' warnings on unexpected keys, thousands of them
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory) -> tuple[type, Path, Path]:
    """A model's class, a folder where it was saved, and one to spoil."""
    folder = tmp_path_factory.mktemp(request.param)
    model = MODELS[request.param]()
    model.save_pretrained(folder / "whole")
    return type(model), folder / "whole", folder / "spoilt"


def spoil(whole: Path, spoilt: Path, **files: bytes | str | None) -> Path:
    """A copy with files replaced (None: removed)."""
    shutil.rmtree(spoilt, ignore_errors=True)
    shutil.copytree(whole, spoilt)
    for name, content in files.items():
        path = spoilt / {"weights": WEIGHTS, "config": "config.json", "index": INDEX}[name]
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return spoilt


def load(cls: type, folder: Path, kind: str = "weights") -> Any:
    return attempt(kind, lambda: cls.from_pretrained(folder), str(folder))  # type: ignore[attr-defined]


# --- Safetensors -----------------------------------------------------------------------------------------------------


@given(st.data())
@examples(40)
def test_weights_cut_flipped_or_of_another_length(saved, data):
    cls, whole, spoilt = saved
    blob = bytearray((whole / WEIGHTS).read_bytes())
    header = 8 + struct.unpack("<Q", blob[:8])[0]
    how = data.draw(st.sampled_from(["cut", "length", "flip"]))
    if how == "cut":
        del blob[data.draw(st.integers(0, len(blob) - 1) | st.integers(0, header)) :]
    elif how == "length":
        sizes = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**31, 2**40, 2**63, 2**64 - 1])
        blob[:8] = struct.pack("<Q", data.draw(sizes.filter(lambda n: n != header - 8)))
    else:
        blob[data.draw(st.integers(8, header - 1))] ^= 1 << data.draw(st.integers(0, 7))
    loaded = load(cls, spoil(whole, spoilt, weights=bytes(blob)))
    if how != "flip":  # a flipped bit of the free text in the header changes nothing
        assert isinstance(loaded, Refusal)
    elif not isinstance(loaded, Refusal):
        assert_same(loaded, whole)


def assert_same(model: Any, whole: Path) -> None:
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in load_file(whole / WEIGHTS).items())


@given(st.data())
@examples(25)
def test_tensors_of_another_kind(saved, data):
    cls, whole, spoilt = saved
    tensors = load_file(whole / WEIGHTS)
    name = data.draw(st.sampled_from(sorted(tensors)))
    how = data.draw(st.sampled_from(["gone", "shape", "empty", "dtype", "extra", "none", "half"]))
    if how == "gone":
        del tensors[name]
    elif how == "shape":
        tensors[name] = torch.zeros(*tensors[name].shape, 2)
    elif how == "empty":
        tensors[name] = torch.zeros(0)
    elif how == "dtype":
        tensors[name] = tensors[name].to(data.draw(st.sampled_from([torch.int64, torch.bool, torch.complex64])))
    elif how == "extra":
        tensors["stranger.weight"] = torch.zeros(3)
    elif how == "none":
        tensors = {}
    else:
        tensors = {key: tensor.half() for key, tensor in tensors.items()}
    loaded = load(cls, spoil(whole, spoilt, weights=save(tensors, metadata={"format": "pt"})))
    assert isinstance(loaded, Refusal) == (how not in ("extra", "half")), f"{how} {name}: {loaded}"


class Bomb:
    """Pickles as a call that makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


def test_nothing_is_unpickled(saved, tmp_path):
    cls, whole, spoilt = saved
    bomb = pickle.dumps(Bomb(tmp_path / "ran"))
    torch.save({"a": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pt")
    for content in (bomb, (tmp_path / "bomb.pt").read_bytes()):
        assert isinstance(load(cls, spoil(whole, spoilt, weights=content)), Refusal)
        folder = spoil(whole, spoilt, weights=None)
        (folder / "diffusion_pytorch_model.bin").write_bytes(content)
        assert isinstance(load(cls, folder), Refusal)
    for name in (WEIGHTS, "config.json"):
        folder = spoil(whole, spoilt)
        (folder / name).unlink()
        (folder / name).mkdir()
        assert isinstance(load(cls, folder), Refusal)
    assert not (tmp_path / "ran").exists()


# --- JSON ------------------------------------------------------------------------------------------------------------

OTHER_JSON = ["[]", "null", "3", '"x"', "", "{", "[" * 100_000, '{"a":' * 50_000, "\ufeff{}", "\0"]
NUMBERS = [-1, 0, 1, 2, 2**16, 2**40, 10**400, 1.5, 1e308, float("nan"), float("inf")]
OTHERS = [None, True, "x", "", [], {}, [1], [2**40], ["x"], [None], [[1]], [1] * 10**4, {"a": 1}, "a" * 10**5]
LOOP = {"root": "a", "children": {"a": ["a", "b"]}, "fused": ["a"]}


def test_other_configs(saved):
    cls, whole, spoilt = saved
    config = json.loads((whole / "config.json").read_text())
    for text in OTHER_JSON:
        assert isinstance(load(cls, spoil(whole, spoilt, config=text), "config.json"), Refusal), text[:20]
    folder = spoil(whole, spoilt)
    keys = [key for key in config if not key.startswith("_")]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    every = 1 if MANY else 3  # of the values, others for the next key
    for first, key in enumerate(keys):
        for value in [*NUMBERS, *OTHERS, LOOP][first % every :: every]:
            (folder / "config.json").write_text(json.dumps(config | {key: value}))
            loaded = load(cls, folder, "config.json")
            if not isinstance(loaded, Refusal):
                assert_runs(loaded)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert grown < 512 * 1024, f"{grown / 1024:.0f} MiB were allocated for what did not load"


def assert_runs(model: Any) -> None:
    """Whatever loads has to give finite numbers."""
    name = type(model).__name__
    with torch.no_grad():
        if name == "StyleGAN2Generator":
            out = model.synthesis(torch.zeros(1, model.style_dim))
        elif name == "FusionHierarchy":
            if not model.tree.fused:
                return
            out = model.fuse({node: torch.randn(1, model.style_width) for node in model.tree.nodes})
        else:
            size = 16 if name == "RegionSegmenter" else model.config.get("resolution", 16)
            images = torch.zeros(1, model.config.img_channels, size, size)
            out = next(iter(model(images).values()))
    assert out.isfinite().all(), model.config


@pytest.mark.parametrize(
    "text",
    [
        *OTHER_JSON,
        "{}",
        '{"metadata": {}, "weight_map": []}',
        '{"metadata": {}, "weight_map": {}}',
        '{"metadata": {}, "weight_map": {"a": "../../x"}}',
        '{"metadata": {}, "weight_map": {"a": 3}}',
        '{"weight_map": {"a": "b.safetensors"}}',
        '{"metadata": {}, "weight_map": {"a": "b.safetensors"}}',
        '{"metadata": {}, "weight_map": {"a": "b.bin"}}',
    ],
)
def test_other_indices_of_shards(saved, text):
    cls, whole, spoilt = saved
    assert isinstance(load(cls, spoil(whole, spoilt, weights=None, index=text), "index of shards"), Refusal)


# --- Pipelines -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_pipeline(tmp_path_factory) -> Path:
    generator = tiny_generator()
    folder = tmp_path_factory.mktemp("pipeline")
    parts = (tiny_fusion(generator), tiny_segmenter(), tiny_encoder())
    StyleFusionPipeline(generator, *parts).save_pretrained(folder)
    return folder


ENTRIES: list[Any] = [
    None, True, 3, "x", "", [], ["x"], {"a": 1}, ["a", "b", "c"], [None, "x"], ["os", "system"],
    ["stylefusion_hf", "Nope"],
    ["builtins", "exec"], ["stylefusion_hf", "Code"], ["stylefusion_hf", "__version__"], ["canary_of_a_test", "X"],
    ["diffusers", "DDIMScheduler"], ["diffusers", "UNet2DModel"], ["", ""], ["..", "x"],
    ["stylefusion_hf.cli", "main"],
]  # fmt: skip


@pytest.mark.parametrize("cls", PIPELINES)
def test_other_model_indices(cls, whole_pipeline, tmp_path, monkeypatch):
    (tmp_path / "canary_of_a_test.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass X:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "spoilt"
    shutil.copytree(whole_pipeline, folder)
    index = json.loads((folder / "model_index.json").read_text())
    for key in ("generator", "fusion", "segmenter"):
        for entry in ENTRIES:
            (folder / "model_index.json").write_text(json.dumps(index | {key: entry}))
            assert isinstance(load(cls, folder, "model_index.json"), Refusal), f"{key}: {entry}"
    for name in (None, True, 3, [None], {"a": 1}):
        (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))
        attempt("model_index.json", lambda: cls.from_pretrained(folder), "model_index.json")
    for text in OTHER_JSON:
        (folder / "model_index.json").write_text(text)
        refused = attempt("model_index.json", lambda: cls.from_pretrained(folder), "model_index.json")
        assert isinstance(refused, Refusal), text[:20]
    assert not (tmp_path / "ran").exists()


@given(st.sampled_from(PIPELINES), st.sampled_from(["generator", "fusion", "segmenter", "encoder"]), st.data())
@examples(25)
def test_a_damaged_component_is_named(whole_pipeline, tmp_path_factory, cls, component, data):
    folder = tmp_path_factory.mktemp("damaged") / "pipeline"
    shutil.copytree(whole_pipeline, folder)
    file = folder / component / data.draw(st.sampled_from([WEIGHTS, "config.json"]))
    blob = file.read_bytes()
    file.write_bytes(blob[: data.draw(st.integers(0, len(blob) - 3))])
    refused = attempt("pipeline folders", lambda: cls.from_pretrained(folder), str(folder / component))
    assert isinstance(refused, Refusal)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["", "\0", 3, None, b"x", "x" * 5000, [], "no such/name/at all"])
def test_what_is_no_folder_and_no_name(name):
    for cls in (*PIPELINES, type(tiny_segmenter())):
        assert isinstance(attempt("names of models", lambda cls=cls: cls.from_pretrained(name)), Refusal)


# --- Files of codes and directions, recipes --------------------------------------------------------------------------


@given(st.sampled_from(["codes", "directions"]), st.data())
@examples(150)
def test_files_of_codes_and_directions(tmp_path_factory, kind, data):
    path = tmp_path_factory.getbasetemp() / f"{kind}.safetensors"
    if kind == "codes":
        save_codes(path, {"a": Code(torch.ones(1, 4), "w"), "b": Code(torch.ones(2, 3, 4), "w+")})
    else:
        save_directions(path, [Direction("a", "w", torch.ones(4)), Direction("b", "s", torch.ones(9), layers=(1,))])
    blob = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del blob[data.draw(st.integers(0, len(blob) - 1)) :]
    for _ in range(data.draw(st.integers(0, 3))):
        if blob:
            blob[data.draw(st.integers(0, min(len(blob) - 1, 500)))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(blob))
    read = load_codes if kind == "codes" else load_directions
    found = attempt(f"files of {kind}", lambda: read(path), str(path))
    if not isinstance(found, Refusal):
        assert all(x.tensor.isfinite().all() for x in found.values())


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from([*Recipe.__dataclass_fields__, "version", "sha256", "x"])


@given(st.dictionaries(FIELDS, JSON_VALUES, max_size=5), st.booleans())
@examples(150)
def test_recipes_of_strangers(entries, sound):
    data = entries | ({"version": 1, "base": 1} if sound else {})
    recipe = attempt("recipes", lambda: Recipe.from_json(json.dumps(data)))
    if not isinstance(recipe, Refusal):
        assert Recipe.from_json(recipe.to_json()).to_dict() == recipe.to_dict()


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin1")))
@examples(100)
def test_texts_that_are_no_recipe(text):
    assert isinstance(attempt("recipes", lambda: Recipe.from_json(text)), Refusal)
