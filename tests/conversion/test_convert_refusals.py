"""What conversion refuses, each with one clear error and nothing written; and that nothing is lost on the way."""

import argparse
import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stylefusion_hf.conversion import command, job
from stylefusion_hf.conversion.convert import convert
from stylefusion_hf.core.untrusted.inert import ConversionError
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.models.stylegan2 import StyleGAN2Generator
from tests import checkpoints
from tests.hostile import RUNNERS, torch_zip, whole

QUIET = {"progress": False}


def refused(tmp_path, source, match, **options):
    """Converting fails with one line that names the source, and leaves nothing behind."""
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ConversionError, match=match) as error:
        convert(source, tmp_path / "out", **(QUIET | options))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 800
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    return str(error.value)


def snapshot(tmp_path, tensors=None, settings=None, **changes):
    """An NVIDIA snapshot with changed tensors (None: left out) or settings."""
    g = checkpoints.generator()
    d = checkpoints.discriminator()
    weights = {k: v for k, v in (checkpoints.nvidia_generator(g) | (tensors or {})).items() if v is not None}
    of_d = {k: v for k, v in (checkpoints.nvidia_discriminator(d) | changes.get("judge", {})).items() if v is not None}
    content = {
        "G_ema": checkpoints.module_tree(weights, settings or {}, "Generator"),
        "D": checkpoints.module_tree(of_d, changes.get("judge_settings", {}), "Discriminator"),
    }
    checkpoints.dump_foreign(content, tmp_path / "x.pkl")
    return tmp_path / "x.pkl"


# ----------------------------------------------------------------------------------------------------
# NVIDIA's PyTorch snapshots.


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"synthesis.b8": {"architecture": "resnet"}}, "generator has architecture 'resnet'"),
        ({"synthesis.b8": {"architecture": "orig"}}, "generator has architecture 'orig'"),
        ({"synthesis.b8.conv0": {"activation": "relu"}}, r"synthesis\.b8\.conv0 has the activation 'relu'"),
        ({"mapping.fc0": {"bias_gain": 1.0}}, r"mapping\.fc0 has a learning-rate multiplier of 1, expected 0\.01"),
        ({"*": {"conv_clamp": None}, "synthesis.b8.conv0": {"conv_clamp": 256}}, "different conv_clamp values"),
        ({"*": {"conv_clamp": -1}}, "conv_clamp"),
        ({"": {"z_dim": 8}}, "says z_dim 8, its tensors say 7"),
    ],
)
def test_settings_that_are_not_supported(tmp_path, settings, match):
    refused(tmp_path, snapshot(tmp_path, settings=settings), match)


def test_other_filters(tmp_path):
    other = torch.outer(torch.tensor([1.0, 2, 2, 1]), torch.tensor([1.0, 2, 2, 1])) / 36
    path = snapshot(tmp_path, {"synthesis.b8.conv0.resample_filter": other})
    refused(tmp_path, path, r"'synthesis\.b8\.conv0\.resample_filter' is not the filter")


NAMES = list(checkpoints.nvidia_generator(checkpoints.generator()))


# The mean alone may be missing: it is estimated then.
@pytest.mark.parametrize("name", [n for n in NAMES if "filter" not in n and n != "mapping.w_avg"])
def test_every_missing_tensor_is_noticed(tmp_path, name):
    """Also where the rest would make a whole network of fewer layers."""
    expected = "lacks|belong to no complete layer|there is no|architecture"
    refused(tmp_path, snapshot(tmp_path, {name: None}), rf"x\.pkl: .*({expected})")


def test_foreign_tensors_are_named(tmp_path):
    report = convert(snapshot(tmp_path, {"extra.thing": torch.ones(2)}), tmp_path / "out", **QUIET)
    assert "extra.thing" in report.unused


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        (torch.randn(5, 6, 3, 4), "shape"),
        (torch.randn(5), r"'synthesis\.b8\.conv0\.weight' has shape \(5,\), expected 4 dimensions"),
        (torch.tensor(1.0), r"'synthesis\.b8\.conv0\.weight' has shape \(\), expected 4 dimensions"),
        (torch.full((5, 6, 3, 3), float("nan")), r"synthesis\.convs\.1\.weight"),
        (torch.full((5, 6, 3, 3), float("inf")), r"inf or nan.*synthesis\.convs\.1\.weight"),
        (torch.zeros(5, 6, 3, 3, dtype=torch.int32), r"synthesis\.convs\.1\.weight holds torch\.int32"),
    ],
    ids=["shape", "one dimension", "a number", "nan", "inf", "integers"],
)
def test_broken_tensors(tmp_path, tensor, match):
    refused(tmp_path, snapshot(tmp_path, {"synthesis.b8.conv0.weight": tensor}), match)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"judge_settings": {"b8": {"architecture": "skip"}}}, "discriminator has architecture 'skip'"),
        ({"judge": {"b8.skip.weight": None}}, r"lacks 'b8\.skip\.weight'"),
        ({"judge": {"b8.conv1.weight": None}}, r"blocks are \[16\]"),
    ],
)
def test_discriminators(tmp_path, changes, match):
    refused(tmp_path, snapshot(tmp_path, **changes), match, with_discriminator=True)
    assert convert(tmp_path / "x.pkl", tmp_path / "out", **QUIET).kind == "nvidia"  # without it, all is well


# ----------------------------------------------------------------------------------------------------
# TensorFlow era.


def tensorflow_file(tmp_path, **kwargs):
    checkpoints.save_tensorflow(tmp_path / "tf.pkl", checkpoints.generator(), checkpoints.discriminator(), **kwargs)
    return tmp_path / "tf.pkl"


def test_tensorflow_settings(tmp_path):
    refused(tmp_path, tensorflow_file(tmp_path, version=3), "network of version 3")
    refused(tmp_path, tensorflow_file(tmp_path, static={"nonlinearity": "relu"}), "nonlinearity='relu'")
    refused(tmp_path, tensorflow_file(tmp_path, static={"resample_kernel": [1, 2, 1]}), r"resample_kernel=\[1, 2, 1\]")
    report = convert(tensorflow_file(tmp_path, static={"truncation_psi": 0.5}), tmp_path / "out", **QUIET)
    assert report.parts["generator"]["config"]["truncation_psi"] == 0.5


@pytest.mark.parametrize(
    ("variable", "match"),
    [
        ("mapping/LabelConcat/weight", "normalized together"),
        ("synthesis/ToRGB_lod0/weight", "StyleGAN or ProGAN snapshot"),
        ("synthesis/8x8/Skip/weight", "architecture"),
    ],
)
def test_tensorflow_variables(tmp_path, monkeypatch, variable, match):
    original = checkpoints.tensorflow_generator

    def changed(model):
        own, mapping, synthesis = original(model)
        part, _, name = variable.partition("/")
        extra = [(name, torch.zeros(1, 1, 6, 5))]
        return own, mapping + extra * (part == "mapping"), synthesis + extra * (part == "synthesis")

    monkeypatch.setattr(checkpoints, "tensorflow_generator", changed)
    refused(tmp_path, tensorflow_file(tmp_path), match)


def test_tensorflow_discriminators_of_other_architectures(tmp_path, monkeypatch):
    original = checkpoints.tensorflow_discriminator
    for drop, add in (("Skip", []), ("", [("8x8/FromRGB/weight", torch.zeros(1, 1, 3, 5))])):
        listed = [pair for pair in original(checkpoints.discriminator()) if not drop or drop not in pair[0]]
        monkeypatch.setattr(checkpoints, "tensorflow_discriminator", lambda model, listed=listed + add: listed)
        refused(tmp_path, tensorflow_file(tmp_path), "not of the 'resnet' architecture", with_discriminator=True)


# ----------------------------------------------------------------------------------------------------
# Kinds and options.


def test_kinds_and_options(tmp_path):
    path = snapshot(tmp_path)
    refused(tmp_path, path, "is of the kind 'nvidia', not 'rosinality'", kind="rosinality")
    refused(tmp_path, path, "kind is auto or one of", kind="pytorch")
    refused(tmp_path, path, "dtype is fp32 or fp16", dtype="int8")
    refused(tmp_path, path, "truncation_psi is between 0 and 2", truncation_psi=3)
    refused(tmp_path, tmp_path / "none.pkl", "there is no such file")
    refused(tmp_path, path, r"none\.safetensors: there is no such file", reference=tmp_path / "none.safetensors")
    torch.save({"g_ema": checkpoints.rosinality_generator(checkpoints.generator())}, tmp_path / "x.pt")
    refused(tmp_path, tmp_path / "x.pt", "has no discriminator", with_discriminator=True)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"model": {"a.weight": torch.zeros(2)}}, "no StyleGAN2 generator that is known"),
        ({}, "an empty dictionary"),
        ([1, 2], "holds a list"),
        ("text", "holds a str"),
        ({"state_dict": {"decoder.conv.weight": torch.zeros(2)}}, "not a StyleGAN2 generator in rosinality's layout"),
        ({"module." * 10_000 + "a.weight": torch.zeros(2)}, "no StyleGAN2 generator that is known"),
        ({"blender_segments.disentangle_net.0.weight": torch.zeros(2)}, "one fusion net"),
        (
            {"g_ema": {"conv1.conv.weight": 3, "to_rgb1.bias": torch.zeros(2)}},
            r"'conv1\.conv\.weight' is not a tensor",
        ),
    ],
    ids=lambda x: str(x)[:40],
)
def test_other_contents(tmp_path, content, match):
    torch.save(content, tmp_path / "x.pt")
    refused(tmp_path, tmp_path / "x.pt", match)


@pytest.mark.parametrize("name", RUNNERS)
def test_hostile_files_run_nothing(tmp_path, name):
    canary = tmp_path / "canary"
    for suffix, data in (
        ("pkl", whole(RUNNERS[name](str(canary)))),
        ("pt", torch_zip(whole(RUNNERS[name](str(canary))))),
    ):
        (tmp_path / f"x.{suffix}").write_bytes(data)
        refused(tmp_path, tmp_path / f"x.{suffix}", rf"x\.{suffix}: ")
    assert not canary.exists()


def test_a_small_file_that_describes_a_huge_picture_is_not_rendered(tmp_path):
    channels = [1] * 13
    g = StyleGAN2Generator(16384, channels, z_dim=2, w_dim=2, mapping_layers=1, use_noise=False)
    torch.save({"G_ema": checkpoints.nvidia_generator(g)}, tmp_path / "x.pt")
    report = convert(tmp_path / "x.pt", tmp_path / "out", **QUIET)
    assert "not rendered, too large for a check" in report.check


@pytest.mark.parametrize("name", ["x.pkl", "w.json", "seed1.png"])
def test_pipes_are_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    if name == "seed1.png":
        refused(tmp_path, snapshot(tmp_path), "is a device, pipe or socket", reference=tmp_path / name)
    else:
        refused(tmp_path, tmp_path / name, "is a device, pipe or socket")


@pytest.mark.parametrize("size", ["0", "5", "-1GB", "huge", "10MiB", ""])
def test_shard_sizes_that_are_none(tmp_path, size):
    refused(tmp_path, snapshot(tmp_path), "max_shard_size is a size such as 5GB", max_shard_size=size)


@pytest.mark.parametrize(
    ("mean", "match"),
    [
        (torch.zeros(0), "latent_avg is not a vector"),
        (torch.zeros(0, 9), "latent_avg is not a vector"),
        (torch.zeros(11), "mean of w has 11 numbers, w has 9"),
        ([0.0] * 9, "latent_avg is not a vector"),
    ],
    ids=["empty", "no rows", "too long", "a list"],
)
def test_means_that_are_none(tmp_path, mean, match):
    weights = checkpoints.rosinality_generator(checkpoints.generator())
    torch.save({"g_ema": weights, "latent_avg": mean}, tmp_path / "x.pt")
    refused(tmp_path, tmp_path / "x.pt", match)


# ----------------------------------------------------------------------------------------------------
# Fusion nets.

NETS = {"padded_width": 8, "hidden_width": 12, "hidden_layers": 2}


def fusion_files(tmp_path, tree="all*(church, background)", table=None, **changes):
    """A repository as the authors lay it out, with nets of another size; returns the JSON."""
    g = checkpoints.generator()
    fusion = FusionHierarchy(tree, g.conv_sizes, g.rgb_sizes, **(NETS | changes))
    folder = tmp_path / "weights" / "nets"
    folder.mkdir(parents=True)
    torch.save({"g_ema": checkpoints.rosinality_generator(g), "latent_avg": g.w_avg}, tmp_path / "g.pt")
    for node in fusion.tree.fused:
        torch.save(checkpoints.fusion_net(fusion, node), folder / f"{node}.pt")
    written = table or {node: f"weights/nets/{node}.pt" for node in fusion.tree.fused}
    (tmp_path / "weights" / "church_weights.json").write_text(json.dumps(written))
    return tmp_path / "weights" / "church_weights.json", g, fusion


@pytest.mark.parametrize(
    "shape", [{}, {"num_indicators": 8}, {"indicator_repeats": 3}, {"hidden_layers": 1, "padded_width": 6}]
)
def test_fusion_nets_of_any_width(tmp_path, shape):
    source, g, fusion = fusion_files(tmp_path, **shape)
    report = convert(source, tmp_path / "out", generator=tmp_path / "g.pt", **QUIET)
    given = FusionHierarchy.from_pretrained(tmp_path / "out" / "fusion")
    assert {k: v for k, v in given.config.items() if k[0] != "_"} == {
        k: v for k, v in fusion.config.items() if k[0] != "_"
    }
    codes = {node: torch.randn(2, g.style_dim) for node in fusion.tree.nodes}
    assert torch.equal(given.fuse(codes), fusion.fuse(codes))
    assert report.parts["generator"]["config"]["truncation_psi"] == 0.5
    assert report.check["fusion nets"] == 1
    assert set(report.sources) == {"source", "generator file", "net all"}


def test_missing_nets_become_unfused_nodes(tmp_path):
    source, g, fusion = fusion_files(tmp_path, "ffhq")
    table = json.loads(source.read_text())
    source.write_text(json.dumps({node: table[node] for node in ("all", "face")} | {"generator": "g.pt"}))
    report = convert(source, tmp_path / "out", **QUIET)
    given = FusionHierarchy.from_pretrained(tmp_path / "out" / "fusion")
    assert set(given.tree.nodes) == set(fusion.tree.nodes)
    assert given.tree.fused == ("all", "face")
    assert any(
        "not fused, as there are no nets for them: skin_mouth, bg_hair_clothes, bg_clothes" in note
        for note in report.notes
    )
    codes = {node: torch.randn(1, g.style_dim) for node in given.tree.nodes}
    inner = fusion.blend("face", codes["skin_mouth"], codes["eyes"], codes["face"])
    assert torch.equal(given.fuse(codes), fusion.blend("all", inner, codes["bg_hair_clothes"], codes["all"]))


def test_no_nets_at_all(tmp_path):
    source, *_ = fusion_files(tmp_path, table={"generator": "g.pt"})
    convert(source, tmp_path / "out", **QUIET)
    assert FusionHierarchy.from_pretrained(tmp_path / "out" / "fusion").tree.fused == ()


def test_trees(tmp_path):
    source, *_ = fusion_files(tmp_path)
    other = source.rename(source.parent / "mine.json")
    options = {"generator": tmp_path / "g.pt"}
    refused(tmp_path, other, "fits the trees ffhq, car, church.*--tree", **options)
    refused(tmp_path, other, r"unknown fused node 'all'", tree="root(a, b)", **options)
    refused(tmp_path, other, "--tree: .*face", tree="all(face)", **options)
    convert(other, tmp_path / "out", tree="all(left, right)", **options, **QUIET)
    assert str(FusionHierarchy.from_pretrained(tmp_path / "out" / "fusion").tree) == "all*(left, right)"


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ({"all": "weights/nets/none.pt"}, r"do not exist: all \(weights/nets/none\.pt\)"),
        ({"all": "weights/nets/all.pt", "nose": "weights/nets/all.pt"}, "nodes of no known tree"),
        ({"all": "g.pt"}, r"g\.pt: .*unknown tensor"),
        ({"all": 3}, "expected node -> file"),
        ({"all": "x" * 300}, "do not exist: all"),  # no file system has such names
        ({"all": "x" * 5000}, "expected node -> file"),
        ({"a\nb": "g.pt"}, "expected node -> file"),
        ({f"node{i}": "g.pt" for i in range(60)}, r"nodes of no known tree \(nodes: node0, .*node5, \.\.\.\)"),
        ({f"node{i}": "g.pt" for i in range(100)}, "names 100 nets"),
        ([1], "expected node -> file"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_tables(tmp_path, table, match):
    source, *_ = fusion_files(tmp_path)
    source.write_text(json.dumps(table))
    refused(tmp_path, source, match, generator=tmp_path / "g.pt")


def test_fusion_nets_need_their_generator(tmp_path):
    source, *_ = fusion_files(tmp_path)
    refused(tmp_path, source, "--generator FILE")
    for text in ("{", '{"all": ' + "9" * 10_000 + "}", "[" * 100_000):
        source.write_text(text)
        refused(tmp_path, source, r"church_weights\.json: cannot be read as JSON", generator=tmp_path / "g.pt")


def test_nets_of_different_shapes(tmp_path):
    source, g, fusion = fusion_files(tmp_path, "car")
    other = FusionHierarchy("car", g.conv_sizes, g.rgb_sizes, **(NETS | {"hidden_width": 13}))
    torch.save(checkpoints.fusion_net(other, "background"), tmp_path / "weights" / "nets" / "background.pt")
    refused(tmp_path, source, r"background\.pt: this net's shape", generator=tmp_path / "g.pt")
    net = checkpoints.fusion_net(fusion, "all")
    net["blender_common.disentangle_net.1.weight"] = torch.zeros(3, 4)
    torch.save(net, tmp_path / "weights" / "nets" / "all.pt")
    refused(tmp_path, source, r"all\.pt: ", generator=tmp_path / "g.pt")


# ----------------------------------------------------------------------------------------------------
# The destination.


def test_an_existing_folder_needs_overwrite(tmp_path):
    source, out = snapshot(tmp_path), tmp_path / "out"
    out.mkdir()
    convert(source, out, **QUIET)  # an empty folder is as good as none
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ConversionError, match="is not empty.*--overwrite"):
        convert(source, out, **QUIET)
    assert (out / "mine.txt").exists()
    convert(source, out, overwrite=True, **QUIET)
    assert not (out / "mine.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.pkl"]


def test_overwriting_never_removes_the_source(tmp_path):
    (tmp_path / "out").mkdir()
    source = snapshot(tmp_path / "out")
    with pytest.raises(ConversionError, match="which --overwrite would remove"):
        convert(source, tmp_path / "out", overwrite=True, **QUIET)
    assert source.exists()


def test_overwriting_never_removes_the_source_folder(tmp_path):
    np.save(tmp_path / "age.npy", np.ones((1, 512)))
    with pytest.raises(ConversionError, match="is .*, which --overwrite would remove"):
        convert(tmp_path, tmp_path, overwrite=True, **QUIET)
    assert (tmp_path / "age.npy").exists()


def test_links_and_long_names(tmp_path):
    source = snapshot(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "there")
    convert(source, tmp_path / "link", **QUIET)  # a link is followed, also to what is not there yet
    assert (tmp_path / "there" / "model_index.json").is_file()
    convert(source, tmp_path / ("n" * 255), **QUIET)
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ConversionError, match="symbolic link that leads nowhere"):
        convert(source, tmp_path / "a", **QUIET)


@pytest.mark.parametrize("name", ["a\udcff", "a\nb", "a\0b"])
def test_destinations_that_are_no_text(tmp_path, name):
    with pytest.raises(ConversionError, match="is not a printable folder name"):
        convert(snapshot(tmp_path), tmp_path / name, **QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pkl"]


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "out").write_text("x")
    refused(tmp_path, snapshot(tmp_path), "is a file")
    with pytest.raises(ConversionError, match="not a writable folder"):
        convert(tmp_path / "x.pkl", tmp_path / "out" / "deeper" / "still", **QUIET)


@pytest.mark.parametrize("problem", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("step", ["save_model", "model_card"])
def test_nothing_is_lost_on_failure(tmp_path, monkeypatch, problem, step):
    source, out = snapshot(tmp_path), tmp_path / "out"
    convert(source, out, **QUIET)
    (out / "mine.txt").write_text("mine")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def fail(*args, **kwargs):
        raise problem

    monkeypatch.setattr(job, step, fail)
    for target in (out, tmp_path / "new"):
        with pytest.raises(type(problem)):
            convert(source, target, overwrite=True, **QUIET)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.pkl"]


def test_a_failing_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    source, out = snapshot(tmp_path), tmp_path / "out"
    convert(source, out, **QUIET)
    (out / "mine.txt").write_text("mine")
    rename, calls = os.rename, []

    def second_fails(old, new):
        calls.append(new)
        if len(calls) == 2:
            raise OSError("no")
        rename(old, new)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OSError, match="no"):
        convert(source, out, overwrite=True, **QUIET)
    assert (out / "mine.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.pkl"]


# ----------------------------------------------------------------------------------------------------
# The command.


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([*map(str, arguments), "--no-progress"]))


def test_the_command(tmp_path, capsys):
    g = checkpoints.generator()
    checkpoints.save_nvidia(tmp_path / "x.pkl", g, checkpoints.discriminator())
    run(tmp_path / "x.pkl", tmp_path / "out", "--with-discriminator", "--dtype", "fp16", "--psi", "0.6")
    told = capsys.readouterr().out
    for word in (
        "converted",
        "nvidia",
        "discriminator",
        "spaces z (7)",
        "unused keys",
        "self-check",
        "fp16",
        "no commercial use",
    ):
        assert word in told
    assert (tmp_path / "out" / "discriminator" / "diffusion_pytorch_model.fp16.safetensors").is_file()


def test_a_reference_that_differs_is_an_error_after_the_fact(tmp_path):
    z = torch.randn(1, 7)
    save_file({"z": z, "image": torch.randn(1, 3, 16, 16)}, tmp_path / "r.safetensors")
    with pytest.raises(ValueError, match="was written, but differs from .*in image"):
        run(snapshot(tmp_path), tmp_path / "out", "--reference", tmp_path / "r.safetensors")
    assert (tmp_path / "out" / "model_index.json").is_file()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({}, "has no z"),
        ({"z": torch.zeros(0, 7), "w": torch.zeros(0, 9)}, "has no z"),
        ({"z": torch.zeros(2000, 7)}, "has no z .* at most 1024"),
        ({"z": torch.zeros(1, 7), "mean_latent": torch.zeros(4)}, "does not fit this generator"),
        ({"z": torch.zeros(1, 7), "ws_psi1.2.3": torch.zeros(1, 6, 9)}, "does not fit this generator"),
        ({"z": torch.zeros(1, 7), "ws_psi1_cutoff9": torch.zeros(1, 6, 9)}, "does not fit this generator"),
        ({"z": torch.zeros(1, 7), "c": torch.zeros(1, 3), "w": torch.zeros(1, 9)}, "does not fit this generator"),
        ({"z": torch.zeros(1, 7), "logits": torch.zeros(1, 1)}, "holds nothing to compare with"),
    ],
    ids=range(8),
)
def test_references_that_fit_no_generator(tmp_path, data, match):
    save_file(data, tmp_path / "r.safetensors")
    refused(tmp_path, snapshot(tmp_path), rf"r\.safetensors: .*{match}", reference=tmp_path / "r.safetensors")


@pytest.mark.parametrize(
    ("name", "shape"), [("w", (3,)), ("w", ()), ("ws", (1, 5, 9)), ("image", (1,)), ("image", (2, 3, 16, 16))], ids=str
)
def test_references_of_another_shape_differ(tmp_path, name, shape):
    save_file({"z": torch.randn(1, 7), name: torch.ones(shape)}, tmp_path / "r.safetensors")
    report = convert(snapshot(tmp_path), tmp_path / "out", reference=tmp_path / "r.safetensors", **QUIET)
    assert len(report.mismatches) == 1


@pytest.mark.parametrize("text", ["a", "3-", "-3", "1,,2", "0-999"])
def test_rows_that_are_none(tmp_path, text):
    with pytest.raises(ValueError, match="--layers"):
        run(tmp_path, tmp_path / "out", f"--layers={text}")


def test_help_needs_no_torch():
    code = "import sys, stylefusion_hf.conversion.command; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"generator": "x.pkl"}, "--generator is for fusion nets and directions: leave it out"),
        ({"tree": "all"}, "--tree is for fusion nets: leave it out"),
        ({"space": "w"}, "--space is for directions: leave it out"),
        ({"layers": [1]}, "--layers is for directions: leave it out"),
        ({"previews": (8,)}, "--previews is for a MobileStyleGAN or a StyleGAN3"),
        ({"truncation_psi": "a"}, "truncation_psi is between 0 and 2, got 'a'"),
        ({"truncation_psi": True}, "truncation_psi is between 0 and 2, got True"),
        ({"reference": "seed3.jpg"}, r"seed3\.jpg: a JPEG has lost too much for a comparison; give the \.png"),
    ],
)
def test_options_that_would_do_nothing(tmp_path, monkeypatch, options, match):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed3.jpg").write_bytes(b"\xff\xd8\xff")
    refused(tmp_path, snapshot(tmp_path), match, **options)


def test_options_of_directions(tmp_path):
    np.save(tmp_path / "pose.npy", np.ones((6, 9)))
    refused(tmp_path, tmp_path / "pose.npy", "--tree is for fusion nets", tree="all")
    refused(tmp_path, tmp_path / "pose.npy", r"its layers are rows of w\+", layers=[7], space="w+")
    refused(tmp_path, tmp_path / "pose.npy", r"its layers are rows of w\+.*got 5", layers=5, space="w+")
