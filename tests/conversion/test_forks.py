"""What people have beside NVIDIA's and rosinality's own files: other names, wrapped and whole modules, forks."""

import shlex
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylefusion_hf.cli import main
from stylefusion_hf.conversion.convert import convert
from stylefusion_hf.conversion.rendering import render
from stylefusion_hf.core.codes import labels_to_tensor
from stylefusion_hf.core.untrusted.inert import ConversionError
from tests import checkpoints
from tests.conversion.test_convert import loaded, same_weights
from tests.parity import case_file

QUIET = {"progress": False}


def refused(tmp_path: Path, content: object, match: str, **options: object) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ConversionError, match=match) as error:
        convert(tmp_path / "x.pt", tmp_path / "nothing", **QUIET, **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "nothing").exists()


# ----------------------------------------------------------------------------------------------------
# Other names.

FORKS = {
    "BasicSR": (checkpoints.basicsr_generator, lambda state: {"params": {"x": torch.ones(1)}, "params_ema": state}),
    "mmgeneration": (
        checkpoints.mmgeneration_generator,
        lambda state: {
            "meta": {"epoch": 1},
            "state_dict": {
                **{f"generator.{name}": tensor + 1 for name, tensor in state.items() if "kernel" not in name},
                **{f"generator_ema.{name}": tensor for name, tensor in state.items()},
                "discriminator.convs.0.conv.weight_orig": torch.ones(1),
            },
        },
    ),
    "genforce": (
        checkpoints.genforce_generator,
        lambda state: {"models": {"generator": {}, "generator_smooth": state, "discriminator": {}}},
    ),
}


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "checkpoint"])
@pytest.mark.parametrize("name", FORKS)
def test_renamed_layouts(tmp_path: Path, name: str, wrapped: bool) -> None:
    g = checkpoints.generator(img_channels=1 if wrapped else 3)
    make, wrap = FORKS[name]
    state = make(g)
    torch.save(wrap(state) if wrapped else state, tmp_path / "x.pt")
    report = convert(tmp_path / "x.pt", tmp_path / "out", **QUIET)
    assert any(f"{name}'s names" in note for note in report.notes)
    given = loaded(tmp_path / "out")
    if name != "genforce":  # which stores the mean of w
        assert any("estimated" in note for note in report.notes)
        given.w_avg.copy_(g.w_avg)
    same_weights(given, g, exactly=name != "genforce")  # the style biases lost a one and got it back


def test_a_missing_tensor_of_a_fork_is_noticed(tmp_path: Path) -> None:
    for make, _ in FORKS.values():
        state = make(checkpoints.generator())
        for name in [n for n in state if n.endswith(("bias", "weight", "weight_orig"))][::5]:
            refused(tmp_path, {k: v for k, v in state.items() if k != name}, r"x\.pt: .*(lacks|complete layer|known)")


def test_sahlman(tmp_path: Path) -> None:
    g = checkpoints.generator()
    content = checkpoints.sahlman_file(g)
    torch.save({"Gs": content, "G": checkpoints.sahlman_file(checkpoints.generator(seed=1))}, tmp_path / "training.pt")
    torch.save(content, tmp_path / "x.pth")
    for file in ("x.pth", "training.pt"):
        report = convert(tmp_path / file, tmp_path / "out", overwrite=True, **QUIET)
        assert any("no noise images" in note for note in report.notes)
        given = loaded(tmp_path / "out")
        for ours, theirs in zip(given.synthesis.convs, g.synthesis.convs, strict=True):
            ours.noise_const.copy_(theirs.noise_const)
        same_weights(given, g)
    refused(tmp_path, checkpoints.sahlman_file(g, activation="relu"), "was built with activation='relu'")
    refused(tmp_path, checkpoints.sahlman_file(g, conv_filter=[1, 2, 1]), "conv_filter")
    refused(tmp_path, checkpoints.sahlman_file(g, novelty=3), "novelty=3")


def test_other_architectures_are_named_with_the_next_step(tmp_path: Path) -> None:
    gan = {"GE.initial_block": torch.ones(1, 8, 4, 4), "GE.blocks.0.to_style1.weight": torch.ones(2, 2)}
    refused(tmp_path, {"GAN": gan, "version": "1.5"}, "lucidrains/stylegan2-pytorch: .* Next step: draw pictures")
    state = checkpoints.basicsr_generator(checkpoints.generator())
    decoder = {f"stylegan_decoder.{name}": tensor for name, tensor in state.items()}
    gfpgan = {"params_ema": decoder | {"conv_body_first.weight": torch.ones(1)}}
    refused(tmp_path, gfpgan, "is a GFPGAN, .* Next step: convert the StyleGAN2")
    labels = checkpoints.genforce_generator(checkpoints.generator()) | {"mapping.label_weight": torch.ones(3, 7)}
    refused(tmp_path, labels, "label")
    refused(tmp_path, {"net": {"a.weight": torch.ones(2)}}, "names of BasicSR, mmgeneration, genforce")


# ----------------------------------------------------------------------------------------------------
# Wrapped and whole modules.


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "ema_model._orig_mod.", "inside"]
)
def test_prefixes_of_wrappers(tmp_path: Path, prefix: str) -> None:
    g, d = checkpoints.generator(), checkpoints.discriminator()

    def wrap(state: dict) -> dict:
        if prefix != "inside":
            return {prefix + name: tensor for name, tensor in state.items()}
        return {name.replace(".", "._orig_mod.", 1): tensor for name, tensor in state.items()}

    weights, judge = checkpoints.rosinality_generator(g), checkpoints.rosinality_discriminator(d)
    torch.save({"g_ema": wrap(weights), "d": wrap(judge), "latent_avg": g.w_avg}, tmp_path / "ro.pt")
    convert(tmp_path / "ro.pt", tmp_path / "ro", with_discriminator=True, **QUIET)
    same_weights(loaded(tmp_path / "ro"), g)
    same_weights(loaded(tmp_path / "ro", "discriminator"), d)
    torch.save(wrap(checkpoints.nvidia_generator(g)), tmp_path / "nv.pt")
    convert(tmp_path / "nv.pt", tmp_path / "nv", **QUIET)
    same_weights(loaded(tmp_path / "nv"), g)


@pytest.mark.parametrize(
    "layout", ["lightning", "two flat networks", "other names", "averaged last", "running", "state inside"]
)
def test_networks_under_other_names(tmp_path: Path, layout: str) -> None:
    """The averaged generator is taken, and the mean of w from wherever it stands around it."""
    g, other = checkpoints.generator(), checkpoints.rosinality_generator(checkpoints.generator(5))
    weights, judge = (
        checkpoints.rosinality_generator(g),
        checkpoints.rosinality_discriminator(checkpoints.discriminator()),
    )

    def prefixed(prefix: str, state: dict) -> dict:
        return {prefix + name: tensor for name, tensor in state.items()}

    content: dict[str, Any] = {
        "lightning": {"state_dict": {**prefixed("g_ema._orig_mod.", weights), **prefixed("d.", judge)}, "epoch": 3},
        "two flat networks": {**prefixed("netG.", weights), **prefixed("netD.", judge)},
        "other names": {"net": {"weights": weights}, "step": 7},
        "averaged last": {"netG": other, "netG_ema": weights},
        "running": {"G": other, "G_running": weights},
        "state inside": {"state_dict": {**prefixed("net.", other), **prefixed("net_avg.", weights)}},
    }[layout]
    torch.save(content | {"latent_avg": g.w_avg}, tmp_path / "x.pt")
    report = convert(tmp_path / "x.pt", tmp_path / "out", **QUIET)
    same_weights(loaded(tmp_path / "out"), g)
    assert "latent_avg" not in report.unused
    assert not [note for note in report.notes if "mean of w" in note]


@pytest.mark.parametrize("part", ["mapping.", "synthesis."])
def test_a_part_of_a_network_is_not_taken_for_a_prefix(tmp_path: Path, part: str) -> None:
    weights = checkpoints.nvidia_generator(checkpoints.generator())
    refused(tmp_path, {name: tensor for name, tensor in weights.items() if name.startswith(part)}, "lacks|holds no")


@pytest.mark.parametrize("layout", ["bare", "legacy", "checkpoint", "data parallel", "encoder"])
def test_whole_modules_of_rosinality(tmp_path: Path, layout: str) -> None:
    g, d = checkpoints.generator(), checkpoints.discriminator()
    settings = {"style.1": {"lr_mul": 0.01, "activation": "fused_lrelu"}, "conv1.conv": {"demodulate": True}}
    module = checkpoints.as_module(checkpoints.rosinality_generator(g), settings)
    judge = checkpoints.as_module(checkpoints.rosinality_discriminator(d))
    content = {
        "checkpoint": {"g_ema": module, "d": judge, "latent_avg": g.w_avg},
        "data parallel": torch.nn.DataParallel(module),
    }.get(layout, module)
    if layout == "encoder":
        content = checkpoints.Layer()
        content.decoder, content.latent_avg = module, g.w_avg.clone()  # a plain attribute, as pSp has it
    with checkpoints.rosinality_code(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the legacy format wants the source code
        torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=layout != "legacy")
    report = convert(tmp_path / "x.pt", tmp_path / "out", with_discriminator=layout == "checkpoint", **QUIET)
    assert report.kind == ("e4e" if layout == "encoder" else "rosinality")
    given = loaded(tmp_path / "out")
    if layout not in ("checkpoint", "encoder"):
        given.w_avg.copy_(g.w_avg)
    same_weights(given, g)
    if layout == "checkpoint":
        same_weights(loaded(tmp_path / "out", "discriminator"), d)


@pytest.mark.parametrize(
    ("path", "attribute", "value"),
    [("style.2", "lr_mul", 0.1), ("convs.1.conv", "demodulate", False), ("conv1.activate", "negative_slope", 0.1)],
)
def test_other_settings_of_whole_modules(tmp_path: Path, path: str, attribute: str, value: object) -> None:
    weights = checkpoints.rosinality_generator(checkpoints.generator())
    with checkpoints.rosinality_code():
        refused(tmp_path, checkpoints.as_module(weights, {path: {attribute: value}}), f"{path} has {attribute}")


def test_shared_files_with_prefixes(tmp_path: Path) -> None:
    for file in ("model.pt", "module_orig_mod.pt"):
        assert convert(case_file("compiled-prefix", file), tmp_path / file, **QUIET).kind == "rosinality"
    path = case_file("expanded-tensor", "model.pt")
    report = convert(path, tmp_path / "e", reference=str(path.with_name("ref.safetensors")), **QUIET)
    assert report.comparison
    assert not report.mismatches


def test_an_expanded_mean(tmp_path: Path) -> None:
    g = checkpoints.generator()
    weights = checkpoints.rosinality_generator(g)
    torch.save({"g_ema": weights, "latent_avg": g.w_avg[None].expand(g.num_ws, -1)}, tmp_path / "x.pt")
    convert(tmp_path / "x.pt", tmp_path / "out", **QUIET)
    same_weights(loaded(tmp_path / "out"), g)


# ----------------------------------------------------------------------------------------------------
# Classes.


@pytest.mark.parametrize(
    "labels",
    [
        {"mapping_layers": 0},
        {"mapping_layers": 0, "label_embed_dim": 5},
        {"mapping_layers": 2, "mapping_width": 3, "mapping_embed_dim": 4},
        {"mapping_layers": 1, "mapping_embed_dim": 4},
    ],
)
@pytest.mark.parametrize("kind", ["nvidia", "tensorflow"])
@torch.no_grad()
def test_mappings_of_labels(tmp_path: Path, labels: dict, kind: str) -> None:
    g = checkpoints.generator(label_dim=3, label_embed_dim=5, z_dim=4)
    d = checkpoints.discriminator(label_dim=3, **labels)
    save = {"nvidia": checkpoints.save_nvidia, "tensorflow": checkpoints.save_tensorflow}[kind]
    save(tmp_path / "x.pkl", g, d)
    convert(tmp_path / "x.pkl", tmp_path / "out", with_discriminator=True, **QUIET)
    judge, given = loaded(tmp_path / "out", "discriminator"), loaded(tmp_path / "out")
    same_weights(given, g, exactly=kind == "nvidia")
    for name, tensor in d.state_dict().items():
        assert torch.equal(judge.state_dict()[name], tensor)
    images, c = torch.randn(3, 3, 16, 16), torch.eye(3)
    assert torch.equal(judge(images, c).logits, d(images, c).logits)
    if not labels["mapping_layers"]:  # the projection of the normalized embedding, written out
        y = d.mapping.embed(c)
        y = y / (y.square().mean(1, keepdim=True) + 1e-8).sqrt()
        features = d(images, torch.eye(3)[:1].expand(3, -1)).logits
        assert features.shape == (3, 1)
        torch.testing.assert_close(d.mapping(None, c), y)


def test_learning_rates_of_a_mapping_of_labels(tmp_path: Path) -> None:
    """TensorFlow's default is 0.1, this package's layers have 0.01: ten times the numbers are the same function."""
    g, d = checkpoints.generator(label_dim=3), checkpoints.discriminator(label_dim=3, mapping_layers=2)
    checkpoints.save_tensorflow(tmp_path / "x.pkl", g, d, judge_static={"mapping_lrmul": None})
    convert(tmp_path / "x.pkl", tmp_path / "out", with_discriminator=True, **QUIET)
    state = loaded(tmp_path / "out", "discriminator").state_dict()
    for name, tensor in d.state_dict().items():
        torch.testing.assert_close(state[name], tensor * 10 if name.startswith("mapping.layers.") else tensor)
    content = {"G_ema": checkpoints.module_tree(checkpoints.nvidia_generator(g), {}, "Generator")}
    rates = {f"mapping.fc{j}": {"bias_gain": 0.1} for j in range(2)}
    content["D"] = checkpoints.module_tree(checkpoints.nvidia_discriminator(d), rates, "Discriminator")
    checkpoints.dump_foreign(content, tmp_path / "y.pkl")
    convert(tmp_path / "y.pkl", tmp_path / "ada", with_discriminator=True, **QUIET)
    same_weights(loaded(tmp_path / "ada", "discriminator"), loaded(tmp_path / "out", "discriminator"), exactly=False)


@pytest.mark.parametrize("file", ["legacy.pkl", "tf-network-final.pkl"])
def test_the_shared_discriminators_without_mapping(tmp_path: Path, file: str) -> None:
    path = case_file("conditional-discriminator-without-mapping", file)
    reference = path.with_name("ref.safetensors")
    report = convert(path, tmp_path / "out", with_discriminator=True, reference=reference, **QUIET)
    assert "logits" in {line[0] for line in report.comparison}
    assert not report.mismatches


def test_a_conditional_model_in_rosinalitys_layout_is_noticed(tmp_path: Path) -> None:
    weights = checkpoints.rosinality_generator(checkpoints.generator(z_dim=9))
    wide = weights | {"style.1.weight": torch.randn(9, 18)}
    refused(
        tmp_path, {"g_ema": wide}, r"takes 18 numbers for codes of 9: .*class-conditional model.*convert the \.pkl"
    )
    refused(tmp_path, {"g_ema": weights | {"embed.weight": torch.ones(9, 3)}}, "'embed.weight': .*class-conditional")


# ----------------------------------------------------------------------------------------------------
# Arguments of forks.


def test_arguments_of_forks(tmp_path: Path) -> None:
    g = checkpoints.generator()

    def save(arguments: dict, attributes: dict | None = None) -> Path:
        settings = {"synthesis": {"_init_kwargs": arguments, "_init_args": []} | (attributes or {})}
        checkpoints.save_nvidia(tmp_path / "x.pkl", g, **settings)
        return tmp_path / "x.pkl"

    for arguments in (
        {"resize": 2},
        {"synthesis_kwargs": {"resize": [3, 4]}},
        {"countHW": [1, 2]},
        {"size": [64, 32]},
    ):
        name = "resize" if "resize" in str(arguments) else next(iter(arguments))
        with pytest.raises(ConversionError, match=rf"was built with '?{name}'?=.* an argument of a fork"):
            convert(save(arguments), tmp_path / "out", **QUIET)
    harmless = {"w_dim": 9, "resize": None, "countHW": (1, 1), "splitfine": 0.0, "block_kwargs": {"use_noise": True}}
    report = convert(save(harmless, {"resize": 2}), tmp_path / "out", **QUIET)
    assert any("settings that NVIDIA's code does not have: resize=2" in note for note in report.notes)
    checkpoints.save_tensorflow(tmp_path / "tf.pkl", g, static={"resize": 2})
    with pytest.raises(ConversionError, match="were built with resize=2, an argument of a fork"):
        convert(tmp_path / "tf.pkl", tmp_path / "tf", **QUIET)
    checkpoints.save_tensorflow(tmp_path / "tf.pkl", g, static={"resize": None, "fmap_base": 16384, "structure": "x"})
    assert convert(tmp_path / "tf.pkl", tmp_path / "tf", **QUIET).kind == "tensorflow"


# ----------------------------------------------------------------------------------------------------
# References.


@torch.no_grad()
def tensorflow_picture(g, seed: int, psi: float, path: Path, label: int | None = None) -> None:
    """The picture of a seed as TensorFlow's generate.py makes it: z, then the noise, from one random stream."""
    random = np.random.RandomState(seed)
    z = torch.from_numpy(random.randn(1, g.config.z_dim)).float()
    kept = [conv.noise_const.clone() for conv in g.synthesis.convs]
    for conv in g.synthesis.convs:
        conv.noise_const.copy_(torch.from_numpy(random.randn(1, 1, *conv.noise_const.shape))[0, 0])
    labels = None if label is None else labels_to_tensor([label], g.config.label_dim)
    image = render(g, g.to_style(g.truncate(g.mapping(z, labels), psi)))
    for conv, noise in zip(g.synthesis.convs, kept, strict=True):
        conv.noise_const.copy_(noise)
    levels = image[0].permute(1, 2, 0).mul(127.5).add(127.5).round().clamp(0, 255).byte().numpy()
    Image.fromarray(levels).save(path)


def test_noise_of_a_seed_as_tensorflow_draws_it(tmp_path: Path) -> None:
    g = checkpoints.generator()
    checkpoints.save_tensorflow(tmp_path / "x.pkl", g)
    tensorflow_picture(g, 85, 0.5, tmp_path / "seed0085.png")
    report = convert(str(tmp_path / "x.pkl"), str(tmp_path / "a"), reference=str(tmp_path / "seed0085.png"), **QUIET)
    assert not report.mismatches
    assert "psi 0.5, noise of the seed as TensorFlow's generate.py draws it" in report.comparison[0][0]
    same_weights(loaded(tmp_path / "a"), g, exactly=False)  # the comparison changes nothing that is written
    again = convert(tmp_path / "x.pkl", tmp_path / "b", reference=tmp_path / "seed0085.png", reference_seed=1, **QUIET)
    assert again.mismatches


def test_the_shared_picture_of_tensorflow(tmp_path: Path) -> None:
    path = case_file("tf-reference-picture", "network-final.pkl")
    for reference in ("seed0085.png", "ref.safetensors"):
        report = convert(path, tmp_path / reference, reference=path.with_name(reference), **QUIET)
        assert report.comparison
        assert not report.mismatches


def test_a_picture_of_a_class(tmp_path: Path) -> None:
    g = checkpoints.generator(label_dim=4)
    checkpoints.save_nvidia(tmp_path / "x.pkl", g)
    tensorflow_picture(g, 7, 0.7, tmp_path / "seed0007.png", label=2)
    for name in ("seed0007_class2.png", "seed7-class2-psi0.7.png"):
        (tmp_path / name).write_bytes((tmp_path / "seed0007.png").read_bytes())
    options = {"overwrite": True, **QUIET}
    for name, label in (("seed0007.png", 2), ("seed0007_class2.png", None), ("seed7-class2-psi0.7.png", None)):
        how = {"reference": tmp_path / name, "reference_class": label}
        report = convert(tmp_path / "x.pkl", tmp_path / "out", **how, **options)
        assert not report.mismatches
        assert "seed 7" in report.comparison[0][0]
    for label, message in ((None, "give --reference-class, 0 to 3"), (4, "classes 0 to 3"), (-1, "an integer from 0")):
        with pytest.raises(ConversionError, match=message):
            convert(
                tmp_path / "x.pkl",
                tmp_path / "out",
                reference=tmp_path / "seed0007.png",
                reference_class=label,
                **options,
            )
    argv = ["convert", "x.pkl", "out", "--overwrite", "--no-progress", "--reference", "seed0007.png"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main([*argv, "--reference-class", "2"]) == 0


# ----------------------------------------------------------------------------------------------------
# Directions by columns, and what comes next.


def test_the_columns_of_factor_files(tmp_path: Path) -> None:
    matrix = torch.linalg.qr(torch.randn(9, 9)).Q
    torch.save({"ckpt": "550000.pt", "eigvec": matrix}, tmp_path / "factor.pt")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "factor.pt").write_bytes((tmp_path / "factor.pt").read_bytes())
    from stylefusion_hf.core.edits import load_directions

    for source, kind in (("factor.pt", "auto"), ("factor.pt", "directions"), ("folder", "auto")):
        report = convert(tmp_path / source, tmp_path / "out", kind=kind, overwrite=True, **QUIET)
        found = load_directions(tmp_path / "out" / "directions.safetensors")
        assert [d.space for d in found.values()] == ["w"] * 9
        assert torch.equal(found["factor002"].tensor, matrix[:, 2])
        assert any("columns of eigvec" in note for note in report.notes)
    refused(tmp_path, {"eigvec": torch.ones(9)}, "'eigvec' is not a matrix")
    assert convert(case_file("factor-pt", "factor.pt"), tmp_path / "shared", **QUIET).kind == "directions"


@pytest.mark.parametrize("name", ["faces", "my faces; rm -rf x", "it's", "-x"])
def test_what_comes_next(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from stylefusion_hf.training.fusion import parse_args

    checkpoints.save_nvidia(tmp_path / "x.pkl", checkpoints.generator())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main(["convert", "--no-progress", "x.pkl", "--", name]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
        command = shlex.split(line.removeprefix("next: "))
        assert command[:3] == ["stylefusion", "train", "fusion"]
        args = parse_args(command[3:])
        assert Path(args.pretrained_model_name_or_path).resolve() == tmp_path / name
        assert args.regions == "auto"
    card = (tmp_path / name / "README.md").read_text()
    assert line.removeprefix("next: ") in card
