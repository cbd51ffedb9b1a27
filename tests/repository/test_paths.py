"""Every public function that takes a path takes text, a `Path` and any other `os.PathLike`."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stylefusion_hf import (
    Code,
    Direction,
    RegionSegmenter,
    StyleFusionInversionPipeline,
    StyleFusionPipeline,
    StyleGAN2Generator,
    StyleGenerator,
)
from stylefusion_hf.conversion.convert import Options, convert
from stylefusion_hf.core.code_files import load_codes, pick_code, save_codes
from stylefusion_hf.core.edits import load_directions, save_directions
from stylefusion_hf.core.json_files import read_json
from stylefusion_hf.core.region_mapping import RegionMap
from stylefusion_hf.core.untrusted.safe_pickle import load
from stylefusion_hf.imaging.animation import write_animation
from stylefusion_hf.imaging.images import image_size, open_image, open_labels, picture_files
from stylefusion_hf.imaging.landmarks import read_landmarks
from stylefusion_hf.imaging.png_text import read_png_text
from stylefusion_hf.inversion.tuned import find_tuned, save_tuned
from tests import checkpoints
from tests.tiny import NUM_WS, W_DIM, tiny_encoder, tiny_generator, tiny_pipeline

pytestmark = pytest.mark.usefixtures("elsewhere")


class Named(os.PathLike):
    """A path of another library."""

    def __init__(self, name: str):
        self.name = name

    def __fspath__(self) -> str:
        return self.name


def prepare() -> None:
    """Write what the calls read into the current folder."""
    g = checkpoints.generator()
    checkpoints.save_nvidia(Path("g.pkl"), g)
    torch.save({"g_ema": checkpoints.rosinality_generator(g)}, "g.pt")
    z = torch.zeros(1, g.config.z_dim) + 1
    save_file({"z": z, "w": g.mapping(z).detach()}, "ref.safetensors")
    pipe = tiny_pipeline(segmenter=True)
    pipe.save_pretrained("model")
    np.save("w.npy", torch.zeros(1, NUM_WS, W_DIM).numpy())
    np.save("age.npy", np.ones(9))
    save_codes("codes.safetensors", {"a": Code(torch.zeros(W_DIM), "w")})
    save_directions("d.safetensors", [Direction("age", "w", torch.ones(W_DIM))])
    pipe(base=1).images[0].save("a.png")
    Image.new("P", (8, 8)).save("labels.png")
    os.makedirs("pictures")
    Image.new("RGB", (8, 8)).save("pictures/a.png")
    Path("table.json").write_text(json.dumps({"a.png": [[float(i % 9), float(i)] for i in range(68)]}))
    Path("regions.json").write_text(json.dumps({"regions": {"skin": ["skin"], "rest": []}, "rest": "rest"}))


def with_encoder() -> StyleFusionPipeline:
    pipe = tiny_pipeline()
    pipe.register_modules(encoder=tiny_encoder())
    return pipe


QUIET = {"progress": False, "overwrite": True}
CALLS: dict[str, Callable[[Any], Any]] = {
    "convert": lambda p: convert(p("g.pkl"), p("out"), **QUIET),
    "convert, reference": lambda p: convert(p("g.pkl"), p("out"), reference=p("ref.safetensors"), **QUIET),
    "convert, directions": lambda p: convert(p("age.npy"), p("directions"), generator=p("converted"), **QUIET),
    "convert, options": lambda p: convert(p("g.pkl"), p("out"), Options(reference=p("ref.safetensors")), **QUIET),
    "convert, shards": lambda p: convert(p("g.pkl"), p("out"), max_shard_size=5_000_000, **QUIET),
    "load": lambda p: load(p("g.pt")),
    "codes": lambda p: (save_codes(p("new.safetensors"), load_codes(p("codes.safetensors"))), pick_code(p("w.npy"))),
    "directions": lambda p: save_directions(p("e.safetensors"), load_directions(p("d.safetensors")).values()),
    "json": lambda p: read_json(p("table.json")),
    "pictures": lambda p: (open_image(p("a.png")), image_size(p("a.png")), picture_files(p("pictures"))),
    "labels": lambda p: open_labels(p("labels.png")),
    "png text": lambda p: read_png_text(p("a.png"), "stylefusion", 1000),
    "landmarks": lambda p: read_landmarks(p("table.json"), [p("a.png")]),
    "animation": lambda p: write_animation(p("walk.webp"), [Image.new("RGB", (8, 8))] * 2, 10.0),
    "model": lambda p: StyleGAN2Generator.from_pretrained(p("model"), subfolder="generator").save_pretrained(p("g")),
    "any generator": lambda p: StyleGenerator.from_pretrained(p("model/generator")).save_config(p("config")),
    "segmenter": lambda p: RegionSegmenter.from_pretrained(p("model"), subfolder="segmenter"),
    "pipeline": lambda p: StyleFusionPipeline.from_pretrained(p("model")).save_pretrained(p("copy")),
    "code of a pipeline": lambda p: tiny_pipeline()(base=p("w.npy"), regions={"hair": p("codes.safetensors")}),
    "picture of a pipeline": lambda p: with_encoder()(base=p("a.png")),
    "inversion": lambda p: StyleFusionInversionPipeline.from_pipe(tiny_pipeline())(p("a.png"), num_inference_steps=1),
    "tuned": lambda p: (save_tuned(tiny_generator(), p("tuned")), find_tuned({}, p("tuned"))),
    "region map": lambda p: RegionMap.of(p("regions.json")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home, before = tmp_path_factory.mktemp("paths"), Path.cwd()
    os.chdir(home)
    try:
        prepare()
        convert("g.pkl", "converted", **QUIET)
    finally:
        os.chdir(before)
    return home


@pytest.mark.parametrize("kind", [str, Path, Named])
@pytest.mark.parametrize("name", CALLS)
def test_paths(name: str, kind: type, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    CALLS[name](kind)


@pytest.mark.parametrize("value", [3, b"g.pkl", "", None])
def test_what_is_no_path_is_one_line(value: Any) -> None:
    with pytest.raises(ValueError, match="source is the path of a file or folder"):
        convert(value, "out", progress=False)
    for option in ("generator", "reference"):
        if value is not None:
            with pytest.raises(ValueError, match=f"{option} is the path of a file or folder"):
                convert("x.pkl", "out", progress=False, **{option: value})


@pytest.mark.parametrize("value", [0, -1, True, 2.5, "5", "5 apples", None])
def test_sizes_of_shards_that_are_none(value: Any) -> None:
    with pytest.raises(ValueError, match="max_shard_size is a size such as 5GB or 200MB, or bytes"):
        convert("x.pkl", "out", progress=False, max_shard_size=value)
