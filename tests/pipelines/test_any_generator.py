"""From a generator's folder to a saved pipeline that fuses, draws, is measured, walks and inverts: any StyleGAN2."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from stylefusion_hf import (
    FusionHierarchy,
    RegionSegmenter,
    RegionTree,
    StyleFusionInterpolationPipeline,
    StyleFusionInversionPipeline,
    StyleFusionPipeline,
)
from stylefusion_hf.cli import main
from stylefusion_hf.core.codes import random_labels, seed_classes
from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.evaluation import measuring
from stylefusion_hf.evaluation.evaluate import Settings, build_subject, evaluate
from stylefusion_hf.evaluation.judges import load_judges
from stylefusion_hf.evaluation.pairs import draw_pairs
from stylefusion_hf.imaging.sheets import contact_sheet
from stylefusion_hf.models.sampling import draw_codes
from stylefusion_hf.training import encoder, fusion
from stylefusion_hf.training._discriminator import plain_samples
from tests.command_line import fails
from tests.tiny import tiny_generator, tiny_pipeline

GENERATORS: dict[str, dict[str, Any]] = {
    "8 pixels": {"resolution": 8, "channels": [8, 8]},
    "not monotone": {"channels": [16, 48, 24]},
    "constant": {"channels": [32, 32, 32]},
    "narrow": {"channels": [1, 2, 1]},
    "32 pixels": {"resolution": 32, "channels": [8] * 4},
    "z is not w": {"z_dim": 5, "w_dim": 12, "mapping_width": 7},
    "grey": {"img_channels": 1},
    "no noise, clamped": {"use_noise": False, "conv_clamp": 256.0},
    "classes": {"label_dim": 3},
    "one class": {"label_dim": 1},
}
TREES = {
    "awkward names": "all*(half, train*(données, rest*(car body, items*(keys, a/b))))",
    "names of columns": "all*(base, source*(global, x*(global_code, regions*(nodes, some of it))))",
    "still life": "all*(bg_a, bg_b)",
    "twelve": "n*(a*(b*(r0, r1), c*(r2, d*(r3, r4))), e*(f*(g*(r5, r6), r7), h*(r8, i*(r9, j*(r10, r11)))))",
}


def comb(leaves: int, left: bool) -> str:
    """A tree that is as deep as can be."""
    text = "r0"
    for i in range(1, leaves):
        text = f"n{i}*({text}, r{i})" if left else f"n{i}*(r{i}, {text})"
    return text


def make_folder(root: Path, tree: str, **config: Any) -> Path:
    """A generator, a segmenter that knows one region more than the tree, and judges: the least a training wants."""
    generator = tiny_generator(**({"resolution": 16, "channels": [8] * 3} | config))
    generator.save_pretrained(root / "model" / "generator")
    for seed, folder in enumerate(("model", "judges")):
        torch.manual_seed(seed)
        segmenter = RegionSegmenter(
            regions=[*RegionTree.of(tree).leaves, "another"],
            channels=[4, 4],
            groups=2,
            img_channels=generator.config.img_channels,
        )
        segmenter.save_pretrained(root / folder / "segmenter")
    return root / "model"


def train(root: Path, tree: str, *more: str, **config: Any) -> StyleFusionPipeline:
    """Two steps of training, saved and loaded."""
    model, resolution = make_folder(root, tree, **config), config.get("resolution", 16)
    flags = (
        "--pool_size 8 --train_batch_size 4 --hidden_width 8 --hidden_layers 1 --max_train_steps 2"
        " --validation_steps 2 --validation_pairs 0"
    )
    features = ["--features", "texture"] if resolution < 16 else []  # there is no map of 16 pixels
    where = ["--model", str(model), "--output_dir", str(root / "out"), "--tree", tree]
    fusion.train(fusion.parse_args([*where, *flags.split(), *features, *more]))
    pipe = StyleFusionPipeline.from_pretrained(root / "out")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def walk(root: Path, pipe: StyleFusionPipeline) -> None:
    """Everything that is done with a model."""
    tree, size = pipe.fusion.tree, pipe.generator.config.resolution
    mode = "L" if pipe.generator.config.img_channels == 1 else "RGB"
    leaves = list(tree.leaves)
    out = pipe(base=1, regions={leaf: i for i, leaf in enumerate(leaves, 2)}, global_code=3, output_masks=True)
    assert out.images[0].size == (size, size)
    assert out.images[0].mode == mode
    assert set(leaves) < set(out.masks)
    again = pipe.from_recipe(json.dumps(out.recipe), output_type="latent")
    assert torch.equal(again.images, out.style_codes)
    same = dict.fromkeys(tree.nodes, torch.randn(2, pipe.generator.style_dim))
    assert torch.equal(pipe.fusion.fuse(same), same[tree.root])

    sheet = contact_sheet(pipe, [1, 2], [3, 4])
    assert sheet.width > len(leaves) * size

    subject = build_subject(pipe, load_judges(str(root / "judges"), "cpu"), batch=4)
    few = replace(Settings().quick_version(), pairs=2)
    report = evaluate(subject, few, ["swaps", "gates"], root / "report")
    assert set(report["swaps"]["leaf"]) >= set(leaves)
    assert set(report["gates"]) == set(tree.fused)

    film = StyleFusionInterpolationPipeline.from_pipe(pipe)(base=[1, 2], frames=3)
    assert len(film.frames) == 3
    inversion = StyleFusionInversionPipeline.from_pipe(pipe)
    inversion.set_progress_bar_config(disable=True)
    found = inversion(out.images[0], num_inference_steps=1)
    assert pipe(base=found.codes, regions={leaves[0]: 1}).images[0].size == (size, size)


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "HEAD_PAIRS", 4)


@pytest.mark.parametrize("name", GENERATORS)
def test_any_generator(name: str, tmp_path: Path) -> None:
    walk(tmp_path, train(tmp_path, "all*(thing, rest)", **GENERATORS[name]))


@pytest.mark.parametrize("tree", TREES.values(), ids=list(TREES))
def test_any_tree(tree: str, tmp_path: Path) -> None:
    walk(tmp_path, train(tmp_path, tree))


@pytest.mark.parametrize("left", [True, False])
def test_trees_of_twenty_leaves_nineteen_levels_deep(left: bool, tmp_path: Path) -> None:
    pipe = train(tmp_path, comb(20, left))
    assert pipe.fusion.tree.depth == 19
    seeds = {leaf: i for i, leaf in enumerate(pipe.fusion.tree.leaves)}
    out = pipe(base=1, regions=seeds, output_type="latent")
    for leaf in ("r0", "r7", "r19"):  # of a comb's ends, too, something arrives
        other = pipe(base=1, regions=seeds | {leaf: 99}, output_type="latent")
        assert not torch.equal(out.images, other.images)
    sheet = contact_sheet(pipe, [1], [2], scale=1)
    assert sheet.width > 23 * 16


# --- Classes ---------------------------------------------------------------------------------------------------------


def test_codes_of_every_class_are_drawn() -> None:
    generator = tiny_generator(label_dim=3)
    draws = [torch.Generator().manual_seed(0) for _ in range(2)]
    labels = random_labels(3, 300, draws[0])
    assert labels is not None
    assert labels.sum(dim=0).min() > 60
    assert torch.equal(labels.sum(dim=1), torch.ones(300))
    codes = draw_codes(generator, 12, draws[1], 0.5, 0.2)
    assert codes.shape == (12, generator.style_dim)
    assert plain_samples(generator, 2, draws[1]).shape == (2, 3, 32, 32)
    plain = [draw_codes(tiny_generator(), 4, torch.Generator().manual_seed(1), 0.5, 0.2) for _ in range(2)]
    assert torch.equal(*plain)


def test_pairs_are_of_the_seeds_own_classes() -> None:
    pipe = tiny_pipeline(segmenter=True, label_dim=3)
    pairs = draw_pairs(pipe, 3, first_seed=10)
    classes = seed_classes([10, 12, 14], 3)
    psi = pipe.generator.config.truncation_psi
    own = pipe(base=[10, 12, 14], class_labels=classes, truncation_psi=psi, output_type="latent").images
    assert torch.allclose(pairs.base, own, atol=1e-5)


def test_an_encoder_of_a_conditional_generator_trains(tmp_path: Path) -> None:
    model = make_folder(tmp_path, "all*(a, b)", label_dim=3)
    flags = "--max_train_steps 1 --train_batch_size 2 --channels 8,8 --eval_images 2 --validation_steps 0"
    out = ["--output_dir", str(tmp_path / "encoder"), "--model", str(model)]
    encoder.main([*out, *flags.split()])
    assert list((tmp_path / "encoder").rglob("diffusion_pytorch_model.safetensors"))


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("conditional")
    tiny_pipeline(segmenter=True, label_dim=3).save_pretrained(folder)
    return str(folder)


def test_commands_take_a_class_or_each_seeds_own(conditional: str, elsewhere: None) -> None:
    model = ["--model", conditional]

    def recipe(*flags: str) -> Recipe:
        assert main(["fuse", "--base", "1", "--region", "hair=7", "--recipe", "made.json", *flags, *model]) == 0
        return Recipe.from_json(Path("made.json").read_text(encoding="utf-8"))

    assert recipe().class_labels is None
    assert recipe("--class-label", "2").class_labels == (2,)
    picture = Path("fused.png").read_bytes()
    assert main(["fuse", "--from-recipe", "made.json", "--out", "again.png", *model]) == 0
    with Image.open("again.png") as again, Image.open("fused.png") as first:
        assert again.tobytes() == first.tobytes()
    assert main(["fuse", "--base", "1", "--region", "hair=7", *model]) == 0
    assert Path("fused.png").read_bytes() != picture
    for classes in ([], ["--class-label", "1"], ["--class-label", "0,2"]):
        assert main(["sheet", "--bases", "1,2", "--sources", "3,4", *classes, *model]) == 0
    assert main(["interpolate", "--base", "1,2", "--frames", "3", "--class-label", "0,2", *model]) == 0
    assert main(["interpolate", "--base", "1,2", "--frames", "3", "--space", "z", "--class-label", "1", *model]) == 0
    found = ["directions", "discover", "--count", "2", "--samples", "50", "--sheet", "d.png", "--class-label", "1"]
    assert main([*found, *model]) == 0
    edit = ["edit", "--base", "1", "--edit", "hair=directions.safetensors:sefa-0=2", "--class-label", "1"]
    assert main([*edit, *model]) == 0
    assert main(["invert", "fused.png", "--optimize", "1", *model]) == 0
    assert main(["fuse", "--base", "inverted/codes.safetensors:fused", *model]) == 0
    assert main(["render", "--random", "2", "--out", "rendered", *model]) == 0
    assert load_file("inverted/codes.safetensors")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("fuse --base 1 --class-label 3", "this model has the classes 0 to 2, got 3"),
        ("fuse --base 1 --class-label cat", "'cat' is not a class"),
        ("sheet --bases 1,2 --sources 3,4 --class-label 0,1,2", "one class, or one per row: got 3 for 2 rows"),
        ("interpolate --base 1,2 --frames 3 --space z", "give one class in class_labels, or choose space='w'"),
        ("fuse --from-recipe x.json --class-label 1", "leave out --class-label"),
    ],
)
def test_classes_that_make_no_sense(
    conditional: str, elsewhere: None, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    assert message in fails(capsys, *command.split(), "--model", conditional)


# --- What does not fit -----------------------------------------------------------------------------------------------


def test_a_segmenter_of_other_channels_is_refused(tmp_path: Path) -> None:
    grey = tiny_generator(img_channels=1)
    sizes = {"conv_sizes": grey.conv_sizes, "rgb_sizes": grey.rgb_sizes, "padded_width": 8, "hidden_width": 4}
    fused = FusionHierarchy(tree="all*(a, b)", **sizes)
    with pytest.raises(ValueError, match="pictures have 1 channels, the segmenter takes 3"):
        StyleFusionPipeline(grey, fused, RegionSegmenter(regions=["a", "b"], channels=[4, 4], groups=2))


def test_maps_of_a_generator_that_has_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pictures of 8 px have no maps of 16 or 32 px: train with --features"):
        train(tmp_path, "all*(a, b)", "--features", "maps", resolution=8, channels=[8, 8])
