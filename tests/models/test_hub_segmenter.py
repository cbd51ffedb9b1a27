"""Segmentation networks of transformers as segmenters: the numbers, files, the Hub, the trainer, the pipelines."""

import builtins
import copy
import json
import logging
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers", reason="the extra `segmenter` is not installed")

from stylefusion_hf import (  # noqa: E402
    HubSegmenter,
    RegionSegmenter,
    StyleFusionInversionPipeline,
    StyleFusionPipeline,
)
from stylefusion_hf.cli import main  # noqa: E402
from stylefusion_hf.imaging.features import edge_maps, extractor  # noqa: E402
from stylefusion_hf.models import hub_segmenter  # noqa: E402
from stylefusion_hf.models.transformers_networks import input_size, read_preprocessing  # noqa: E402
from stylefusion_hf.regions import folders as region_folders  # noqa: E402
from stylefusion_hf.training import encoder, fusion, fusion_setup  # noqa: E402
from tests.tiny import RESOLUTION, assert_same_weights, draw, tiny_fusion, tiny_generator, tiny_segmenter  # noqa: E402
from tests.tiny_hub import AVATAR, FACE, configs, save_network  # noqa: E402

SMALL = {"size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("face-parsing"), **SMALL)


@pytest.fixture(scope="module")
def model(folder: Path) -> HubSegmenter:
    return HubSegmenter.from_hub(folder, AVATAR)


def pictures(batch: int, height: int = 32, width: int = 32) -> torch.Tensor:
    return draw(batch, 3, height, width).tanh()


# --- Numbers ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_region_is_as_probable_as_its_classes_together(folder: Path, model: HubSegmenter) -> None:
    network = transformers.SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    images = pictures(2)
    mean, std = (torch.tensor(SMALL[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    classes = network(((images + 1) / 2 - mean) / std).logits.softmax(1)
    assert list(model.config.regions) == [*AVATAR["regions"]]
    assert sorted(n for numbers in model.config.classes for n in numbers) == list(range(19))
    summed = torch.stack([classes[:, numbers].sum(1) for numbers in model.config.classes], dim=1)
    expected = F.interpolate(summed.log(), size=(32, 32), mode="bilinear").softmax(1)
    torch.testing.assert_close(model.segment(images).softmax(1), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_probabilities_at_the_networks_own_resolution_add_up(model: HubSegmenter, monkeypatch) -> None:
    images = pictures(2)
    seen: list[torch.Tensor] = []

    def kept(x: torch.Tensor, size: Any, mode: str) -> torch.Tensor:
        seen.append(x)
        return x

    monkeypatch.setattr(hub_segmenter, "resize", kept)
    logits = model.segment(images)
    classes = hub_segmenter.class_logits(model.net(pixel_values=(seen[0] - model.shift) / model.scale)).softmax(1)
    assert logits.shape == (2, 6, 8, 8)
    summed = torch.stack([classes[:, numbers].sum(1) for numbers in model.config.classes], dim=1)
    torch.testing.assert_close(logits.softmax(1), summed, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", configs(FACE))
def test_networks_of_many_kinds(kind: str, tmp_path: Path) -> None:
    side = 64 if kind in ("mask2former", "mobilevit", "mobilenet_v2") else 32
    save_network(tmp_path / "a", kind, **SMALL | {"size": {"height": side, "width": side}})
    made = HubSegmenter.from_hub(tmp_path / "a", AVATAR)
    images = pictures(3, 48, 40)
    logits = made.segment(images)
    assert logits.shape == (3, 6, 48, 40) and logits.isfinite().all() and logits.std() > 0.1
    singles = torch.cat([made.segment(image[None]) for image in images])
    torch.testing.assert_close(singles, logits, rtol=1e-3, atol=1e-4)
    made.save_pretrained(tmp_path / "b")
    loaded = HubSegmenter.from_pretrained(tmp_path / "b")
    assert torch.equal(loaded.segment(images), logits)
    assert all(
        x.is_floating_point() for x in load_file(tmp_path / "b" / "diffusion_pytorch_model.safetensors").values()
    )


def test_the_config_is_saved_whole_whatever_transformers_takes_out_of_it(folder, tmp_path, monkeypatch) -> None:
    make = transformers.AutoConfig.for_model

    def greedy(kind: str, **entries: Any) -> Any:  # as Mask2FormerConfig of transformers 5.0
        made = make(kind, **copy.deepcopy(entries))
        for value in entries.values():
            if isinstance(value, (dict, list)):
                value.clear()
        return made

    monkeypatch.setattr(transformers.AutoConfig, "for_model", greedy)
    HubSegmenter.from_hub(folder, AVATAR).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["network"]["depths"]
    HubSegmenter.from_pretrained(tmp_path)


@torch.no_grad()
def test_mask_networks_are_put_together_as_transformers_does(tmp_path: Path) -> None:
    save_network(tmp_path, "mask2former", **SMALL | {"size": {"height": 64, "width": 64}})
    table = {"regions": {name: [name] for name in FACE}}
    made, images = HubSegmenter.from_hub(tmp_path, table), pictures(2, 64, 64)
    output = made.net(pixel_values=((images + 1) / 2 - made.shift) / made.scale)
    scores = torch.einsum(
        "bqc,bqhw->bchw", output.class_queries_logits.softmax(-1)[..., :-1], output.masks_queries_logits.sigmoid()
    )
    expected = F.interpolate(scores.log(), size=(64, 64), mode="bilinear")
    torch.testing.assert_close(made.segment(images), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_pictures_of_any_size_and_batches_in_parts(model: HubSegmenter, monkeypatch) -> None:
    for height, width in ((32, 32), (15, 9), (100, 64), (1, 1)):
        assert model.segment(pictures(2, height, width)).shape == (2, 6, height, width)
    images = pictures(5, 40, 40)
    whole = model.segment(images)
    monkeypatch.setattr(hub_segmenter, "chunk_size", lambda size, most: 2)
    torch.testing.assert_close(model.segment(images), whole, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"expected images \(batch, 3, H, W\), got \(3, 8, 8\)"):
        model.segment(images[0, :, :8, :8])


def test_gradients_reach_the_pictures_whole_or_in_parts(model: HubSegmenter, monkeypatch) -> None:
    images = pictures(5, 40, 40).requires_grad_()
    (whole,) = torch.autograd.grad(model.segment(images).square().sum(), images)
    assert whole.abs().sum(dim=(1, 2, 3)).min() > 0
    monkeypatch.setattr(hub_segmenter, "chunk_size", lambda size, most: 2)
    (parts,) = torch.autograd.grad(model.segment(images).square().sum(), images)
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_it_never_counts_or_drops(model: HubSegmenter) -> None:
    images = pictures(2)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    expected = model.segment(images)
    model.train()
    assert torch.equal(model.segment(images), expected)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    model.eval()


# --- What a preprocessor_config.json says ----------------------------------------------------------------------------

PREPARED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"size": [512, 512], "mean": [0.485, 0.456, 0.406], "white": 1.0, "resample": "bilinear", "multiple": 1}),
    ({"size": 640, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, {"size": [640, 640], "std": [0.5] * 3}),
    ({"size": {"shortest_edge": 384}, "resample": 3, "size_divisor": 32}, {"size": [384], "multiple": 32}),
    ({"do_resize": False}, {"size": []}),
    ({"do_rescale": False}, {"white": 255.0}),
    ({"rescale_factor": 0.00784313725490196}, {"white": 2.0}),
    ({"do_normalize": False}, {"mean": [0.0] * 3, "std": [1.0] * 3}),
    (
        {"do_center_crop": True, "size": {"shortest_edge": 544}, "crop_size": 512, "do_flip_channel_order": True},
        {"size": [512, 512], "flip_channels": True, "mean": [0.0] * 3},
    ),
    ({"size": {"height": 8, "width": 16}, "ensure_multiple_of": 8, "resample": 0}, {"resample": "nearest-exact"}),
]


@pytest.mark.parametrize(("given", "expected"), PREPARED, ids=lambda x: str(x)[:40])
def test_preparation(given, expected, tmp_path: Path) -> None:
    if given:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(given))
    found = read_preprocessing(str(tmp_path), {}, "here")
    assert {key: pytest.approx(found[key]) for key in expected} == expected
    assert read_preprocessing(str(tmp_path), {"image_size": 96}, "here")["size"] == ([96, 96] if not given.keys() & {
        "size", "do_resize", "crop_size"} else found["size"])  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": "large"}, "size must be height and width or shortest_edge, in pixels, got 'large'"),
        ({"size": {"longest_edge": 5}}, "size must be height and width or shortest_edge"),
        ({"image_mean": [1, 2]}, "image_mean must be three numbers"),
        ({"image_std": ["a", 1, 1]}, "image_std is a number"),
        ({"do_resize": "yes"}, "do_resize is True or False"),
        ({"rescale_factor": "x"}, "rescale_factor is a number"),
        ({"size": 5000}, "sides from 8 to 4096 pixels"),
        ({"image_std": [0, 1, 1]}, r"std\[0\] must be above 0"),
    ],
)
def test_a_preparation_that_makes_no_sense_is_refused(given, message, folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given))
    with pytest.raises(ValueError, match=message):
        HubSegmenter.from_hub(tmp_path, AVATAR)


def test_input_sizes() -> None:
    assert input_size(256, 256, [512, 512], 1) == (512, 512)
    assert input_size(256, 512, [384], 1) == (384, 768)
    assert input_size(256, 300, [384], 32) == (384, 480)
    assert input_size(33, 64, [], 16) == (48, 64)


@torch.no_grad()
def test_pictures_are_prepared_as_transformers_does(folder: Path, model: HubSegmenter) -> None:
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    image = F.interpolate(pictures(1, 8, 8), size=(128, 96), mode="bicubic").clamp(-1, 1)
    array = image[0].add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
    wanted = processor(array, return_tensors="pt")["pixel_values"]
    seen: list[torch.Tensor] = []
    hook = model.net.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    model.segment(torch.tensor(array).permute(2, 0, 1)[None] / 127.5 - 1)
    hook.remove()
    torch.testing.assert_close(seen[0], wanted, rtol=0, atol=1.5 / 255 / 0.2)  # Pillow rounds to bytes in between
    assert (seen[0] - wanted).abs().mean() < 0.5 / 255 / 0.2


# --- Files and the Hub -----------------------------------------------------------------------------------------------


def test_a_pipeline_folder_is_whole_without_the_original(model: HubSegmenter, tmp_path: Path, caplog) -> None:
    generator = tiny_generator()
    pipe = StyleFusionPipeline(generator, tiny_fusion(generator), model)
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["segmenter"] == ["stylefusion_hf", "HubSegmenter"]
    assert str(tmp_path.parent.parent) not in (tmp_path / "segmenter" / "config.json").read_text()
    with caplog.at_level(logging.WARNING):
        loaded = StyleFusionPipeline.from_pretrained(tmp_path)
        given = StyleFusionPipeline.from_pretrained(tmp_path, segmenter=model)
    assert not [record for record in caplog.records if "Expected types" in record.getMessage()]
    call = {"base": [1, 2], "regions": {"hair": 3}, "output_masks": True, "output_type": "pt"}
    expected, found = pipe(**call), loaded(**call)
    assert torch.equal(found.images, expected.images) and given.segmenter is model
    assert found.masks.keys() == set(model.config.regions)
    assert all(torch.equal(found.masks[name], expected.masks[name]) for name in found.masks)
    assert torch.stack([*found.masks.values()]).sum(0).eq(1).all()
    half = StyleFusionPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.segmenter.dtype == torch.bfloat16
    assert half(**call).masks["hair"].shape == (2, RESOLUTION, RESOLUTION)


def test_inversion_goes_by_edges(model: HubSegmenter) -> None:
    assert extractor(model) is edge_maps and extractor(None) is edge_maps
    assert extractor(tiny_segmenter()) is not edge_maps
    pipe = StyleFusionInversionPipeline(tiny_generator(), segmenter=model)
    made = pipe(
        pictures(1) / 2 + 0.5, num_inference_steps=2, region_weights={"hair": 4, "background": 0}, output_type="pt"
    )
    assert made.images.isfinite().all()


def test_from_the_hub(folder: Path, model: HubSegmenter, hub, tmp_path: Path) -> None:
    commit = hub.add("me/face-parsing", folder)
    loaded = HubSegmenter.from_hub("me/face-parsing", AVATAR, cache_dir=tmp_path)
    assert loaded.config.source == f"me/face-parsing@{commit}" and model.config.source is None
    assert torch.equal(loaded.segment(pictures(1)), model.segment(pictures(1)))
    asked = len(hub.requests)
    again = HubSegmenter.from_hub("me/face-parsing", AVATAR, cache_dir=tmp_path, local_files_only=True)
    assert len(hub.requests) == asked and torch.equal(again.segment(pictures(1)), model.segment(pictures(1)))
    assert not [request for request in hub.requests if request.endswith(".py")]
    other = hub.add("me/face-parsing", {**{p.name: p.read_bytes() for p in folder.iterdir()}, "x": b""}, ref="two")
    second = HubSegmenter.from_hub("me/face-parsing", AVATAR, revision="two", cache_dir=tmp_path)
    assert second.config.source == f"me/face-parsing@{other}"


def test_what_the_hub_refuses(folder: Path, hub, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.add(
        "me/pickled", {k: v for k, v in files.items() if not k.endswith("safetensors")} | {"pytorch_model.bin": b"x"}
    )
    hub.add("me/empty", {"README.md": b"nothing"})
    hub.add("me/face", files)
    cases = {
        "me/pickled": "has no safetensors weights, and pickles, .* are not read: name a revision",
        "me/empty": "it has no config.json",
        "me/nothing": "there is no such repository",
        "a/b/c": "neither a folder nor a model name",
    }
    for name, message in cases.items():
        with pytest.raises(OSError, match=message) as found:
            HubSegmenter.from_hub(name, AVATAR, cache_dir=tmp_path)
        assert "\n" not in str(found.value)
    assert not [request for request in hub.requests if request.startswith("GET") and request.endswith(".bin")]
    with pytest.raises(OSError, match="it has no revision 'nine'"):
        HubSegmenter.from_hub("me/face", AVATAR, revision="nine", cache_dir=tmp_path)


def changed(folder: Path, out: Path, config: dict[str, Any] | None = None, **weights: Any) -> Path:
    """A copy with another config; weights of None are left out."""
    out.mkdir()
    for file in folder.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    old = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(old | (config or {})))
    if weights:
        tensors = load_file(out / "model.safetensors")
        kept = {k: v for k, v in tensors.items() if not any(re.search(name, k) for name in weights)}
        save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_what_is_no_segmenter_is_refused(folder: Path, tmp_path: Path) -> None:
    refused: list[tuple[Path, str]] = [
        (changed(folder, tmp_path / "head", decode_head=None), "is not a complete segmenter: it lacks"),
        (
            changed(folder, tmp_path / "resnet", {"model_type": "resnet", "depths": [1]}),
            "'resnet' is not a network for semantic segmentation",
        ),
        (changed(folder, tmp_path / "mine", {"model_type": "mine"}), "transformers cannot make a config of 'mine'"),
        (changed(folder, tmp_path / "none", {"model_type": None}), "with a model_type"),
        (changed(folder, tmp_path / "deep", {"depths": [10**6] * 4}), "network.depths is a number from"),
        (changed(folder, tmp_path / "large", {"hidden_sizes": [10**9] * 4}), "network.hidden_sizes is a number from"),
        (changed(folder, tmp_path / "wide", {"hidden_sizes": [16] * 4}), "cannot be loaded"),
        (changed(folder, tmp_path / "timm", {"use_timm_backbone": True, "backbone": "resnet50"}), "from elsewhere"),
        (changed(folder, tmp_path / "named", {"id2label": {"3": "x"}}), "id2label must name the classes 0, 1, 2"),
        (changed(folder, tmp_path / "odd", {"hidden_act": "nonsense"}), "'nonsense'|nonsense"),
    ]
    for path, message in refused:
        with pytest.raises((ValueError, OSError), match=message) as found:
            HubSegmenter.from_hub(path, AVATAR)
        assert "\n" not in str(found.value)
    cut = changed(folder, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(OSError, match="cannot be loaded: .*Download or save it again"):
        HubSegmenter.from_hub(cut, AVATAR)
    (cut / "config.json").write_text("[")
    with pytest.raises(OSError, match="config.json of .* is not the JSON object"):
        HubSegmenter.from_hub(cut, AVATAR)


def test_code_of_a_repository_is_never_run(folder: Path, tmp_path: Path) -> None:
    marked = tmp_path / "ran"
    code = {"auto_map": {"AutoModelForSemanticSegmentation": "evil.Net", "AutoConfig": "evil.Config"}}
    path = changed(folder, tmp_path / "evil", code)
    (path / "evil.py").write_text(f"open({str(marked)!r}, 'w')")
    HubSegmenter.from_hub(path, AVATAR).save_pretrained(tmp_path / "saved")
    assert "auto_map" not in (tmp_path / "saved" / "config.json").read_text()
    HubSegmenter.from_pretrained(tmp_path / "saved")
    assert not marked.exists()


def test_constructor_arguments_are_checked(model: HubSegmenter) -> None:
    config = {k: v for k, v in model.config.items() if not k.startswith("_")}
    for change, message in (
        ({"network": 3}, "network must be a transformers config"),
        ({"regions": ["a"] * 6}, "at least two distinct region names"),
        ({"classes": [[0]]}, "one list per region, 6 in all"),
        ({"classes": [[0], [1], [2], [3], [4], [19]]}, "names class 19, but the network's are 0 to 18"),
        ({"classes": [[0], [1], [2], [3], [4], [4]]}, "class 4 is both in 'eyes' and in 'hair'"),
        ({"classes": [[0], [1], [2], [3], [4], []]}, "'hair' has no class"),
        ({"resample": "lanczos"}, "unknown resample 'lanczos'"),
        ({"size": [1, 2, 3]}, "size must be one or two sides"),
        ({"mean": [0.0]}, "mean and std need three numbers"),
        ({"white": 0.0}, "white must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            HubSegmenter(**{**config, **change})


def test_missing_weights_name_the_versions(model: HubSegmenter, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if "decode_head" not in k}, file, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=f"is incomplete: .*saved with transformers {transformers.__version__}, this is"
    ):
        HubSegmenter.from_pretrained(tmp_path)


def test_without_transformers_the_extra_is_named(
    folder: Path, model: HubSegmenter, tmp_path: Path, monkeypatch
) -> None:
    model.save_pretrained(tmp_path)
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "transformers":
            raise ImportError("No module named 'transformers'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    for load in (lambda: HubSegmenter.from_hub(folder, AVATAR), lambda: HubSegmenter.from_pretrained(tmp_path)):
        with pytest.raises(ImportError, match=r"pip install .*\[segmenter\]") as found:
            load()
        assert "\n" not in str(found.value)


# --- Training and commands -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator alone, and the avatar tree's table."""
    root = tmp_path_factory.mktemp("base")
    tiny_generator(use_noise=False).save_pretrained(root / "generator")
    (root / "map.json").write_text(json.dumps(AVATAR))
    return root


def flags(base: Path, out: Path, *more: Any) -> list[str]:
    text = f"--model {base} --output_dir {out} --pool_size 8 --train_batch_size 4 --hidden_width 8 --hidden_layers 1"
    return [*text.split(), "--max_train_steps", "2", "--lr_scheduler", "constant", *map(str, more)]


AS_IT_IS = "--no-distil_segmenter"


def test_the_trainer_distils_one_by_default(base: Path, folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    small = {"samples": 8, "steps": 2, "progress": False}
    monkeypatch.setattr(region_folders, "write_regions", partial(region_folders.write_regions, **small))
    monkeypatch.setattr(fusion_setup, "distil", partial(fusion_setup.distil, **small))
    out = tmp_path / "out"
    chosen = ["--segmenter", folder, "--region-map", base / "map.json"]
    fusion.train(fusion.parse_args(flags(base, out, *chosen)))
    pipe = StyleFusionPipeline.from_pretrained(out)
    assert type(pipe.segmenter) is RegionSegmenter
    assert set(pipe.segmenter.config.regions) >= set(pipe.fusion.tree.leaves)
    assert f"learned its regions from {folder.name}" in (out / "README.md").read_text()
    assert (out / "regions" / "regions.png").is_file() and (out / "regions" / "judges" / "segmenter").is_dir()
    monkeypatch.setattr(region_folders, "write_regions", None)  # a second run takes what is there
    fusion.train(fusion.parse_args([*flags(base, out, *chosen), "--resume_from_checkpoint", "latest"]))
    assert main(["train", "fusion", *flags(base, tmp_path / "b", *chosen), "--tree", "all*(skin, moon)"]) == 2
    assert "the tree's moon" in capsys.readouterr().err
    assert not (tmp_path / "b" / "regions").exists()  # told before it is distilled


def test_the_trainer_takes_one(base: Path, folder: Path, model: HubSegmenter, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    chosen = ["--segmenter", folder, "--region-map", base / "map.json", AS_IT_IS]
    assert main(["train", "fusion", *flags(base, out, *chosen)]) == 0
    assert f"{folder.name}, whose weights are part of this folder: its license" in (out / "README.md").read_text()
    pipe = StyleFusionPipeline.from_pretrained(out)
    assert type(pipe.segmenter) is HubSegmenter
    assert torch.equal(pipe.segmenter.segment(pictures(1)), model.segment(pictures(1)))
    assert (
        main(["fuse", "--model", str(out), "--base", "1", "--region", "hair=2", "--out", str(tmp_path / "f.png")]) == 0
    )
    # the same run from the saved component, and then as the model's own
    other = flags(base, tmp_path / "two", "--segmenter", out / "segmenter", AS_IT_IS)
    fusion.train(fusion.parse_args(other))
    assert_same_weights(tmp_path / "two" / "segmenter", out / "segmenter")
    fusion.train(fusion.parse_args(flags(out, tmp_path / "three")))
    assert_same_weights(tmp_path / "three" / "segmenter", out / "segmenter")


def test_the_trainer_takes_one_from_the_hub(base: Path, folder: Path, hub, tmp_path: Path) -> None:
    hub.add("you/face-parsing", {"README.md": b"empty"})
    hub.add("you/face-parsing", folder, ref="good")
    out = tmp_path / "out"
    args = ["--segmenter", "you/face-parsing", "--region_map", base / "map.json", "--segmenter_revision", "good"]
    fusion.train(fusion.parse_args(flags(base, out, *args, AS_IT_IS)))
    assert json.loads((out / "segmenter" / "config.json").read_text())["source"].startswith("you/face-parsing@")
    assert "The segmenter is you/face-parsing, whose" in (out / "README.md").read_text()


REFUSED: list[tuple[list[str], str]] = [
    (["--segmenter", "{folder}"], "needs --region_map, the table of its classes: a JSON file, or one of ade20k-car"),
    (["--region-map", "face.json"], "--region_map belongs to --segmenter"),
    (["--segmenter-revision", "x", "--segmenter", "no/such"], "needs --region_map"),
    (["--segmenter_revision", "x"], "--segmenter_revision belongs to --segmenter"),
    (["--segmenter", "{folder}", "--region_map", "faces.json"], "there is no region map 'faces.json'"),
    (["--segmenter", "{folder}", "--region_map", "ade20k-car.json"], "the network has no class 'sky'"),
    (
        ["--segmenter", "{folder}", "--region_map", "face.json", "--tree", "avatar"],
        "knows bg, skin, .*, but not the tree's background",
    ),
    (["--segmenter", "{own}", "--region_map", "face.json"], "has regions of its own: leave --region_map out"),
    (["--segmenter", "no/such", "--region_map", "face.json"], "'no/such' is not a local folder, and cannot be loaded"),
    ([], "segmenter"),
]


@pytest.mark.parametrize(("more", "message"), REFUSED, ids=lambda x: str(x)[:50])
def test_flags_that_do_not_go_together(more, message, base, folder, hub, tmp_path, capsys) -> None:
    tiny_segmenter().save_pretrained(tmp_path / "own")
    words = [word.format(folder=folder, own=tmp_path / "own") for word in more]
    assert main(["train", "fusion", *flags(base, tmp_path / "out", *words)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, error), error


def test_the_encoders_trainer_takes_such_a_model(base: Path, model: HubSegmenter, tmp_path: Path) -> None:
    tiny_generator(use_noise=False).save_pretrained(tmp_path / "m" / "generator")
    model.save_pretrained(tmp_path / "m" / "segmenter")
    words = f"--model {tmp_path / 'm'} --output_dir {tmp_path / 'e'} --max_train_steps 1 --train_batch_size 4"
    encoder.train(encoder.parse_args([*words.split(), "--eval_images", "8", "--channels", "8,8"]))
    assert (tmp_path / "e" / "encoder" / "config.json").is_file()


def test_evaluation_with_judges_of_the_regions(base: Path, model: HubSegmenter, tmp_path: Path, capsys) -> None:
    generator = tiny_generator()
    StyleFusionPipeline(generator, tiny_fusion(generator), model).save_pretrained(tmp_path / "m")
    tiny_segmenter().save_pretrained(tmp_path / "judges" / "segmenter")
    words = [
        "evaluate",
        "--model",
        tmp_path / "m",
        "--judges",
        tmp_path / "judges",
        "--out",
        tmp_path / "r",
        "--quick",
    ]
    words += ["--device", "cpu", "--sections", "swaps", "--pairs", "4", "--methods", "stylefusion,pixel-paste"]
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "r" / "report.json").read_text())
