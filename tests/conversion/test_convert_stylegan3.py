"""Conversion of StyleGAN3: NVIDIA's pickles, plain tensors, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylefusion_hf import StyleFusionPipeline, StyleGAN3Generator
from stylefusion_hf.cli import main
from stylefusion_hf.conversion.convert import convert
from stylefusion_hf.core.untrusted.inert import ConversionError
from tests import checkpoints
from tests.parity import parity_file
from tests.plain_stylegan3 import PlainStyleGAN3
from tests.tiny import draw

QUIET: dict[str, Any] = {"progress": False}


def snapshot(folder: Path, plain: PlainStyleGAN3, **others: Any) -> Path:
    """A pickle of NVIDIA's code with this network as G_ema."""
    content = {"G_ema": checkpoints.module_tree(plain.tensors, plain.attributes, "Generator"), "D": None, **others}
    checkpoints.dump_foreign(content, folder / "snapshot.pkl")
    return folder / "snapshot.pkl"


def refused(source: Path, match: str, **options: Any) -> str:
    with pytest.raises(ConversionError, match=match) as error:
        convert(source, source.parent / "out", **(QUIET | options))
    assert "\n" not in str(error.value)
    assert not (source.parent / "out").exists()
    return str(error.value)


def layer(plain: PlainStyleGAN3, index: int) -> str:
    return next(name for name in plain.attributes if name.startswith(f"synthesis.L{index}_"))


@pytest.mark.parametrize("name", ["nvidia-sg3t-tiny32", "nvidia-sg3r-tiny32"])
def test_parity_pickles(tmp_path: Path, name: str) -> None:
    reference = parity_file(f"{name}.safetensors")
    report = convert(parity_file(f"{name}.pkl"), tmp_path / "out", reference=reference, **QUIET)
    assert report.kind == "nvidia" and report.unused == []
    assert not report.mismatches
    assert {"ws_psi0.7", "ws", "image"} <= {line[0].split(" at ")[0] for line in report.comparison}
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "tags: [stylegan3, stylefusion" in card and "import StyleFusionPipeline, StyleGAN3Generator" in card


@torch.no_grad()
def test_a_snapshot_becomes_a_pipeline(tmp_path: Path) -> None:
    plain = PlainStyleGAN3(c_dim=3, use_radial_filters=True, conv_kernel=1)
    judge = checkpoints.discriminator(label_dim=3)
    tensors = checkpoints.nvidia_discriminator(judge)
    source = snapshot(tmp_path, plain, D=checkpoints.module_tree(tensors, {}, "Discriminator"))
    report = convert(source, tmp_path / "out", with_discriminator=True, dtype="fp16", **QUIET)
    assert report.unused == []
    assert any("w+ (8 x 16)" in line for line in report.parts["generator"]["lines"])
    g = StyleGAN3Generator.from_pretrained(tmp_path / "out", subfolder="generator")
    ws = draw(2, 8, 16)
    expected = plain.synthesis(ws)
    assert (g.synthesis(g.to_style(ws)) - expected).abs().max() < 1e-3 * expected.std()
    small = StyleGAN3Generator.from_pretrained(
        tmp_path / "out", subfolder="generator", variant="fp16", torch_dtype=torch.float32
    )
    assert (small.synthesis(g.to_style(ws)) - expected).abs().max() < 0.1 * expected.std()
    pipe = StyleFusionPipeline.from_pretrained(tmp_path / "out")
    assert pipe(base=1, translate=(0.1, 0), output_type="np").images.std() > 0


@torch.no_grad()
@pytest.mark.parametrize("wrapped", [False, True])
def test_plain_tensors(tmp_path: Path, wrapped: bool) -> None:
    plain = PlainStyleGAN3()
    torch.save({"g_ema": plain.tensors} if wrapped else plain.tensors, tmp_path / "x.pt")
    report = convert(tmp_path / "x.pt", tmp_path / "out", **QUIET)
    assert any("NVIDIA's are assumed" in note for note in report.notes)
    g = StyleGAN3Generator.from_pretrained(tmp_path / "out", subfolder="generator")
    ws = draw(1, 8, 16)
    expected = plain.synthesis(ws)
    assert (g.synthesis(g.to_style(ws)) - expected).abs().max() < 1e-3 * expected.std()
    other = PlainStyleGAN3(first_cutoff=3.0, first_stopband=7.0)
    torch.save(other.tensors, tmp_path / "y.pt")
    with pytest.raises(ConversionError, match=r"L\d.*(up|down)_filter is not the filter|pixels where"):
        convert(tmp_path / "y.pt", tmp_path / "other", **QUIET)


def test_a_moved_input_is_kept(tmp_path: Path) -> None:
    plain = PlainStyleGAN3()
    plain.tensors["synthesis.input.transform"] = torch.tensor([[0.0, -1.0, 0.1], [1.0, 0.0, 0.2], [0.0, 0.0, 1.0]])
    convert(snapshot(tmp_path, plain), tmp_path / "out", **QUIET)
    g = StyleGAN3Generator.from_pretrained(tmp_path / "out", subfolder="generator")
    ws = draw(1, 8, 16)
    expected = plain.synthesis(ws)
    with torch.no_grad():
        assert (g.synthesis(g.to_style(ws)) - expected).abs().max() < 1e-3 * expected.std()


def test_previews_and_a_mean_are_made_where_there_are_none(tmp_path: Path) -> None:
    plain = PlainStyleGAN3()
    del plain.tensors["mapping.w_avg"]
    source = snapshot(tmp_path, plain)
    refused(source, "--previews 8: this generator of 32 px has features of 16", previews=(8,))
    report = convert(source, tmp_path / "out", previews=(16,), **QUIET)
    assert any("stores no mean of w" in note for note in report.notes)
    g = StyleGAN3Generator.from_pretrained(tmp_path / "out", subfolder="generator")
    assert g.picture_sizes == [16, 32] and g.w_avg.any()
    assert g.synthesis(g.to_style(draw(1, 8, 16)), up_to=16).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("index", "changes", "match"),
    [
        (1, {"padding": [1, 2, 3, 4]}, r"L1_\d+_\d+ has padding \[1, 2, 3, 4\] where"),
        (2, {"up_factor": 3}, r"L2_\d+_\d+ has up_factor 3 where"),
        (3, {"in_cutoff": 1.5}, r"L3_\d+_\d+ has in_cutoff 1\.5 where"),
        (2, {"down_radial": True}, r"has down_radial True where False"),
        (2, {"conv_clamp": 7}, "different conv_clamp values"),
        (0, {"up_taps": 2 * 10**9}, "filter_size is an integer from 1 to 64"),
        (0, {"tmp_sampling_rate": 10**9}, "lrelu_upsampling is an integer from 1 to 8"),
        (0, {"tmp_sampling_rate": "x"}, "snapshot.pkl: "),
        (0, {"in_sampling_rate": 0, "out_sampling_rate": 0}, "snapshot.pkl: "),
    ],
)
def test_settings_that_do_not_follow(tmp_path: Path, index: int, changes: dict[str, Any], match: str) -> None:
    plain = PlainStyleGAN3()
    plain.attributes[layer(plain, index)] |= changes
    refused(snapshot(tmp_path, plain), match)


@pytest.mark.parametrize(
    ("module", "changes", "match"),
    [
        ("synthesis", {"img_resolution": 64}, r"L1_\d+_\d+ has out_cutoff .* where"),
        ("synthesis", {"img_resolution": 2**40}, "resolution is an integer from 4 to 16384"),
        ("synthesis", {"margin_size": 3}, "the maps of L.* have"),
        ("synthesis.input", {"bandwidth": float("nan")}, "frequencies must grow"),
        ("mapping.fc0", {"bias_gain": 1.0}, "learning-rate multiplier of 1"),
        ("mapping.fc0", {"activation": "relu"}, "has the activation 'relu'"),
        ("", {"z_dim": 9}, "says z_dim 9, its tensors say 12"),
    ],
)
def test_networks_of_other_settings(tmp_path: Path, module: str, changes: dict[str, Any], match: str) -> None:
    plain = PlainStyleGAN3()
    plain.attributes[module] = plain.attributes.get(module, {}) | changes
    refused(snapshot(tmp_path, plain), match)


@pytest.mark.parametrize(
    ("lost", "match"),
    [
        ("synthesis.input.phases", "lacks 'synthesis.input.phases'"),
        ("mapping.fc0.weight", "lacks the layers of the mapping network"),
        ("synthesis.input.affine.weight", "lacks 'synthesis.input.affine.weight'"),
    ],
)
def test_incomplete_files(tmp_path: Path, lost: str, match: str) -> None:
    plain = PlainStyleGAN3()
    del plain.tensors[lost]
    refused(snapshot(tmp_path, plain), match)


def test_a_missing_layer(tmp_path: Path) -> None:
    plain = PlainStyleGAN3()
    name = layer(plain, 3)
    plain.tensors = {key: x for key, x in plain.tensors.items() if not key.startswith(name)}
    refused(snapshot(tmp_path, plain), "expected L0_..., L1_..., and so on")


def test_tensors_of_no_layer(tmp_path: Path) -> None:
    plain = PlainStyleGAN3()
    plain.tensors[f"{layer(plain, 2)}.extra"] = torch.zeros(3)
    refused(snapshot(tmp_path, plain), "1 tensors belong to no complete layer")


def test_stylegan_xl(tmp_path: Path) -> None:
    plain = PlainStyleGAN3()
    plain.tensors["mapping.w_avg"] = torch.zeros(1000, 16)
    message = refused(snapshot(tmp_path, plain), "is a StyleGAN-XL, .* not supported")
    assert "give a stylegan3-t or stylegan3-r file" in message
    plain = PlainStyleGAN3()
    plain.tensors["mapping.embed_proj.weight"] = torch.zeros(16, 320)
    refused(snapshot(tmp_path, plain), "is a StyleGAN-XL")
    plain = PlainStyleGAN3()
    content = {"G_ema": checkpoints.module_tree(plain.tensors, plain.attributes, "SuperresGenerator"), "D": None}
    checkpoints.dump_foreign(content, tmp_path / "snapshot.pkl")
    refused(tmp_path / "snapshot.pkl", "is a StyleGAN-XL")


def test_moved_pictures_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(snapshot(tmp_path, PlainStyleGAN3()), tmp_path / "out", **QUIET)
    pipe = StyleFusionPipeline.from_pretrained(tmp_path / "out")
    expected = pipe(base=3, translate=(-0.2, 0.1), rotate=30)
    still = pipe(base=3)
    assert expected.recipe["translate"] == [-0.2, 0.1] and expected.recipe["rotate"] == 30
    assert "translate" not in still.recipe and "rotate" not in still.recipe
    picture = np.asarray(expected.images[0])
    assert not np.array_equal(picture, np.asarray(still.images[0]))
    again = pipe.from_recipe(json.dumps(expected.recipe))
    assert np.array_equal(np.asarray(again.images[0]), picture)
    moved = ["--translate", "-0.2", "0.1", "--rotate", "30"]
    model = ["--model", str(tmp_path / "out")]
    assert main(["fuse", "--base", "3", *moved, *model, "--out", str(tmp_path / "a.png")]) == 0
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), picture)
    arguments = ["fuse", "--from-recipe", str(tmp_path / "a.png"), *model, "--out", str(tmp_path / "b.png")]
    assert main(arguments) == 0
    with Image.open(tmp_path / "b.png") as image:
        assert np.array_equal(np.asarray(image), picture)
    assert main(["fuse", "--from-recipe", str(tmp_path / "a.png"), *moved, *model]) == 2
    assert "leave out --translate, --rotate" in capsys.readouterr().err
