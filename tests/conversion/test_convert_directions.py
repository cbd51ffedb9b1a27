"""Direction files of InterFaceGAN, StyleCLIP and GANSpace -> one safetensors of named directions."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors import safe_open

from stylefusion_hf.conversion.convert import convert
from stylefusion_hf.core.untrusted.inert import ConversionError
from tests import checkpoints
from tests.tiny import tiny_generator, tiny_mobile_generator, tiny_stylegan3_generator

QUIET = {"progress": False}
RANDOM = np.random.RandomState(0)


def converted(tmp_path, source, **options):
    """(name -> vector, name -> what the metadata say, report)"""
    report = convert(source, tmp_path / "out", overwrite=True, **(QUIET | options))
    assert report.kind == "directions"
    with safe_open(tmp_path / "out" / "directions.safetensors", "pt") as file:
        about = file.metadata()
        assert (about["format"], about["version"]) == ("stylefusion-directions", "1")
        table = json.loads(about["directions"])
        assert set(table) == set(file.keys())
        return {name: file.get_tensor(name).numpy() for name in file.keys()}, table, report  # noqa: SIM118


@pytest.fixture
def model(tmp_path):
    """A converted generator, whose sizes directions can be held against."""
    checkpoints.save_nvidia(tmp_path / "g.pkl", checkpoints.generator())
    convert(tmp_path / "g.pkl", tmp_path / "model", **QUIET)
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("file", "name", "space"),
    [
        ("stylegan_ffhq_age_w_boundary.npy", "age", "w"),
        ("stylegan_celebahq_smile_boundary.npy", "smile", "z"),
        ("Smiling.npy", "smiling", "w"),
    ],
)
def test_interfacegan(tmp_path, file, name, space):
    vector = RANDOM.randn(1, 512)
    np.save(tmp_path / file, vector)
    vectors, table, _ = converted(tmp_path, tmp_path / file)
    np.testing.assert_array_equal(vectors[name], vector[0].astype(np.float32))
    assert table[name] == {"space": space, "layers": None, "scale": 1.0, "source": file}


def test_a_folder_becomes_one_file(tmp_path):
    folder = tmp_path / "boundaries"
    folder.mkdir()
    np.save(folder / "stylegan_ffhq_age_w_boundary.npy", RANDOM.randn(1, 9))
    torch.save(torch.randn(1, 9), folder / "pose.pt")
    (folder / "README.txt").write_text("not a direction")
    vectors, table, report = converted(tmp_path, folder, layers=[0, 1, 4])
    assert {name: v.shape for name, v in vectors.items()} == {"age": (9,), "pose": (9,)}
    assert table["pose"]["layers"] == [0, 1, 4]
    assert set(report.sources) == {"stylegan_ffhq_age_w_boundary.npy", "pose.pt"}


@pytest.mark.parametrize("container", ["npz", "packed npz", "pt", "pkl"])
def test_named_vectors(tmp_path, container):
    vectors = {"Age +": RANDOM.randn(512).astype(np.float32), "smile": RANDOM.randn(1, 512).astype(np.float32)}
    path = tmp_path / f"all.{container.split()[-1]}"
    if container == "pt":
        torch.save({name: torch.from_numpy(vector) for name, vector in vectors.items()}, path)
    elif container == "pkl":
        path.write_bytes(pickle.dumps(vectors))
    else:
        (np.savez_compressed if "packed" in container else np.savez)(path, **vectors)
    given, _, _ = converted(tmp_path, path)
    np.testing.assert_array_equal(given["age_+"], vectors["Age +"])
    np.testing.assert_array_equal(given["smile"], vectors["smile"][0])


def test_rows_of_w_plus_and_lists_of_directions(tmp_path, model):
    np.save(tmp_path / "pose.npy", RANDOM.randn(18, 512))
    vectors, table, report = converted(tmp_path, tmp_path / "pose.npy")
    assert vectors["pose"].shape == (18, 512)
    assert table["pose"]["space"] == "w+"
    assert any("one direction in w+" in note for note in report.notes)
    vectors, table, _ = converted(tmp_path, tmp_path / "pose.npy", space="w")
    assert len(vectors) == 18
    assert vectors["pose_017"].shape == (512,)
    np.save(tmp_path / "some.npy", RANDOM.randn(8, 9))  # the model has six rows: these are eight directions
    assert len(converted(tmp_path, tmp_path / "some.npy", generator=model)[0]) == 8


def test_ganspace(tmp_path):
    components, deviations = RANDOM.randn(5, 1, 512), RANDOM.rand(5)
    extra = {"lat_mean": np.zeros((1, 512)), "act_comp": RANDOM.randn(5, 1, 512), "var_ratio": deviations}
    np.savez(tmp_path / "a.npz", lat_comp=components, lat_stdev=deviations, **extra)
    vectors, table, report = converted(tmp_path, tmp_path / "a.npz")
    assert list(vectors) == [f"pc{i:03d}" for i in range(5)]
    np.testing.assert_array_equal(vectors["pc003"], components[3, 0].astype(np.float32))
    assert table["pc003"]["scale"] == pytest.approx(deviations[3])
    assert report.unused == ["a.npz/lat_mean", "a.npz/act_comp", "a.npz/var_ratio"]
    torch.save({"comp": torch.randn(4, 512), "std": torch.rand(4), "mean": torch.randn(512)}, tmp_path / "ffhq_pca.pt")
    assert len(converted(tmp_path, tmp_path / "ffhq_pca.pt")[0]) == 4


def test_style_directions(tmp_path, model):
    """Whole style codes, and one vector a layer in the network's order, with toRGB and without."""
    g = checkpoints.generator()
    code = torch.randn(1, g.style_dim)
    parts = {name: vector[0].numpy() for name, vector in g.split_style(code).items()}
    np.save(tmp_path / "whole.npy", code.numpy())
    order = ["conv0", "rgb0", "conv1", "conv2", "rgb1", "conv3", "conv4", "rgb2"]
    (tmp_path / "layers.pkl").write_bytes(pickle.dumps([parts[name] for name in order]))
    (tmp_path / "convs.pkl").write_bytes(pickle.dumps([parts[name][None] for name in order if "conv" in name]))
    np.savez(tmp_path / "named.npz", **parts)
    for name in ("whole", "layers", "named"):
        suffix = {"whole": "npy", "named": "npz"}.get(name, "pkl")
        vectors, table, _ = converted(tmp_path, tmp_path / f"{name}.{suffix}", generator=model)
        np.testing.assert_array_equal(vectors[name], code[0].numpy())
        assert table[name]["space"] == "s"
    vectors, *_ = converted(tmp_path, tmp_path / "convs.pkl", generator=model)
    np.testing.assert_array_equal(vectors["convs"], code[0, : sum(g.conv_sizes)].numpy())
    np.save(tmp_path / "styleclip.npy", RANDOM.randn(6048))
    assert converted(tmp_path, tmp_path / "styleclip.npy")[1]["styleclip"]["space"] == "s"


def refused(tmp_path, source, match, **options):
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ConversionError, match=match):
        convert(source, tmp_path / "out", **(QUIET | options))
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros(512), "is zero, or not finite"),
        (np.full(512, np.nan), "is zero, or not finite"),
        (RANDOM.randn(6048, 512), r"fs3\.npy"),
        (RANDOM.randn(2, 2, 2, 2), r"\(2, 2, 2, 2\) is not a direction"),
    ],
    ids=["zero", "nan", "relevance", "four dimensions"],
)
def test_arrays_that_are_no_directions(tmp_path, array, match):
    np.save(tmp_path / "x.npy", array)
    refused(tmp_path, tmp_path / "x.npy", match)


def test_directions_of_another_generator(tmp_path, model):
    np.save(tmp_path / "x.npy", RANDOM.randn(512))
    refused(tmp_path, tmp_path / "x.npy", r"has the shape \(9,\), this one \(512,\)", generator=model)
    refused(tmp_path, tmp_path / "x.npy", "holds a converted generator", generator=tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", '{"resolution": 1e9, "channels": ["x"]}', '{"resolution": null}'])
def test_a_generator_whose_config_is_none(tmp_path, text):
    np.save(tmp_path / "x.npy", RANDOM.randn(512))
    (tmp_path / "config.json").write_text(text)
    refused(tmp_path, tmp_path / "x.npy", r"config\.json: is not a generator's config", generator=tmp_path)


def test_a_folder_with_a_network_in_it(tmp_path):
    """Its mean of w is no direction, nor are its biases."""
    g = checkpoints.generator()
    weights = checkpoints.rosinality_generator(g)
    (tmp_path / "folder").mkdir()
    for content in ({"g_ema": weights, "latent_avg": g.w_avg}, weights):
        torch.save(content, tmp_path / "folder" / "x.pt")
        refused(tmp_path, tmp_path / "folder", r"x\.pt: holds a network's weights, not directions")


def test_nothing_to_be_found(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path, tmp_path / "empty", "holds none of .npy")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(["a", "b"]))
    refused(tmp_path, tmp_path / "x.pkl", "is a list", kind="directions")
    (tmp_path / "y.pkl").write_bytes(pickle.dumps([RANDOM.randn(3)] * 4))
    refused(tmp_path, tmp_path / "y.pkl", "match no known layer order")
    for content, problem in (
        ({}, "holds no directions"),
        ({"lat_comp": np.zeros((0, 1, 512))}, "is not a list of components"),
        ({"lat_comp": RANDOM.randn(2, 1, 9), "lat_stdev": np.array([1, np.nan])}, "'pc001' is zero, or not finite"),
        ({"conv0": RANDOM.randn(5), "rgb0": "x"}, "2 style vectors are not arrays"),
        (np.float32(1.5).reshape(()), "is not a direction|holds no directions"),
    ):
        (tmp_path / "z.pkl").write_bytes(pickle.dumps(content))
        refused(tmp_path, tmp_path / "z.pkl", rf"z\.pkl: .*{problem}", kind="directions")
    np.save(tmp_path / "o.npy", np.array([object()]), allow_pickle=True)
    refused(tmp_path, tmp_path / "o.npy", "not a plain array of numbers|not plain numbers")
    folder = tmp_path / "twice"
    folder.mkdir()
    np.save(folder / "Age.npy", RANDOM.randn(4))
    np.save(folder / "age_.npy", RANDOM.randn(4))
    refused(tmp_path, folder, "two directions 'age'")


@pytest.mark.parametrize("make", [tiny_generator, tiny_mobile_generator, tiny_stylegan3_generator])
def test_directions_are_held_against_any_generator(tmp_path, make):
    g = make()
    g.save_pretrained(tmp_path / "model" / "generator")
    np.save(tmp_path / "x.npy", RANDOM.randn(g.num_ws, g.config.w_dim))
    _, table, _ = converted(tmp_path, tmp_path / "x.npy", generator=tmp_path / "model")
    assert table["x"]["space"] == "w+"
    np.save(tmp_path / "y.npy", RANDOM.randn(g.num_ws + 1, g.config.w_dim + 1))
    refused(
        tmp_path,
        tmp_path / "y.npy",
        "a direction in w of this generator",
        generator=tmp_path / "model",
        overwrite=True,
    )


def test_attributes_in_the_form_of_codes_are_directions(tmp_path):
    """encoder4editing's pose.pt is (1, 18, 512), its age.pt (1, 512)."""
    folder = tmp_path / "e4e"
    folder.mkdir()
    torch.save(torch.randn(1, 18, 512), folder / "pose.pt")
    torch.save(torch.nn.functional.normalize(torch.randn(1, 512)), folder / "age.pt")
    _, table, _ = converted(tmp_path, folder)
    assert {name: about["space"] for name, about in table.items()} == {"age": "w", "pose": "w+"}
    torch.save(torch.randn(1, 18, 512), folder / "me.pt")
    with pytest.raises(ConversionError, match=r"me\.pt: holds codes"):
        convert(folder, tmp_path / "no")
