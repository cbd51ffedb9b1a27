"""Frames to files, and `stylefusion interpolate`: what is written, how much is held, one line for every bad input."""

import gc
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from stylefusion_hf import StyleFusionInterpolationPipeline
from stylefusion_hf.cli import main
from stylefusion_hf.core.installing import install_command
from stylefusion_hf.imaging.animation import write_animation
from tests.command_line import fails
from tests.tiny import tiny_pipeline

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


def pictures(count: int, size: tuple[int, int] = (34, 21)) -> list[Image.Image]:
    """Noise, which no codec finds easy; every one different."""
    random = np.random.RandomState(0)
    return [Image.fromarray(random.randint(0, 256, (*size[::-1], 3), dtype=np.uint8)) for _ in range(count)]


def read(path: str) -> tuple[list[np.ndarray], list[int]]:
    """The frames (H, W, 3) of a GIF or WebP, and how long each is shown, in ms."""
    with Image.open(path) as film:
        frames, times = [], []
        for frame in ImageSequence.Iterator(film):
            frame.load()
            frames.append(np.asarray(frame.convert("RGB")).astype(int))
            times.append(film.info["duration"])
        assert film.info["loop"] == 0  # for ever
    return frames, times


# ----------------------------------------------------------------------------------------------------
# The formats.


def test_webp_is_lossless() -> None:
    given = pictures(7)
    assert write_animation("a.webp", iter(given), fps=30) == 7
    frames, times = read("a.webp")
    assert len(frames) == 7
    assert all(np.array_equal(frame, np.asarray(picture)) for frame, picture in zip(frames, given, strict=True))
    assert sum(times) == 233  # 7 / 30 s
    assert set(times) == {33, 34}


def test_large_frames_are_lossless_too_and_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.RandomState(0).randint(0, 256, (264, 264, 3), dtype=np.uint8)
    frames = [Image.fromarray(noise), Image.fromarray(noise[::-1].copy())]
    efforts: list[Any] = []
    save = Image.Image.save

    def watched(image: Any, place: Any, *args: Any, **options: Any) -> None:
        efforts.append((options.get("method"), options.get("compress_level")))
        save(image, place, *args, **options)

    monkeypatch.setattr(Image.Image, "save", watched)
    write_animation("large.webp", frames, fps=10)
    write_animation("large", frames, fps=10)
    write_animation("small.webp", [frame.crop((0, 0, 8, 8)) for frame in frames], fps=10)
    assert efforts == [(0, None)] * 2 + [(None, 1)] * 2 + [(None, None)] * 2
    with Image.open("large.webp") as film:
        for k, frame in enumerate(frames):
            film.seek(k)
            assert np.array_equal(np.asarray(film.convert("RGB")), np.asarray(frame))


def test_gif_has_a_frames_own_colours() -> None:
    given = [picture.quantize(200).convert("RGB") for picture in pictures(7)]  # 200 colors fit, each with its own
    assert write_animation("a.gif", iter(given), fps=30) == 7
    frames, times = read("a.gif")
    assert len(frames) == 7
    assert all(np.array_equal(frame, np.asarray(picture)) for frame, picture in zip(frames, given, strict=True))
    assert sum(times) == 230
    assert set(times) == {30, 40}


@pytest.mark.parametrize("colours", [1, 2, 3, 5, 256])
def test_gif_colour_tables_of_every_size(colours: int) -> None:
    shades = np.resize(np.arange(colours, dtype=np.uint8), (16, 16, 1)).repeat(3, axis=2)
    write_animation("a.gif", [Image.fromarray(shades)] * 2)
    frames, _ = read("a.gif")
    assert [np.array_equal(frame, shades) for frame in frames] == [True, True]


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_a_film_of_one_frame(suffix: str) -> None:
    given = pictures(1, (1, 1))
    assert write_animation(f"a{suffix}", given) == 1
    with Image.open(f"a{suffix}") as film:
        assert film.convert("RGB").getpixel((0, 0)) == given[0].getpixel((0, 0))


def test_png_frames_in_a_folder_and_by_a_pattern() -> None:
    given = pictures(12)
    for path, names in (
        ("new/frames", [f"new/frames/{i:04d}.png" for i in range(12)]),
        ("some/a-%03d-b.png", [f"some/a-{i:03d}-b.png" for i in range(12)]),
        ("%d.PNG", [f"{i}.PNG" for i in range(12)]),
    ):
        assert write_animation(path, iter(given)) == 12
        for name, picture in zip(names, given, strict=True):
            with Image.open(name) as image:
                assert np.array_equal(np.asarray(image), np.asarray(picture))
    assert len(list(Path("new/frames").iterdir())) == 12
    Path("empty").mkdir()
    os.chdir("empty")  # the fixture goes back
    write_animation(".", given[:2])
    assert sorted(path.name for path in Path().iterdir()) == ["0000.png", "0001.png"]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "frames"])
def test_frames_of_two_sizes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"frame 2 has \(3, 4\) pixels, those before it \(34, 21\)"):
        write_animation(name, [*pictures(2), *pictures(1, (3, 4))])
    assert not list(Path().iterdir())


@pytest.mark.parametrize("size", [(34, 21), (64, 64)])
def test_mp4(size: tuple[int, int]) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed (extra `video`)")
    shade = [Image.new("RGB", size, (20 * i, 100, 250 - 20 * i)) for i in range(12)]
    assert write_animation("a.mp4", iter(shade), fps=24) == 12
    frames, seconds = ffmpeg.count_frames_and_secs("a.mp4")
    assert (frames, seconds) == (12, pytest.approx(0.5, abs=0.05))
    reader = ffmpeg.read_frames("a.mp4")
    even = tuple(side + side % 2 for side in size)
    assert tuple(next(reader)["size"]) == even
    for i, data in enumerate(reader):
        pixels = np.frombuffer(data, np.uint8).reshape(*even[::-1], 3).astype(int)
        assert abs(pixels - (20 * i, 100, 250 - 20 * i)).mean() < 6  # lossy


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "frames", "a.mp4"])
def test_frames_are_not_held(name: str) -> None:
    if name.endswith(".mp4"):
        pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed (extra `video`)")
    alive = []

    def frames() -> Any:
        for i in range(40):
            if i in (9, 39):
                gc.collect()
                alive.append(sum(issubclass(type(thing), Image.Image) for thing in gc.get_objects()))
            yield Image.new("RGB", (16, 16), (i, i, i))

    assert write_animation(name, frames()) == 40
    assert len(set(alive)) == 1


# ----------------------------------------------------------------------------------------------------
# Whole or not at all.


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "frames", "p/%d.png", "a.mp4"])
def test_nothing_is_left_of_a_film_that_fails(name: str) -> None:
    if name.endswith(".mp4"):
        pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed (extra `video`)")

    def frames() -> Any:
        yield from pictures(3)
        raise RuntimeError("the lights went out")

    if "." in name and "%" not in name:
        Path(name).write_bytes(b"what was there")
    with pytest.raises(RuntimeError, match="the lights went out"):
        write_animation(name, frames())
    with pytest.raises(ValueError, match="no frames"):
        write_animation(name, [])
    left = [path for path in Path().rglob("*") if path.is_file()]
    assert left == [Path(name)] * (name.startswith("a."))
    assert all(path.read_bytes() == b"what was there" for path in left)


def test_a_file_is_replaced_with_the_usual_rights() -> None:
    Path("a.gif").write_bytes(b"old")
    usual = Path("a.gif").stat().st_mode
    os.remove("a.gif")
    write_animation("a.gif", pictures(2))
    write_animation("a.gif", pictures(3))
    assert len(read("a.gif")[0]) == 3
    assert Path("a.gif").stat().st_mode == usual
    assert [path.name for path in Path().iterdir()] == ["a.gif"]


# ----------------------------------------------------------------------------------------------------
# stylefusion interpolate


def test_the_command_writes_the_pipelines_frames(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = "--base 1 --region hair=7,8,9 --region eyes=3 --node face=5 --global 6,2,4 --strength hair=0.5 --psi 0.6"
    more = "--noise-mode none --frames 8 --loop --space z --easing smooth --batch-size 3"
    pipe = StyleFusionInterpolationPipeline.from_pipe(tiny_pipeline())
    expected = pipe(
        base=1,
        regions={"hair": [7, 8, 9], "eyes": 3},
        nodes={"face": 5},
        global_code=[6, 2, 4],
        strength={"hair": 0.5},
        truncation_psi=0.6,
        noise_mode="none",
        frames=8,
        loop=True,
        space="z",
        easing="smooth",
        batch_size=3,
    ).frames
    run = ["interpolate", "--model", model, *argv.split(), *more.split()]
    assert main([*run, "--out", "new/a.webp", "--fps", "10"]) == 0
    assert "8 frames of 32 x 32 pixels, 0.8 s" in capsys.readouterr().out
    frames, times = read("new/a.webp")
    assert times == [100] * 8
    assert main([*run, "--out", "frames"]) == 0
    said = capsys.readouterr().out
    assert os.path.abspath("frames") in said
    assert " s)" not in said
    for i, picture in enumerate(expected):
        assert np.array_equal(frames[i], np.asarray(picture))
        with Image.open(f"frames/{i:04d}.png") as image:
            assert np.array_equal(np.asarray(image), np.asarray(picture))


def test_the_command_has_defaults(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["interpolate", "--model", model, "--region", "hair=7,8", "--steps", "3"]) == 0
    drawn = capsys.readouterr().out.splitlines()[0].removeprefix("drawn: --base ")
    again = ["--base", drawn, "--region", "hair=7,8", "--steps", "3", "--out", "again.webp"]
    assert main(["interpolate", "--model", model, *again]) == 0
    assert Path("walk.webp").read_bytes() == Path("again.webp").read_bytes()
    frames, times = read("walk.webp")
    assert (len(frames), times) == (4, [40] * 4)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--base", "1"], "nothing moves"),
        (["--base", "1", "--loop"], "nothing moves"),
        (["--base", "1,2", "--region", "hair=7,8,9"], "base has length 2 and regions['hair'] length 3"),
        (["--base", "1,2", "--frames", "1"], "frames is 1, fewer than the 2 keyframes"),
        (["--base", "1,2", "--frames", "9", "--steps", "2"], "give one of them"),
        (["--base", "1,2", "--fps", "0"], "fps is 0, and a film has 0.1 to 120 frames a second"),
        (["--base", "1,2", "--fps", "60", "--out", "a.gif"], "a GIF has 0.1 to 50 frames a second"),
        (["--base", "1,2", "--fps", "60", "--out", "new"], "--fps does not apply to PNG frames"),
        (["--base", "1,2", "--out", "a.avi"], "a.avi: expected a file name that ends in .gif, .webp, .mp4"),
        (["--base", "1,2", "--out", "a.png"], "such as a-%03d.png"),
        (["--base", "1,2", "--out", "full"], "full is a folder with files in it"),
        (["--base", "1,2", "--out", "full/%d.png"], "0.png exists already"),
        (["--base", "1,2", "--out", "full/0.png/a.gif"], "full/0.png"),
        (["--base", "1,2", "--out", "film.gif"], "film.gif is a folder: name a file"),
        (["--base", "1,x"], "--base 1,x: 'x' is neither a seed"),
        (["--base", "1,"], "'' is neither a seed"),
        (["--region", "hare=1,2"], "hair"),
        (["--region", "hair=1,full/0.png"], "no encoder"),
        (["--base", "1,2", "--space", "w+"], "invalid choice: 'w+'"),
        (["--base", "1,2", "--noise-mode", "random"], "invalid choice: 'random'"),
        (["--base", "1,2", "--frames", "0"], "'0' is not an integer from 1"),
    ],
)
def test_the_command_refuses(model: str, capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    for folder in ("full", "film.gif"):
        Path(folder).mkdir()
    Image.new("RGB", (8, 8)).save("full/0.png")
    assert message in fails(capsys, "interpolate", "--model", model, *argv)
    assert sorted(path.name for path in Path().iterdir()) == ["film.gif", "full"]


def test_mp4_without_ffmpeg_names_the_extra(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # as if it were not installed
    said = fails(capsys, "interpolate", "--model", model, "--base", "1,2", "--out", "a.mp4")
    assert install_command("video") in said
