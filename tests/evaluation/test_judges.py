"""The judges: what they are taught agrees with the renderer, they train, resume, load, and say what is missing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from stylefusion_hf import RegionSegmenter
from stylefusion_hf.core.randomness import step_generator
from stylefusion_hf.evaluation import judges as judging
from stylefusion_hf.evaluation.judges import PortraitJudge, load_judges
from stylefusion_hf.imaging.alignment import fit_similarity, warp
from stylefusion_hf.training import _discriminator, judges
from tests.tiny import tiny_generator

pytest.importorskip("python_avatars", reason="avatars need the extra `train`")
pytest.importorskip("resvg_py", reason="avatars need the extra `train`")

from stylefusion_hf.data.avatars import AvatarSpec, avatar_spec, render_avatar
from stylefusion_hf.training import _portrait

UPRIGHT = {"rotation": 0.0, "scale": 1.0, "shift_x": 0.0, "shift_y": 0.0}


def as_images(pictures: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def small_judge(**changes) -> PortraitJudge:
    torch.manual_seed(0)
    config = {
        "attributes": {
            "eyes": {"region": "eyes", "classes": ["open", "closed"]},
            "top": {"region": "hair", "classes": [*"abc"]},
        },
        "colours": {"skin": "skin", "hat": "hair"},
        "resolution": 16,
        "channels": [8, 8, 16, 16],
        "features": 12,
    }
    return PortraitJudge(**(config | changes)).eval()


# --- The network -----------------------------------------------------------------------------------------------------


def test_a_judge_answers_in_the_shapes_that_it_promises():
    judge, images = small_judge(point_names=["a", "b", "c"]), torch.rand(3, 3, 16, 16) * 2 - 1
    found = judge.judge(images)
    assert found.points.shape == (3, 3, 2) and found.features.shape == (3, 12)
    assert {k: tuple(v.shape) for k, v in found.attributes.items()} == {"eyes": (3, 2), "top": (3, 3)}
    assert {k: tuple(v.shape) for k, v in found.colours.items()} == {"skin": (3, 3), "hat": (3, 3)}
    alone = judge(images[1:2])
    assert torch.allclose(alone.points, found.points[1:2], atol=1e-5), "a judgment depends on the batch"
    assert torch.equal(judge(images, return_dict=False)[0], found.points)
    assert small_judge(attributes=None, colours=None).judge(images).attributes == {}


def test_a_judge_takes_pictures_of_other_sizes():
    judge, coarse = small_judge(), torch.rand(2, 3, 4, 4) * 2 - 1
    # the same two smooth pictures at three sizes
    sizes = {n: torch.nn.functional.interpolate(coarse, size=(n, n), mode="bicubic") for n in (16, 64, 24)}
    points = {n: judge.judge(x).points for n, x in sizes.items()}
    apart = (points[16][0] - points[16][1]).abs().max()
    for n in (64, 24):
        assert (points[n] - points[16]).abs().max() < 0.3 * apart


def test_colours_are_read_off_the_picture():
    judge = small_judge()
    plain = torch.tensor([0.5, -1.0, 0.25]).view(1, 3, 1, 1).expand(2, 3, 16, 16)
    assert torch.allclose(judge.judge(plain).colours["hat"], plain[:, :, 0, 0], atol=1e-6)
    assert torch.allclose(judge.judge(torch.rand(2, 3, 16, 16), plain).colours["skin"], plain[:, :, 0, 0], atol=1e-6)


def test_a_saved_judge_says_the_same_under_the_same_names(tmp_path):
    classes = {"region": "hair", "classes": ["a", "b"]}
    # config.json sorts names; these come in another order
    judge = small_judge(
        attributes={"top": classes, "eyes": classes, "mouth": classes}, colours={"skin": "", "hat": ""}
    )
    judge.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    said, again = judge.judge(images), PortraitJudge.from_pretrained(tmp_path).eval().judge(images)
    assert torch.equal(said.points, again.points) and torch.equal(said.features, again.features)
    for answers, repeated in ((said.attributes, again.attributes), (said.colours, again.colours)):
        assert (
            all(torch.equal(answers[name], repeated[name]) for name in answers) and len(answers) == len(repeated) > 1
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 20}, "must be a multiple of 8, at least 16; got 20"),
        ({"channels": [8, 8, 12, 16]}, r"multiples of groups=8, got \[8, 8, 12, 16\]"),
        ({"point_names": []}, "at least one point"),
        ({"attributes": {"eyes": {"region": "eyes", "classes": ["open"]}}}, "'eyes' has 1"),
    ],
)
def test_a_judge_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        small_judge(**changes)


def test_a_judge_refuses_other_images():
    with pytest.raises(ValueError, match=r"expected images \(batch, 3, H, W\), got \(2, 1, 16, 16\)"):
        small_judge().judge(torch.zeros(2, 1, 16, 16))


# --- The labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_points_say_where_the_renderer_puts_the_head(index):
    spec = avatar_spec(index, seed=1)
    posed = replace(spec, background_to=spec.background_from)  # the background does not move with the pose
    upright = replace(posed, **UPRIGHT)
    target, source = (as_images([render_avatar(s, 128)[0]]) for s in (posed, upright))
    theta = fit_similarity(*(torch.tensor([_portrait.avatar_points(s)]) for s in (posed, upright)), torch.ones(1, 2))
    moved = (warp(source, theta) - target).abs().mean()
    assert moved < 0.15 * (source - target).abs().mean()


def test_points_of_an_upright_avatar_are_the_canvas_points():
    crown, chin = _portrait.avatar_points(replace(avatar_spec(0), **UPRIGHT))
    assert crown == pytest.approx([0, 2 * (51 - 125) / 216]) and chin == pytest.approx([0, 2 * (171 - 125) / 216])


def with_top(top: str, **changes) -> AvatarSpec:
    spec = replace(avatar_spec(5), clothes="hoodie", hair_colour="#ff0000", hat_colour="#0000ff")
    return replace(spec, top=top, **changes)


def test_the_colour_of_a_top_is_that_of_the_hat_or_of_the_hair():
    place = list(_portrait.COLORS).index("top_colour")
    for top, colour in (("hair/bob", [1, -1, -1]), ("hat/turban", [-1, -1, 1])):
        colours, shown = _portrait.avatar_colors(with_top(top))
        assert colours[place] == colour and shown == [True] * 4
        image, labels = render_avatar(with_top(top), 64)
        seen = as_images([image])[0][:, torch.from_numpy(labels) == 5].median(dim=1).values
        assert (seen - torch.tensor(colours[place])).abs().max() < 0.6, "another color than what the region shows"
    assert _portrait.avatar_colors(with_top("hat/chef_cap"))[1] == [True, True, False, True]


@pytest.mark.parametrize("clothes", _portrait.CLASSES["clothes"])
def test_clothes_whose_colour_is_not_seen_are_not_asked_for_it(clothes):
    upright = replace(
        with_top("hair/caesar"), **UPRIGHT, clothes=clothes, clothes_colour="#20d040", facial_hair="none"
    )
    image, labels = render_avatar(upright, 64)
    seen = (np.abs(image.astype(int) - [0x20, 0xD0, 0x40]).max(axis=2) <= 6)[labels == 2].mean()
    assert _portrait.avatar_colors(upright)[1][1] == (seen > 0.2)


def test_a_data_set_tells_each_avatars_parts():
    specs = [avatar_spec(i, seed=1) for i in range(3)]
    data = _portrait.PortraitDataset(np.zeros((3, 16, 16, 3), np.uint8), specs)
    for i, spec in enumerate(specs):
        item = data[i]
        parts = [classes[k] for classes, k in zip(_portrait.CLASSES.values(), item["classes"].tolist(), strict=True)]
        assert parts == [getattr(spec, name) for name in _portrait.CLASSES]
        assert torch.equal(item["points"], torch.tensor(_portrait.avatar_points(spec)))


def test_every_part_of_a_thousand_avatars_is_a_known_class():
    specs = [avatar_spec(i, seed=1) for i in range(1000)]
    assert all(getattr(s, name) in classes for s in specs for name, classes in _portrait.CLASSES.items())


def test_resampling_takes_the_points_along():
    n, size = 48, 64
    images, points = torch.full((n, 3, size, size), -1.0), torch.zeros(n, 2, 2)
    for i in range(n):
        for k, (x, y) in enumerate([(24 + i % 5, 20), (30, 45 - i % 7)]):
            images[i, k, y - 1 : y + 2, x - 1 : x + 2] = 1
            points[i, k] = (torch.tensor([x, y]) * 2 + 1) / size - 1
    moved, places = _portrait.resample(images, points, step_generator(0, 0))
    weight = (moved[:, :2] + 1).clamp_min(0).square()
    weight = weight / weight.sum(dim=(2, 3), keepdim=True)
    axis = (torch.arange(size) * 2 + 1) / size - 1
    seen = torch.stack([(weight * axis).sum(dim=(2, 3)), (weight * axis[:, None]).sum(dim=(2, 3))], dim=-1)
    assert (seen - places).norm(dim=2).max() * size / 2 < 0.3  # pixels
    distance = (places - points).norm(dim=2).max(dim=1).values * size / 2
    assert distance.max() > 2 and (distance == 0).float().mean() > 0.1


# --- The figures -----------------------------------------------------------------------------------------------------


def test_rotation_errors_are_degrees():
    line = torch.tensor([[[0.0, -1.0], [0.0, 1.0]]])
    for degrees in (0.0, 10.0, -30.0, 179.0):
        angle = torch.tensor(degrees).deg2rad()
        turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
        error = _portrait.rotation_error(line @ turn.T + 0.3, line)
        assert error.item() == pytest.approx(abs(degrees), abs=1e-3)


class KnowsAll:
    """A judge that has the answers, but for points 0.02 too far right, eyes never right and colors one level off."""

    device = torch.device("cpu")

    def __init__(self, data):
        self.data, self.at = data, 0

    def judge(self, images, painted):
        items = [self.data[self.at + i] for i in range(len(images))]
        self.at += len(images)
        a = {name: torch.stack([item[name] for item in items]) for name in items[0]}
        logits = {}
        for i, (name, classes) in enumerate(_portrait.CLASSES.items()):
            answer = (a["classes"][:, i] + (name == "eyes")) % len(classes)
            logits[name] = torch.nn.functional.one_hot(answer, len(classes)).float()
        colours = torch.where(a["shown"][..., None], a["colors"] + 1 / 127.5, 99.0)  # what is not shown counts not
        points = a["points"] + torch.tensor([0.02, 0.0])
        return judging.JudgeOutput(points, logits, dict(zip(_portrait.COLORS, colours.unbind(1), strict=True)), points)


def test_figures_are_in_the_units_that_they_name():
    specs = [with_top("hat/chef_cap"), *(avatar_spec(i, seed=1) for i in range(69))]  # more than one batch
    data = _portrait.PortraitDataset(np.zeros((70, 16, 16, 3), np.uint8), specs)
    figures = _portrait.judge_figures(KnowsAll(data), data)
    assert figures["points, mean distance in picture widths"] == pytest.approx(0.01, abs=1e-5)
    assert figures["rotation, median error in degrees"] == pytest.approx(0, abs=0.01)
    assert figures["accuracy"] == {name: float(name != "eyes") for name in _portrait.CLASSES}
    assert figures["colors, mean error of 255"] == pytest.approx(dict.fromkeys(_portrait.COLORS, 1.0), abs=1e-3)


def test_auc_is_the_share_of_pairs_in_the_right_order():
    class Brightness(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, x):
            return type("Output", (), {"logits": x.mean(dim=(1, 2, 3))[:, None]})

    real, fake = (torch.tensor(v).view(-1, 1, 1, 1).expand(-1, 3, 4, 4) for v in ([1.0, 3.0], [0.0, 2.0]))
    figures = _discriminator.separation(Brightness(), real, fake)
    assert figures["AUC"] == pytest.approx(0.75) and figures["mean logit, real"] == pytest.approx(2.0)
    assert figures["5th percentile, generated"] == pytest.approx(0.1)


def test_plain_samples_are_fresh_and_truncated():
    g = tiny_generator(use_noise=True)
    one, again, other = (_discriminator.plain_samples(g, 5, step_generator(0, step)) for step in (0, 0, 1))
    assert one.shape == (5, 3, 32, 32) and torch.equal(one, again) and not torch.equal(one, other)
    g, seen = tiny_generator(use_noise=False), []
    g.to_style = lambda w: seen.append(w) or type(g).to_style(g, w)
    _discriminator.plain_samples(g, 200, step_generator(0, 0))
    w = g.mapping(torch.randn(200, g.config.z_dim, generator=step_generator(0, 0)))
    psi = ((seen[0] - g.w_avg).norm(dim=1) / (w - g.w_avg).norm(dim=1)).detach()
    assert 0.5 <= psi.min() < 0.55 and 0.95 < psi.max() <= 1.0


# --- The trainer -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("model")
    tiny_generator().save_pretrained(root / "generator")
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("avatars")


def flags(out: Path, cache: Path, steps: int, *more: str) -> list[str]:
    text = (
        f"--output_dir {out} --cache_dir {cache} --avatars 12 --resolution 32 --train_batch_size 4 --logging_steps 1"
    )
    text += f" --max_train_steps {steps} --eval_avatars 3 --segmenter_channels 8,8 --discriminator_channels 8,8,8,8"
    return [*text.split(), "--lr_scheduler", "constant", "--r1_interval", "2", *more]


def test_all_judges_train_resume_to_the_bit_and_load(model, cache, tmp_path, capsys):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    judges.main(flags(whole, cache, 4, "--model", str(model), "--gradient_accumulation_steps", "2"))
    assert f"wrote {whole}" in capsys.readouterr().out
    for steps in (2, 4):
        torch.randn(steps)  # whatever happens between two runs
        more = ("--model", str(model), "--gradient_accumulation_steps", "2", "--resume_from_checkpoint", "latest")
        judges.train(judges.parse_args(flags(halves, cache, steps, *more)))
    for name in judges.JUDGES:
        one, other = (load_file(root / name / "diffusion_pytorch_model.safetensors") for root in (whole, halves))
        assert one.keys() == other.keys() and [k for k in one if not torch.equal(one[k], other[k])] == []
        assert {v.dtype for v in one.values()} == {torch.float16}
        assert "_name_or_path" not in json.loads((whole / name / "config.json").read_text())
    notes = json.loads((whole / "judges.json").read_text())
    assert list(notes) == list(judges.JUDGES)
    assert all("train judges" in note["command"] and note["steps"] == 4 for note in notes.values())
    assert set(notes["portrait"]["figures"]) == {"held-out", "held-out, degraded"}
    assert "AUC" in notes["discriminator"]["figures"]["held-out avatars against fresh samples"]
    found = load_judges(whole)
    assert found.folder == whole
    for name in judges.JUDGES:
        judge = getattr(found, name)
        assert judge.dtype == torch.float32 and not judge.training
        assert not any(p.requires_grad for p in judge.parameters())
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    seen, alone = found.discriminator(images).logits, found.discriminator(images[:1]).logits
    assert torch.allclose(seen[:1], alone, atol=1e-5), "a logit depends on the batch"
    assert found.portrait.config.domain == "avatars" and set(found.portrait.judge(images).attributes) == set(
        _portrait.CLASSES
    )


def test_the_portrait_judge_learns(tmp_path):
    specs = [avatar_spec(i, seed=1) for i in range(12)]
    data = _portrait.PortraitDataset(np.stack([render_avatar(s, 16)[0] for s in specs]), specs)
    figures = []
    for name, steps in (("untrained", 1), ("trained", 150)):
        more = ("--only", "portrait", "--train_batch_size", "12", "--degrade", "0", "--resolution", "16")
        judges.train(judges.parse_args(flags(tmp_path / name, tmp_path / "cache", steps, *more)))
        figures.append(_portrait.judge_figures(load_portrait(tmp_path / name), data))
    before, after = figures
    place, colours = "points, mean distance in picture widths", "colors, mean error of 255"
    assert after[place] < 0.4 * before[place]
    right = [float(np.mean(list(f["accuracy"].values()))) for f in figures]
    assert right[1] > right[0] + 0.3
    assert after[colours]["clothes_colour"] < 0.8 * before[colours]["clothes_colour"]


def load_portrait(root: Path) -> PortraitJudge:
    return PortraitJudge.from_pretrained(root, subfolder="portrait", torch_dtype=torch.float32).eval()


def test_other_domains_get_a_segmenter_and_a_note(tmp_path, capsys):
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for i in range(3):
        disc = np.arange(1024).reshape(32, 32) % 7 < i + 2
        Image.fromarray((disc[..., None] * [90, 160, 250]).astype(np.uint8)).save(tmp_path / f"data/images/{i}.png")
        Image.fromarray(disc.astype(np.uint8)).save(tmp_path / f"data/labels/{i}.png")
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"regions": ["rest", "disc"]}))
    text = f"--output_dir {tmp_path / 'out'} --train_data_dir {tmp_path / 'data'} --resolution 32 --max_train_steps 1"
    judges.main([*text.split(), "--segmenter_channels", "8,8"])
    out = capsys.readouterr().out
    assert (
        "no portrait: it learns from the avatars' labels" in out and "no discriminator: it needs the generator" in out
    )
    found = load_judges(tmp_path / "out")
    assert list(found.segmenter.config.regions) == ["rest", "disc"]
    assert found.portrait is None and found.discriminator is None
    with pytest.raises(ValueError, match="no portrait can be trained: it learns from the avatars' labels"):
        judges.train(judges.parse_args([*text.split(), "--only", "portrait"]))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--only", "segmenter,jury"), "--only segmenter,jury: there is no judge 'jury'; choose some of segmenter"),
        (("--only", "discriminator"), r"no discriminator can be trained: it needs the generator .*\(--model\)"),
        (("--only", "portrait", "--max_train_steps", "0"), "--max_train_steps must be at least 1, got 0"),
        (("--only", "portrait", "--avatars", "0"), "no portrait can be trained: .*--avatars"),
        (("--eval_avatars", "-1"), "--eval_avatars must be at least 0, got -1"),
        (("--r1_interval", "0"), "--r1_interval must be at least 1, got 0"),
    ],
)
def test_the_trainer_refuses(cache, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        judges.train(judges.parse_args(flags(tmp_path, cache, 1, *more)))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--resolution", "16"), "--resolution is 16, but the generator in --model makes 32 px images"),
        (("--discriminator_channels", "8,8"), "--discriminator_channels 8,8: "),
        (("--discriminator_channels", "8,x"), "--discriminator_channels 8,x: "),
    ],
)
def test_the_discriminator_refuses(model, cache, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        judges.train(
            judges.parse_args(flags(tmp_path, cache, 1, "--only", "discriminator", "--model", str(model), *more))
        )


def test_commands_repeat_what_was_given_but_no_token():
    given = ["--output_dir", "a b", "--avatars", "9", "--hub_token", "secret", "--model", "m"]
    assert judges.parse_args(given).command == "stylefusion train judges --model m --output_dir 'a b' --avatars 9"


# --- Loading ---------------------------------------------------------------------------------------------------------


def test_missing_judges_are_one_line_that_says_how_to_make_them(tmp_path, monkeypatch):
    with pytest.raises(
        FileNotFoundError, match=r"nowhere holds no judges .*stylefusion train judges --model MODEL"
    ) as e:
        load_judges(tmp_path / "nowhere")
    assert "\n" not in str(e.value)
    monkeypatch.setattr(judging, "SHIPPED", tmp_path)
    with pytest.raises(FileNotFoundError, match="wheels do not carry them"):
        load_judges()


def test_a_damaged_judge_is_an_error_not_a_missing_one(tmp_path):
    RegionSegmenter(regions=["a", "b"], channels=[8]).save_pretrained(tmp_path / "segmenter")
    small_judge().save_pretrained(tmp_path / "portrait")
    assert load_judges(tmp_path).portrait.config.point_names == ["crown", "chin"]
    (tmp_path / "portrait" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(OSError, match="PortraitJudge cannot be loaded from .*portrait"):
        load_judges(tmp_path)


@pytest.mark.skipif(not (judging.SHIPPED / "portrait").is_dir(), reason="this checkout has no judges")
def test_the_judges_of_this_checkout_know_avatars_they_never_saw():
    found = load_judges()
    specs = [avatar_spec(2_000_000 + i, seed=1) for i in range(48)]
    size = found.portrait.config.resolution
    drawn = [render_avatar(spec, size) for spec in specs]
    figures = _portrait.judge_figures(
        found.portrait, _portrait.PortraitDataset(np.stack([d[0] for d in drawn]), specs)
    )
    assert figures["points, mean distance in picture widths"] < 0.01
    assert figures["rotation, median error in degrees"] < 2
    assert min(figures["accuracy"][name] for name in ("top", "clothes", "mouth")) > 0.8
    agreed = found.segmenter.segment(as_images([d[0] for d in drawn])).argmax(1).numpy() == np.stack(
        [d[1] for d in drawn]
    )
    assert agreed.mean() > 0.95


def test_the_evaluation_segmenters_field_grows_with_the_picture():
    levels = {size: len(judges.segmenter_channels(size).split(",")) for size in (32, 64, 128, 256)}
    assert levels == {32: 5, 64: 5, 128: 6, 256: 7}
    # Two 3 x 3 convolutions a level, each twice as coarse as the one before: from 64 pixels on, the whole picture.
    assert all(sum(4 * 2**k for k in range(n)) > size for size, n in levels.items())
