"""Conversion of networks: the same numbers as the original code, from every layout, size and container."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from stylefusion_hf import StyleFusionPipeline, StyleGAN2Discriminator, StyleGAN2Generator
from stylefusion_hf.conversion.convert import convert
from stylefusion_hf.conversion.rendering import render
from stylefusion_hf.core.codes import seeds_to_z
from tests import checkpoints
from tests.parity import draw_weights, load_case, manifest, parity_file, relative_error

QUIET = {"progress": False}


def loaded(folder, part="generator"):
    cls = {"generator": StyleGAN2Generator, "discriminator": StyleGAN2Discriminator}[part]
    return cls.from_pretrained(folder / part)


def same_weights(given, expected, exactly=True):
    ours, theirs = given.state_dict(), expected.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        if exactly:
            assert torch.equal(ours[name], tensor), name
        else:
            torch.testing.assert_close(ours[name], tensor, rtol=1e-6, atol=1e-6)
    given_config, expected_config = (
        {key: value for key, value in model.config.items() if not key.startswith("_") and key not in SET_BY_CONVERSION}
        for model in (given, expected)
    )
    assert given_config == expected_config


SET_BY_CONVERSION = ("truncation_psi", "mapping_width", "label_embed_dim")  # None stands for what the weights say


# ----------------------------------------------------------------------------------------------------
# Parity: files and weights of the reference implementations.


@pytest.mark.parametrize("name", ["nvidia-ada-tiny32", "nvidia-sg3-tiny32", "tensorflow-tiny32"])
def test_parity_pickles(tmp_path, name):
    reference = parity_file(f"{name}.safetensors")
    options = {"with_discriminator": True, "reference": reference} | QUIET
    report = convert(parity_file(f"{name}.pkl"), tmp_path / "out", **options)
    assert report.kind == name.split("-")[0]
    assert report.comparison
    assert not report.mismatches
    assert {"image_const", "logits"} <= {line[0].split(" at ")[0] for line in report.comparison}
    assert all(unused.startswith(("G/", "lod", "network 0/")) for unused in report.unused)
    data, judge = load_case(name), loaded(tmp_path / "out", "discriminator")
    with torch.no_grad():
        assert relative_error(judge(data["image_const"]).logits, data["logits"]) < 1e-3


@pytest.mark.parametrize(("which", "case"), [("nvidia-ada", "ada-cond64"), ("nvidia-ada", "ada-paper256")])
def test_parity_of_drawn_weights_in_nvidia_pickles(tmp_path, which, case):
    reference = parity_file(f"nvidia-{case}.safetensors")
    kwargs = manifest(which)["cases"][case]
    settings = {"*": {"conv_clamp": kwargs["generator_kwargs"]["synthesis_kwargs"].get("conv_clamp")}}
    content = {
        "G_ema": checkpoints.module_tree(draw_weights(which, f"{case}/G"), settings, "Generator"),
        "D": checkpoints.module_tree(draw_weights(which, f"{case}/D"), settings, "Discriminator"),
    }
    checkpoints.dump_foreign(content, tmp_path / "snapshot.pkl")
    options = {"with_discriminator": True, "reference": reference} | QUIET
    report = convert(tmp_path / "snapshot.pkl", tmp_path / "out", **options)
    assert not report.mismatches
    assert len(report.comparison) >= 5
    assert report.unused == []


@pytest.mark.parametrize("size", [32, 256])
def test_parity_of_rosinality(tmp_path, size):
    reference = parity_file(f"rosinality-{size}.safetensors")
    weights, mean = draw_weights("stylefusion", f"rosinality-{size}"), load_case(f"rosinality-{size}")["mean_latent"]
    torch.save(
        {"g_ema": weights, "latent_avg": mean[0], "g_optim": {"state": {0: {"exp_avg": mean}}}}, tmp_path / "x.pt"
    )
    report = convert(tmp_path / "x.pt", tmp_path / "out", reference=reference, **QUIET)
    assert report.kind == "rosinality"
    assert not report.mismatches
    assert len(report.comparison) == 4
    assert report.unused == ["g_optim/state/0/exp_avg"]


# What generate_img's part names set in church: `background` its node, `all` the root (tests/data/parity/README.md).
@torch.no_grad()
def test_parity_of_a_church_pipeline(tmp_path):
    case = load_case("hierarchy-church")
    facts = manifest("stylefusion")["cases"]["hierarchy-church"]
    root = tmp_path / "StyleFusion"
    (root / "weights" / "church").mkdir(parents=True)
    weights = draw_weights("stylefusion", "rosinality-256")
    torch.save({"g_ema": weights, "latent_avg": case["mean_latent"][0]}, root / "stylegan.pt")
    torch.save({"state_dict": draw_weights("stylefusion", "church/all")}, root / "weights" / "church" / "all.pt")
    del weights
    (root / "weights" / "church_weights.json").write_text('{"all": "weights/church/all.pt"}')
    report = convert(
        root / "weights" / "church_weights.json", tmp_path / "out", generator=root / "stylegan.pt", **QUIET
    )
    assert report.kind == "stylefusion"
    pipe = StyleFusionPipeline.from_pretrained(tmp_path / "out")
    assert str(pipe.fusion.tree) == "all*(church, background)"
    assert pipe.generator.config.truncation_psi == facts["truncation"] == 0.5
    codes = {z: case[z] for z in ("z0", "z1", "z2")}
    for i, call in enumerate(facts["calls"]):
        nodes = {part: codes[z] for part, z in call.items()}
        style = pipe(base=codes["z0"], nodes=nodes, output_type="latent").images
        for name, vector in pipe.generator.split_style(style).items():
            assert relative_error(vector, case[f"call{i}.s.{name}"]) < 1e-4, (i, name)
        image = pipe.generator.synthesis(style)
        expected = case[f"call{i}.image_mean8"]
        given = F.avg_pool2d(image, image.shape[-1] // expected.shape[-1])
        assert (given - expected).abs().max() < 1e-3 * expected.std()
        edge = (image.shape[-1] - 64) // 2
        crop = case[f"call{i}.image_crop"]
        assert (image[:, :, edge : edge + 64, edge : edge + 64] - crop).abs().max() < 1e-3 * crop.std()


# ----------------------------------------------------------------------------------------------------
# Other sizes: what was written must come back, number by number.

SIZES = {
    "plain": {},
    "wide": {"resolution": 32, "channels": [16, 8, 8, 3], "z_dim": 4, "w_dim": 12, "mapping_layers": 1},
    "smallest": {"resolution": 8, "channels": [2, 3]},
    "deep": {"mapping_layers": 8, "z_dim": 9},
    "grey": {"img_channels": 1},
}
OF_NVIDIA = SIZES | {
    "labels": {"label_dim": 4},
    "clamp": {"conv_clamp": 256},
    "no noise": {"use_noise": False},
    "narrow mapping": {"mapping_width": 5, "z_dim": 3, "label_dim": 2},
}


@pytest.mark.parametrize(("size", "protocol"), [*((size, 4) for size in OF_NVIDIA), ("plain", 2), ("plain", 5)])
def test_nvidia_round_trip(tmp_path, size, protocol):
    config = OF_NVIDIA[size]
    g = checkpoints.generator(**config)
    shared = {k: g.config[k] for k in ("resolution", "channels", "label_dim", "img_channels", "conv_clamp")}
    of_labels = {"mapping_layers": 2, "label_embed_dim": 5} if g.config.label_dim else {}
    d = checkpoints.discriminator(**shared, **of_labels, mbstd_group_size=3)
    checkpoints.save_nvidia(tmp_path / "x.pkl", g, d, protocol)
    report = convert(tmp_path / "x.pkl", tmp_path / "out", with_discriminator=True, **QUIET)
    same_weights(loaded(tmp_path / "out"), g)
    same_weights(loaded(tmp_path / "out", "discriminator"), d)
    assert {name.split("/")[0] for name in report.unused} == {"G"}


@pytest.mark.parametrize(("size", "protocol"), [*((size, 2) for size in OF_NVIDIA), ("plain", 3), ("plain", 4)])
def test_tensorflow_round_trip(tmp_path, size, protocol):
    g = checkpoints.generator(**OF_NVIDIA[size])
    shared = {k: g.config[k] for k in ("resolution", "channels", "label_dim", "img_channels")}
    d = checkpoints.discriminator(**shared, **({"mapping_layers": 2} if g.config.label_dim else {}))
    checkpoints.save_tensorflow(tmp_path / "x.pkl", g, d, protocol)
    report = convert(tmp_path / "x.pkl", tmp_path / "out", with_discriminator=True, **QUIET)
    same_weights(loaded(tmp_path / "out"), g, exactly=False)  # the style biases lost a one and got it back
    same_weights(loaded(tmp_path / "out", "discriminator"), d)
    assert "lod" in report.unused


OTHERS = [("plain", "legacy"), ("plain", "safetensors")]


@pytest.mark.parametrize(("size", "container"), [*((size, "zip") for size in SIZES), *OTHERS])
def test_rosinality_round_trip(tmp_path, size, container):
    g = checkpoints.generator(**SIZES[size])
    d = checkpoints.discriminator(**{k: g.config[k] for k in ("resolution", "channels", "img_channels")})
    weights, path = checkpoints.rosinality_generator(g), tmp_path / "x.pt"
    content = {
        "g_ema": weights,
        "g": {k: v + 1 for k, v in weights.items()},
        "d": checkpoints.rosinality_discriminator(d),
    }
    if container == "safetensors":
        save_file({k: v.contiguous() for k, v in (weights | {"latent_avg": g.w_avg}).items()}, path)
    else:
        torch.save(content | {"latent_avg": g.w_avg}, path, _use_new_zipfile_serialization=container == "zip")
    report = convert(path, tmp_path / "out", with_discriminator=container != "safetensors", **QUIET)
    same_weights(loaded(tmp_path / "out"), g)
    if container != "safetensors":
        same_weights(loaded(tmp_path / "out", "discriminator"), d)
        assert {name.split("/")[0] for name in report.unused} == {"g"}


@pytest.mark.parametrize("rows", ["none", "one", "all"])
def test_e4e_round_trip(tmp_path, rows):
    g = checkpoints.generator()
    mean = {"none": g.w_avg, "one": g.w_avg[None], "all": g.w_avg.expand(g.num_ws, -1)}[rows]
    state = {f"decoder.{name}": tensor for name, tensor in checkpoints.rosinality_generator(g).items()}
    state |= {"encoder.input_layer.0.weight": torch.randn(3), "hypernet.fc.weight": torch.randn(2)}
    torch.save({"state_dict": state, "latent_avg": mean.clone(), "opts": {"lr": 1e-4}}, tmp_path / "e4e.pt")
    report = convert(tmp_path / "e4e.pt", tmp_path / "out", **QUIET)
    assert report.kind == "e4e"
    same_weights(loaded(tmp_path / "out"), g)
    assert report.unused == ["encoder.input_layer.0.weight", "hypernet.fc.weight"]


@pytest.mark.parametrize("prefix", ["", "module.", "generator."])
def test_plain_dictionaries_and_prefixes(tmp_path, prefix):
    g = checkpoints.generator()
    torch.save({prefix + k: v for k, v in checkpoints.rosinality_generator(g).items()}, tmp_path / "ro.pt")
    torch.save({"G_ema": {prefix + k: v for k, v in checkpoints.nvidia_generator(g).items()}}, tmp_path / "nv.pt")
    assert convert(tmp_path / "ro.pt", tmp_path / "ro", **QUIET).kind == "rosinality"
    report = convert(tmp_path / "nv.pt", tmp_path / "nv", **QUIET)
    assert any("conv_clamp" in note for note in report.notes)
    same_weights(loaded(tmp_path / "nv"), g)


def test_half_precision_sources_become_float32(tmp_path):
    g = checkpoints.generator()
    weights = {k: v.half() for k, v in checkpoints.rosinality_generator(g).items()}
    torch.save({"g_ema": weights, "latent_avg": g.w_avg.double()}, tmp_path / "x.pt")
    convert(tmp_path / "x.pt", tmp_path / "out", **QUIET)
    model = loaded(tmp_path / "out")
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert torch.equal(model.w_avg, g.w_avg)


def test_a_missing_mean_is_estimated_and_said(tmp_path):
    g = checkpoints.generator()
    torch.save({"g_ema": checkpoints.rosinality_generator(g)}, tmp_path / "x.pt")
    report = convert(tmp_path / "x.pt", tmp_path / "a", **QUIET)
    convert(tmp_path / "x.pt", tmp_path / "b", **QUIET)
    assert any("estimated from 4096 samples of seed 0" in note for note in report.notes)
    assert torch.equal(loaded(tmp_path / "a").w_avg, loaded(tmp_path / "b").w_avg)
    with torch.no_grad():
        mean = g.mapping(seeds_to_z(range(2000), g.config.z_dim)).mean(0)
    assert (loaded(tmp_path / "a").w_avg - mean).abs().max() < 0.1 * mean.abs().max()


def test_missing_noise_is_drawn_and_said(tmp_path):
    weights = checkpoints.rosinality_generator(checkpoints.generator())
    torch.save({"g_ema": {k: v for k, v in weights.items() if not k.startswith("noises.")}}, tmp_path / "x.pt")
    report = convert(tmp_path / "x.pt", tmp_path / "out", **QUIET)
    assert any("noise" in note for note in report.notes)


@torch.no_grad()
def test_rosinality_discriminator_computes_what_its_code_does(tmp_path):
    """Against the layers of rosinality's discriminator, written out: no parity file holds its logits."""
    d = checkpoints.discriminator()
    w = {k: v / 5 for k, v in checkpoints.rosinality_discriminator(d).items()}
    g = checkpoints.rosinality_generator(checkpoints.generator())
    torch.save({"g_ema": g, "d": {k: v * (5 if "kernel" in k else 1) for k, v in w.items()}}, tmp_path / "x.pt")
    convert(tmp_path / "x.pt", tmp_path / "out", with_discriminator=True, **QUIET)
    images = torch.randn(4, 3, 16, 16)

    def conv(x, name, stride=1, padding=0):
        weight = w[name]
        return F.conv2d(x, weight / math.sqrt(weight[0].numel()), stride=stride, padding=padding)

    def activate(x, bias):
        return F.leaky_relu(x + w[bias].view(1, -1, *[1] * (x.ndim - 2)), 0.2) * math.sqrt(2)

    def blur(x, pad):
        x = F.pad(x, (pad, pad, pad, pad))
        return F.conv2d(x, checkpoints.FIR.expand(x.shape[1], 1, 4, 4), groups=x.shape[1])

    x = activate(conv(images, "convs.0.0.weight"), "convs.0.1.bias")
    for j in (1, 2):
        y = activate(conv(x, f"convs.{j}.conv1.0.weight", padding=1), f"convs.{j}.conv1.1.bias")
        y = activate(conv(blur(y, 2), f"convs.{j}.conv2.1.weight", stride=2), f"convs.{j}.conv2.2.bias")
        x = (y + conv(blur(x, 1), f"convs.{j}.skip.1.weight", stride=2)) / math.sqrt(2)
    spread = torch.sqrt(x.var(0, unbiased=False) + 1e-8).mean().expand(4, 1, 4, 4)
    x = activate(conv(torch.cat([x, spread], 1), "final_conv.0.weight", padding=1), "final_conv.1.bias").flatten(1)
    for k, bias in ((0, "final_linear.0.bias"), (1, None)):
        x = x @ (w[f"final_linear.{k}.weight"] / math.sqrt(x.shape[1])).t()
        x = activate(x, bias) if bias else x + w["final_linear.1.bias"]
    torch.testing.assert_close(loaded(tmp_path / "out", "discriminator")(images).logits, x, rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------------------------------
# Other containers of the same weights.


@pytest.mark.parametrize("layout", ["nested", "deeper", "prefixes", "data parallel", "numpy", "tied", "one storage"])
def test_wrapped_and_shared_weights(tmp_path, layout):
    g, d = checkpoints.generator(channels=[5, 5, 5]), checkpoints.discriminator()
    weights, judge = checkpoints.rosinality_generator(g), checkpoints.rosinality_discriminator(d)
    if layout == "tied":  # one tensor under two names
        g.synthesis.convs[3].load_state_dict({"weight": weights["convs.0.conv.weight"][0]}, strict=False)
        weights["convs.2.conv.weight"] = weights["convs.0.conv.weight"]
    elif layout == "one storage":
        flat = torch.cat([tensor.reshape(-1) for tensor in weights.values()])
        parts = flat.split([tensor.numel() for tensor in weights.values()])
        weights = {name: p.view(weights[name].shape) for name, p in zip(weights, parts, strict=True)}
    whole = {"g_ema": weights, "latent_avg": g.w_avg, "d": judge}
    content = {
        "nested": {"state_dict": whole, "epoch": torch.tensor(3)},
        "deeper": {"epoch": torch.tensor(3), "model": {"nets": whole}},
        "prefixes": {
            **{f"g_ema.{name}": tensor for name, tensor in weights.items()},
            **{f"d.{name}": tensor for name, tensor in judge.items()},
            "latent_avg": g.w_avg,
        },
        "data parallel": whole | {"g_ema": {f"module.{name}": tensor for name, tensor in weights.items()}},
        "numpy": whole | {"g_ema": {name: tensor.numpy() for name, tensor in weights.items()}},
    }
    torch.save(content.get(layout, whole), tmp_path / "x.pt")
    report = convert(tmp_path / "x.pt", tmp_path / "out", with_discriminator=True, **QUIET)
    same_weights(loaded(tmp_path / "out"), g)
    same_weights(loaded(tmp_path / "out", "discriminator"), d)
    assert report.unused == (["epoch"] if layout in ("nested", "deeper") else [])


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_other_precisions(tmp_path, kind):
    g = checkpoints.generator()
    for tensor in g.state_dict().values():
        tensor.copy_(tensor.to(kind))
    weights = {name: tensor.to(kind) for name, tensor in checkpoints.rosinality_generator(g).items()}
    torch.save({"g_ema": weights, "latent_avg": g.w_avg.to(kind)}, tmp_path / "x.pt")
    convert(tmp_path / "x.pt", tmp_path / "out", **QUIET)
    same_weights(loaded(tmp_path / "out"), g)


# ----------------------------------------------------------------------------------------------------
# What is written.


def test_a_generator_alone_is_a_pipeline(tmp_path):
    g = checkpoints.generator()
    checkpoints.save_nvidia(tmp_path / "x.pkl", g)
    convert(tmp_path / "x.pkl", tmp_path / "out", truncation_psi=0.6, **QUIET)
    pipe = StyleFusionPipeline.from_pretrained(tmp_path / "out")
    assert pipe.fusion.tree.nodes == ("all",)
    with torch.no_grad():
        w = g.truncate(g.mapping(seeds_to_z([7], g.config.z_dim)), 0.6)
        expected = (g.synthesis(g.to_style(w)) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(pipe(base=7, output_type="pt").images, expected)


def test_half_variant_and_shards(tmp_path):
    g = checkpoints.generator()
    checkpoints.save_nvidia(tmp_path / "x.pkl", g)
    report = convert(tmp_path / "x.pkl", tmp_path / "out", dtype="fp16", max_shard_size="3KB", **QUIET)
    assert any("-00002-of-" in name for name in report.files)
    half = StyleGAN2Generator.from_pretrained(
        tmp_path / "out", subfolder="generator", variant="fp16", dtype=torch.float16
    )
    same_weights(loaded(tmp_path / "out"), g)
    for name, tensor in half.state_dict().items():
        assert torch.equal(tensor, g.state_dict()[name].half()), name
    pipe = StyleFusionPipeline.from_pretrained(tmp_path / "out", variant="fp16", dtype=torch.float16)
    assert pipe.generator.dtype == torch.float16


def test_too_large_for_half_is_said(tmp_path):
    g = checkpoints.generator()
    with torch.no_grad():
        g.mapping.layers[0].weight[0, 0] = 1e6
    checkpoints.save_nvidia(tmp_path / "x.pkl", g)
    report = convert(tmp_path / "x.pkl", tmp_path / "out", dtype="fp16", **QUIET)
    assert any("too large for fp16" in note and "mapping.layers.0.weight" in note for note in report.notes)


def test_card_and_record(tmp_path):
    checkpoints.save_nvidia(tmp_path / "snapshot.pkl", checkpoints.generator())
    report = convert(tmp_path / "snapshot.pkl", tmp_path / "out", **QUIET)
    digits = report.sources["source"]["sha256"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "snapshot.pkl" in card
    assert digits in card
    assert "no commercial use" in card
    assert str(tmp_path) not in card
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record["unused"] == report.unused
    assert str(tmp_path) not in json.dumps(record)
    table = report.table()
    for word in (
        "nvidia",
        "16 px",
        "spaces z (7), w (9), w+ (6 x 9)",
        "unused keys",
        "self-check",
        "no commercial use",
    ):
        assert word in table
    config = json.loads((tmp_path / "out" / "generator" / "config.json").read_text())
    assert "_name_or_path" not in config
    assert set(load_file(tmp_path / "out" / "generator" / "diffusion_pytorch_model.safetensors")) == set(
        checkpoints.generator().state_dict()
    )


def test_names_that_no_terminal_can_show(tmp_path):
    """File names and keys need not be text: what is written and printed stays readable, and one line each."""
    g = checkpoints.generator()
    weights = checkpoints.rosinality_generator(g)
    torch.save({"g_ema": weights, "latent_avg": g.w_avg, "\ud800\n": torch.ones(1)}, tmp_path / "x.pt")
    source = (tmp_path / "x.pt").rename(tmp_path / "a\n|\udcff.pt")
    report = convert(source, tmp_path / "out", **QUIET)
    assert "a?|?.pt" in (tmp_path / "out" / "README.md").read_text()
    lines = report.table().encode().decode().splitlines()
    assert any(line.split() == ["unused", "keys", "??"] for line in lines)


@pytest.mark.parametrize("noise", [True, False])
@torch.no_grad()
def test_tiles_give_the_whole_picture(noise):
    g = checkpoints.generator(resolution=64, channels=[6, 5, 5, 4, 3], use_noise=noise)
    s = torch.randn(2, g.style_dim)
    for whole, tile in ((16, 16), (16, 5), (32, 8)):
        torch.testing.assert_close(render(g, s, whole=whole, tile=tile), g.synthesis(s), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(render(g, s, "none", 16, 8), g.synthesis(s, noise_mode="none"), rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------------------------------------------
# Comparison with a reference.


@torch.no_grad()
def test_a_picture_of_a_seed_as_reference(tmp_path):
    g = checkpoints.generator()
    checkpoints.save_nvidia(tmp_path / "x.pkl", g)
    convert(tmp_path / "x.pkl", tmp_path / "a", **QUIET)
    pipe = StyleFusionPipeline.from_pretrained(tmp_path / "a")
    pipe(base=85, truncation_psi=0.5).images[0].save(tmp_path / "seed0085.png")
    report = convert(tmp_path / "x.pkl", tmp_path / "b", reference=tmp_path / "seed0085.png", **QUIET)
    assert not report.mismatches
    assert "seed 85" in report.comparison[0][0]
    assert report.comparison[0][0].endswith("at psi 0.5")
    report = convert(
        tmp_path / "x.pkl", tmp_path / "c", reference=tmp_path / "seed0085.png", reference_seed=1, **QUIET
    )
    assert report.mismatches
    assert (tmp_path / "c" / "model_index.json").is_file()


@torch.no_grad()
def test_another_models_reference_differs(tmp_path):
    g, other = checkpoints.generator(), checkpoints.generator(seed=5)
    checkpoints.save_nvidia(tmp_path / "x.pkl", g)
    z = seeds_to_z([1, 2], 7)
    save_file(
        {"z": z, "w": other.mapping(z), "image": other(z, truncation_psi=0.7).sample}, tmp_path / "r.safetensors"
    )
    report = convert(tmp_path / "x.pkl", tmp_path / "out", reference=tmp_path / "r.safetensors", **QUIET)
    assert len(report.mismatches) == 2
    assert "DIFFERS" in report.table()
