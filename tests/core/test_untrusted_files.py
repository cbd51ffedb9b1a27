"""Files from outside: nothing blocks, nothing starts a program, nothing costs more than the file is worth."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylefusion_hf import StyleFusionPipeline, StyleGAN2Generator
from stylefusion_hf.cli import main
from stylefusion_hf.conversion.convert import convert
from stylefusion_hf.core.checks import closest, describe_error, listed, short, shown
from stylefusion_hf.core.code_files import load_codes, pick_code
from stylefusion_hf.core.edits import load_directions
from stylefusion_hf.core.json_files import parse_json, read_json, read_object
from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.core.region_mapping import RegionMap
from stylefusion_hf.core.region_tree import MAX_NODES, RegionTree
from stylefusion_hf.data.folders import ImageFolder
from stylefusion_hf.export.rendering import RecipeFile
from stylefusion_hf.imaging.images import image_size, open_image, open_labels
from stylefusion_hf.imaging.landmarks import read_landmarks
from stylefusion_hf.imaging.png_text import read_png_text
from stylefusion_hf.models.latents import parse_code
from tests.command_line import fails
from tests.hostile import time_limit
from tests.tiny import tiny_pipeline

ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b31m\u202egnp.exe\u2028\r\n\ud800\u200b"


@pytest.fixture(autouse=True)
def _no_waiting():
    """A test that blocks fails."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def fail(*_: Any) -> None:
        raise AssertionError("it blocks")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# ----------------------------------------------------------------------------------------------------
# Pipes, devices, sockets and folders in place of files.

READERS: dict[str, Callable[[Path], Any]] = {
    "a picture": open_image,
    "a picture's size": image_size,
    "a label map": open_labels,
    "a picture's recipe": lambda path: read_png_text(path, "stylefusion", 100),
    "JSON": read_json,
    "a tree": lambda path: RegionTree.from_argument(str(path)),
    "a region map": RegionMap.of,
    "landmarks": lambda path: read_landmarks(path, ["a.png"]),
    "codes": load_codes,
    "a code": lambda path: pick_code(f"{path}"),
    "directions": load_directions,
    "a code of a call": lambda path: parse_code(path),
    "recipes": lambda path: list(RecipeFile(path)),
    "a checkpoint": lambda path: convert(path, path.with_name("out"), progress=False),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in its file system")
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "descriptor"])
@pytest.mark.parametrize("name", READERS)
def test_only_regular_files_are_read(tmp_path, name, kind):
    suffix = ".safetensors" if "code" in name or name == "directions" else ".json" if name == "a tree" else ".png"
    path, ends = tmp_path / f"x{suffix}", ()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        ends = os.pipe()
        path.symlink_to(f"/proc/self/fd/{ends[0]}")
    try:
        with pytest.raises(
            (OSError, ValueError), match="pipe|device|irectory|folder|holds none of|no region map"
        ) as caught:
            READERS[name](path)
    finally:
        for end in ends:
            os.close(end)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in its file system")
@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "generator/config.json",
        "generator/diffusion_pytorch_model.safetensors",
        "generator/diffusion_pytorch_model.safetensors.index.json",
        "fusion/diffusion_pytorch_model.safetensors",
    ],
)
def test_a_pipe_in_a_models_folder_is_an_error(tmp_path, file):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / file
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(OSError, match="is a pipe, not a regular file"):
        StyleFusionPipeline.from_pretrained(tmp_path / "model")
    if file.startswith("generator"):
        with pytest.raises(OSError, match="is a pipe, not a regular file"):
            StyleGAN2Generator.from_pretrained(tmp_path / "model" / "generator")


# ----------------------------------------------------------------------------------------------------
# Pictures.


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(*chunks: bytes, size: tuple[int, int] = (8, 8), pixels: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0))
    pixels = pixels or zlib.compress(bytes(9 * 8))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def tiff_of(tags: int, length: int) -> bytes:
    """A directory whose tags all point to the same bytes."""
    entries = [(256, 4, 1, 64), (257, 4, 1, 64)] + [(40_000 + i, 7, length, 8) for i in range(tags)]
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8 + length) + bytes(length) + struct.pack("<H", len(entries)) + body + bytes(4)


def jpeg_of(*exif: bytes) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    parts = [b"Exif\0\0" + data for data in exif]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", 2 + len(data)) + data for data in parts)
    return b"\xff\xd8" + segments + file.getvalue()[2:]


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"
PICTURES: dict[str, tuple[Callable[[], bytes], str]] = {
    "PostScript": (lambda: POSTSCRIPT, "not a picture that Pillow knows"),
    "PDF": (lambda: b"%PDF-1.4\n", "not a picture that Pillow knows"),
    "canvas of WebP": (
        lambda: b"RIFF\x30\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0" + b"\xff\x3e\0" * 2 + b"ANIM\6\0\0\0" + bytes(6),
        "megapixels",
    ),
    "tags of TIFF": (lambda: tiff_of(10_000, 100_000), "tags claim more bytes"),
    "tags of EXIF": (
        lambda: png_of(chunk(b"eXIf", tiff_of(10_000, 100_000))),
        "tags claim more bytes",
    ),
    "tags of a JPEG's EXIF": (lambda: jpeg_of(tiff_of(4_000, 10_000)), "tags claim more bytes"),
    "segments of EXIF": (lambda: jpeg_of(*[bytes(65_000)] * 40), "bytes of EXIF data"),
    "size of PNG": (lambda: png_of(size=(13_000, 13_000)), "169 megapixels"),
    "nothing": (lambda: b"", "the file is empty"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_that_cost_too_much_are_refused(tmp_path, name):
    make, message = PICTURES[name]
    path = tmp_path / "a.png"
    path.write_bytes(make())
    with time_limit(5), pytest.raises((OSError, ValueError), match=message):
        open_image(path)
    if name != "tags of EXIF":  # label maps are not turned
        with pytest.raises((OSError, ValueError)):
            open_labels(path)


def test_postscript_starts_no_program(tmp_path, monkeypatch):
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", never)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for name in ("images/a.png", "labels/a.png", "x.png", "x.eps"):
        (tmp_path / name).write_bytes(POSTSCRIPT)
    for name in ("x.png", "x.eps"):
        with pytest.raises((OSError, ValueError), match="not a picture|is a EPS file"):
            open_image(tmp_path / name)
    assert main(["fuse", "--from-recipe", str(tmp_path / "x.png"), "--out", str(tmp_path / "o.png")]) == 2
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "a.png")
    with pytest.raises(OSError, match="not a picture"):
        ImageFolder(tmp_path, 16)[0]


def test_pages_are_counted_in_bounded_time(tmp_path):
    file = io.BytesIO()
    Image.new("L", (16, 16)).save(file, "TIFF")
    data = bytearray(file.getvalue())
    first = int.from_bytes(data[4:8], "little")
    following = first + 2 + 12 * int.from_bytes(data[first : first + 2], "little")
    data[following : following + 4] = struct.pack("<I", len(data))
    begin, size = len(data), 6 + 12
    for i in range(30_000):  # each directory with a tag that claims all of the file, and then the next one
        data += struct.pack("<HHHIII", 1, 40_000, 7, begin, 0, begin + size * (i + 1))
    (tmp_path / "a.tif").write_bytes(data + bytes(size))
    with time_limit(5), pytest.raises((OSError, ValueError), match="at least 100 pages"):
        open_image(tmp_path / "a.tif")


def test_labels_are_the_files_values(tmp_path):
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    image = Image.fromarray(values)
    image.putpalette([c for i in range(256) for c in (255 - i, i, 0)])
    image.save(tmp_path / "a.png")
    assert np.array_equal(open_labels(tmp_path / "a.png", (8, 8)), values)
    with pytest.raises(ValueError, match="is 8 x 8 pixels, expected 9 x 8"):
        open_labels(tmp_path / "a.png", (8, 9))
    image.convert("RGB").save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="has mode RGB"):
        open_labels(tmp_path / "a.png")


# ----------------------------------------------------------------------------------------------------
# The recipe in a picture.


def test_text_is_read_without_a_pixel(tmp_path):
    path, text = tmp_path / "a.png", '{"base": 1}'
    packed = b"stylefusion\0\0" + zlib.compress(text.encode())
    for data in (
        chunk(b"tEXt", b"stylefusion\0" + text.encode()),
        chunk(b"zTXt", packed),
        chunk(b"iTXt", b"stylefusion\0\0\0en\0\0" + text.encode()),
        chunk(b"iTXt", b"stylefusion\0\1\0\0\0" + zlib.compress(text.encode())),
        chunk(b"tEXt", b"stylefusion2\0no") + chunk(b"tEXt", b"stylefusion\0" + text.encode()),
    ):
        path.write_bytes(png_of(data, size=(60_000, 60_000), pixels=b"damaged"))
        assert read_png_text(path, "stylefusion", 100) == text
    path.write_bytes(png_of())
    assert read_png_text(path, "stylefusion", 100) is None


BAD_TEXTS = {
    "inflates": (lambda: png_of(chunk(b"zTXt", b"stylefusion\0\0" + zlib.compress(bytes(10**8)))), "is longer than"),
    "long": (lambda: png_of(chunk(b"tEXt", b"stylefusion\0" + b"x" * 10**5)), "is longer than"),
    "many chunks": (lambda: png_of(*[chunk(b"prVt", b"")] * 100_000), "more than 100,000 chunks"),
    "cut off": (lambda: png_of(chunk(b"tEXt", b"stylefusion\0abc"))[:56], "damaged, or cut off"),
    "cut off before": (lambda: png_of()[:20], "cut off"),
    "forged": (lambda: png_of(chunk(b"tEXt", b"stylefusion\0abc")).replace(b"abc", b"abd"), "damaged"),
    "not zlib": (lambda: png_of(chunk(b"zTXt", b"stylefusion\0\0abc")), "cannot be inflated"),
    "not a PNG": (lambda: POSTSCRIPT, "not a PNG file"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_text_is_bounded(tmp_path, name):
    make, message = BAD_TEXTS[name]
    (tmp_path / "a.png").write_bytes(make())
    with time_limit(5), pytest.raises((OSError, ValueError), match=message):
        read_png_text(tmp_path / "a.png", "stylefusion", 1000)


def test_recipes_are_checked_before_a_model_is_loaded(tmp_path, capsys, monkeypatch):
    import stylefusion_hf.cli.fuse as fuse
    import stylefusion_hf.cli.render as render

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fuse, "load_pipeline", never)
    monkeypatch.setattr(render, "load_pipeline", never)
    many = json.dumps({"version": 1, "base": 1, "num_images": 1024})
    for text, message in (
        (many, "this recipe makes 1024 pictures, but --out names one file"),
        ('{"version": 1, "base": 1, "strength": 2}', "strength"),
        ('{"version": 1, "base": 1, "regions": {"' + ESCAPES[:4] + '": 1}}', "recipe is not JSON"),
        (json.dumps({"version": 1, "base": 1, "regions": {ESCAPES: 1}}), "a name is printable text"),
        (json.dumps({"version": 1, "base": 1, "regions": {"x" * 10**6: 1}}), "1 to 100 characters"),
        ("[" * 10**5, "recipe is not JSON"),
    ):
        Path("r.json").write_text(text)
        Path("r.png").write_bytes(png_of(chunk(b"tEXt", b"stylefusion\0" + text.encode("latin-1"))))
        for source in ("r.json", "r.png"):
            said = fails(capsys, "fuse", "--from-recipe", source)
            assert message in said and said.strip().isprintable() and len(said) < 400
        if text != many:
            Path("r.jsonl").write_text('{"version": 1, "base": 1}\n' + text + "\n")
            assert "line 2: " in fails(capsys, "render", "r.jsonl", "--out", "out")


def test_recipes_have_a_size():
    with pytest.raises(ValueError, match="too long: 67,108,865 bytes"):
        Recipe.from_json(" " * (2**26 + 1))
    with time_limit(10), pytest.raises(ValueError, match="too large: at most 2,097,152 values"):
        Recipe.from_json("[" + "[]," * (10 * 2**20))
    for name in ("regions", "nodes", "edits", "strength"):
        with pytest.raises(ValueError, match="at most 1024 names"):
            Recipe.from_dict({"version": 1, "base": 1, name: {f"n{i}": 1 for i in range(1025)}})


# ----------------------------------------------------------------------------------------------------
# JSON.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x is not JSON: Expecting value"),
        (b"\xff", "x is not JSON: it is not UTF-8 text"),
        ("[" * 100_000, "nested deeper than 64 levels"),
        ("[" * 500 + "]" * 500, "nested deeper than 64 levels"),
        ('{"a":' * 70 + "1" + "}" * 70, "nested deeper than 64 levels"),
        ('{"a": NaN}', "a is a number that is not finite"),
        ("[[1, -Infinity]]", "a number is not finite"),
        ("[1e999]", "a number is not finite"),
        ('{"a": 1, "b": {"a": 1, "a": 2}}', "an object has the key 'a' twice"),
        ("[" + "0," * 500_000 + "0]", "too large: at most 500,000 values"),
        ("9" * 5000, "x is not JSON: Exceeds the limit"),
        (" " * (2**24 + 1), "too long: 16,777,217 bytes, at most 16,777,216"),
    ],
)
def test_json_is_bounded(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(text, "x")
    assert str(caught.value).isprintable()
    (tmp_path / "x.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "x.json", "x")


def test_json_is_read(tmp_path):
    value = {"a": [1, 2.5, None, True, "ä😀"], "b": {"a": {}}}
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(value).encode())
    assert read_object(tmp_path / "x.json") == value
    deep: Any = 1
    for _ in range(64):
        deep = [deep]
    assert parse_json(json.dumps(deep), "x") == deep
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ValueError, match="is a JSON object, found list"):
        read_object(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "y.json")


# ----------------------------------------------------------------------------------------------------
# Region trees.


def balanced(count: int) -> dict[str, list[str]]:
    """The branches of a tree with `count` inner nodes."""
    return {f"n{i}": [f"n{2 * i + 1}", f"n{2 * i + 2}"] for i in range(count)}


def test_trees_are_bounded():
    branches = balanced(MAX_NODES // 2 - 1)
    tree = RegionTree("n0", branches, tuple(branches))
    with time_limit(5):
        assert len(tree.nodes) == MAX_NODES - 1
        assert RegionTree.parse(str(tree)) == tree == RegionTree.from_json(tree.to_json())
        assert tree.active == tree.nodes
        assert set(tree.assign(0, {"n1": 1})) == set(tree.nodes)
    large = balanced(20_000)
    texts = {}
    for i in reversed(range(len(large))):
        below = [texts.pop(n, n) for n in large[f"n{i}"]]
        texts[f"n{i}"] = f"n{i}*({below[0]}, {below[1]})"
    ways: tuple[Callable[[], Any], ...] = (
        lambda: RegionTree("n0", large, ()),
        lambda: RegionTree.from_dict({"root": "n0", "children": large, "fused": []}),
        lambda: RegionTree.from_json(json.dumps({"root": "n0", "children": large, "fused": []})),
        lambda: RegionTree.parse(texts["n0"]),
    )
    for way in ways:
        with time_limit(5), pytest.raises(ValueError, match="at most 1,000 nodes"):
            way()


def test_errors_on_trees_are_short():
    many = [f"{i:0100d}" for i in range(400)]
    tree = RegionTree("root", {"root": ["a", "b"]})
    wide = RegionTree("n0", balanced(499), ())
    huge = "x" * 10**6
    bad: tuple[Callable[[], Any], ...] = (
        lambda: RegionTree("root", {"root": many}),
        lambda: RegionTree("root", {"root": ["a", "b"]}, tuple(many)),
        lambda: RegionTree("root", {"root": ["a", "b"], **{name: ["c", "d"] for name in many}}),
        lambda: RegionTree.from_dict(dict.fromkeys(many, 1)),
        lambda: RegionTree.parse(huge),
        lambda: RegionTree.parse(f"all*({huge}, {huge})"),
        lambda: RegionTree.parse("(" * 10**5),
        lambda: RegionTree.parse(ESCAPES),
        lambda: RegionTree.parse(f"all*({ESCAPES}, b)"),
        lambda: RegionTree("root", {"root": ["a", ESCAPES]}),
        lambda: RegionTree("root", {"root": ["a", "b"]}, (i for i in iter(int, 1))),  # type: ignore[arg-type]
        lambda: tree.resolve(ESCAPES),
        lambda: tree.resolve(huge),
        lambda: wide.resolve("n"),
    )
    for call in bad:
        with time_limit(5), pytest.raises(ValueError, match=".") as caught:
            call()
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 1000


# ----------------------------------------------------------------------------------------------------
# What is quoted.


@pytest.mark.parametrize(
    "value", [ESCAPES, [ESCAPES], {ESCAPES: ESCAPES}, ESCAPES.encode("utf-8", "replace"), "x" * 10**7]
)
def test_what_is_quoted_is_short_and_printable(value):
    assert short(value).isprintable()
    assert len(short(value)) <= 80
    assert shown(str(value)).isprintable()
    assert len(shown(str(value))) <= 80
    names = listed([value] * 1000)
    assert names.isprintable() and len(names) < 520 and names.endswith("more")


def test_ordinary_text_is_quoted_as_it_is():
    assert short("hair") == "'hair'"
    assert shown("C:\\temp\\Größe 日本.png") == "C:\\temp\\Größe 日本.png"
    assert listed(["a", "b"]) == "a, b"
    assert shown("x" * 80) == "x" * 80
    assert shown("x" * 81) == "x" * 77 + "..."
    assert shown("a\x1b[1mb\n") == "a\\x1b[1mb\\n"


def test_the_closest_name_is_found_in_bounded_time():
    assert closest("hiar", ["all", "hair"]) == "; did you mean 'hair'?"
    names = ["".join("ab"[(i * j) % 7 % 2] for j in range(40)) for i in range(20_000)]
    with time_limit(10):
        closest("ab" * 20, names)
    assert closest("x" * 10**6, names) == ""


def test_the_last_line_is_printable(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = ESCAPES.replace("\ud800", "").replace("/", "")
    for arguments in (
        ["fuse", "--base", name],
        ["fuse", "--region", f"{name}=1"],
        ["fuse", "--from-recipe", f"{name}.json"],
        ["fuse", "--from-recipe", f"{name}.png"],
        ["fuse", "--out", f"{name}.jpg"],
        [name],
        ["render", f"{name}.jsonl", "--out", "out"],
    ):
        said = fails(capsys, *arguments)
        assert said.strip().isprintable(), said
    assert describe_error(OSError(2, "No such file", name)).isprintable()
    assert len(describe_error(ValueError("x" * 10**6))) <= 1000


# ----------------------------------------------------------------------------------------------------
# Pictures as codes.


def test_arrays_are_pictures():
    levels = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    for value, count in (
        (levels, 1),
        (levels[..., 0], 1),
        (levels[..., :1], 1),
        (np.dstack([levels, levels[..., :1]]), 1),
        (np.stack([levels] * 3), 3),
        (levels / 255, 1),
        ((levels / 255).astype(np.float16), 1),
        (np.stack([levels] * 2) / np.float32(255), 2),
    ):
        found = parse_code(value)
        assert len(found) == count
        assert all(isinstance(image, Image.Image) and image.size == (30, 20) for image in found)
        if value.ndim > 2 and value.shape[-1] == 3:
            assert np.array_equal(np.asarray(found[0]), levels)
    assert parse_code(np.array([1, 2], np.uint8)) == (1, 2)
    assert len(parse_code(np.zeros((2, 8, 4)), "w+")) == 2  # codes of w+, not a picture
    assert parse_code([levels, 3])[1] == 3


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            np.zeros((8, 8, 3), np.int64),
            "base: an array of integers must be a one-dimensional list of seeds or a uint8 picture",
        ),
        (np.zeros((8, 8), np.uint16), "base: an array of integers"),
        (np.zeros((8, 8), bool), "base: an array of integers"),
        (np.zeros((8, 8, 5), np.uint8), r"base: a picture as an array has the shape .* got \(8, 8, 5\) of uint8"),
        (np.zeros((1, 2, 8, 8, 3), np.uint8), "base: a picture as an array"),
        (np.zeros((0, 8, 3), np.uint8), "base: a picture as an array"),
        (
            np.full((8, 8, 3), 255.0),
            "base: a picture of floating-point numbers must have values from 0 to 1, got 255 to 255",
        ),
        (np.full((8, 8, 3), -1.0), "from 0 to 1"),
        (np.full((8, 8, 3), np.nan), "from 0 to 1"),
        (np.zeros((1, 3, 8, 8)), "base: a picture as an array"),
        (np.zeros((8, 8, 8)), "base: a code in z has the shape .* a picture is a PIL image"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), "base: a code in z is a floating-point tensor"),
        ("nosuch.png", "got str 'nosuch.png', which is not a file here"),
        ("7", "for a seed give the number 7"),
        (b"a.png", "base is a seed"),
        ("nosuch.safetensors:a", "base: .*nosuch.safetensors"),
    ],
)
def test_other_arrays_and_texts_are_refused(value, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        parse_code(value, name="base")
    assert str(caught.value).isprintable()


def test_pipelines_take_arrays_and_files(tmp_path):
    from stylefusion_hf import Code, StyleFusionInversionPipeline
    from stylefusion_hf.core.code_files import save_codes
    from tests.tiny import W_DIM, TinyEncoder

    pipe = tiny_pipeline()
    pipe.register_modules(encoder=TinyEncoder())
    levels = np.full((32, 32, 3), 51, np.uint8)
    image = Image.fromarray(levels)
    image.save(tmp_path / "a.png")
    codes = pipe(base=image, output_type="latent").style_codes
    for value in (levels, levels / 255, levels[..., 0], str(tmp_path / "a.png"), tmp_path / "a.png"):
        assert torch.equal(pipe(base=value, output_type="latent").style_codes, codes)
        mixed = pipe(base=1, regions={"hair": value}, output_type="latent").style_codes
        assert torch.equal(mixed, pipe(base=1, regions={"hair": image}, output_type="latent").style_codes)
    save_codes(tmp_path / "c.safetensors", {"a": Code(torch.ones(1, W_DIM), "w")})
    named = pipe(base=f"{tmp_path / 'c.safetensors'}:a", output_type="latent").style_codes
    assert torch.equal(named, pipe(base=Code(torch.ones(1, W_DIM), "w"), output_type="latent").style_codes)
    invert = StyleFusionInversionPipeline.from_pipe(pipe)
    for value in (levels, np.full((64, 64, 3), 0.2), np.stack([levels])):
        assert invert(value, num_inference_steps=0).codes.tensor.shape[0] == 1
