"""What of a folder is published: an allow-list, without links out of it, local paths and foreign metadata."""

import json
import os
import re
import shutil
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stylefusion_hf import Direction, StyleFusionPipeline
from stylefusion_hf.cli import main
from stylefusion_hf.core.edits import load_directions, save_directions
from stylefusion_hf.core.files import RECIPE_KEY
from stylefusion_hf.hub.cleaning import CleanedFiles, base_name, clean_json, clean_png, clean_text
from stylefusion_hf.hub.collecting import Collection, collect
from stylefusion_hf.hub.publishing import publish, publish_models
from tests.command_line import fails
from tests.hub_server import HubServer, read_folder
from tests.tiny import tiny_generator, tiny_pipeline

REPO = "me/avatars"
WEIGHTS = "diffusion_pytorch_model.safetensors"
PARTS = {"generator": None, "fusion": None, "segmenter": None}
PLAIN = {"model_index.json", *(f"{name}/{file}" for name in PARTS for file in ("config.json", WEIGHTS))}
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's LFS uploads


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny_pipeline(segmenter=True).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "pipeline")


def bytes_of(found: Collection) -> dict[str, bytes]:
    contents = found.files.items()
    return {path: it if isinstance(it, bytes) else it.read_bytes() for path, it in contents}


# ----------------------------------------------------------------------------------------------------
# The allow-list.

FOREIGN = [
    *("token.json", "credentials.json", ".env", ".netrc", ".gitattributes", "optimizer.safetensors", "scaler.pt"),
    *("optimizer.bin", "random_states_0.pkl", "scheduler.bin", "notes.md", "notes.txt", "screenshot.png", "id_rsa"),
    *("events.out.tfevents.1", "train.py", "pipeline.py", "report.md", "iou.json", "model.onnx", "photo.jpg"),
    *("generator/wandb/run-1/config.json", "generator/.git/config", "generator/__pycache__/x.pyc", "generator/.env"),
    *("generator/token.json", "generator/optimizer.safetensors", "generator/config.json.bak", "generator/a.png"),
    *("generator/diffusion_pytorch_model.bin", "generator/model.ckpt", "generator/stylefusion_hf.py", "fusion/x.json"),
    *(f"checkpoint-5/{WEIGHTS}", f"discriminator/{WEIGHTS}", "logs/a", "samples/1.png", ".git/config", ".cache/x"),
    *("wandb/latest/config.json", "__pycache__/a.pyc", "generator/generator/config.json", "fusion/README.md"),
]


def test_nothing_else_is_published(folder: Path, hub: HubServer) -> None:
    for name in FOREIGN:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text('{"token": "private"}')
    found = collect(folder, PARTS)
    assert set(found.files) == PLAIN
    assert all(any(name.startswith(left) for left in found.left_out) for name in FOREIGN)
    publish(folder, REPO)
    files = hub.files(REPO)
    ours = {"README.md", "sheet.png", "pipeline.py", *(f"{name}/stylefusion_hf.py" for name in PARTS)}
    assert set(files) - {".gitattributes"} == PLAIN | ours
    assert not [path for path, content in files.items() if b"private" in content]
    with pytest.raises(ValueError, match="has no safetensors weights"):
        publish_models(folder / "wandb", REPO)


def test_models_by_themselves(folder: Path, hub: HubServer) -> None:
    """Folders of models beside each other, without the folders that a run leaves."""
    (folder / "model_index.json").unlink()
    for name in ("wandb", "checkpoint-5", ".hidden", "samples"):
        shutil.copytree(folder / "fusion", folder / name)
    for name in FOREIGN:
        if not (folder / name).exists():
            (folder / name).parent.mkdir(exist_ok=True, parents=True)
            (folder / name).write_text("private")
    (folder / "judges.json").write_text('{"segmenter": {"command": "train --data /home/jane/faces"}}')
    publish_models(folder, REPO)
    files = hub.files(REPO)
    assert set(files) - {".gitattributes", "README.md"} == PLAIN - {"model_index.json"} | {"judges.json"}
    assert json.loads(files["judges.json"])["segmenter"]["command"] == "train --data faces"


def test_what_belongs_to_a_pipeline(folder: Path) -> None:
    """Variants, shards, licenses, directions, recipes, and the pictures that the card shows."""
    pipe = tiny_pipeline()
    torch.nn.Module.half(pipe.fusion).save_pretrained(folder / "fusion", variant="fp16", max_shard_size="10KB")
    save_directions(folder / "directions.safetensors", [Direction("older", "w", torch.ones(16))])
    out = pipe.to(torch.float32)(base=1)
    (folder / "recipe.json").write_text(json.dumps(out.recipe))
    for name in ("LICENSE", "NOTICE.txt", "generator/LICENSE.md"):
        (folder / name).write_text("Apache")
    for name in ("one.png", "two.webp", "three.gif", "four.jpg", "unused.webp"):
        out.images[0].save(folder / name)
    (folder / "README.md").write_text("![](one.png) ![](two.webp) ![](./three.gif) <img src='four.jpg'>\n")
    found = collect(folder, PARTS)
    extra = {path for path in found.files if path not in PLAIN}
    shards = {path for path in extra if "-of-" in path or path.endswith(".index.fp16.json")}
    assert len(shards) == 4
    assert extra - shards == {
        *("directions.safetensors", "recipe.json", "LICENSE", "NOTICE.txt", "generator/LICENSE.md"),
        *("one.png", "two.webp", "three.gif", "four.jpg"),
    }
    assert found.left_out == ["unused.webp"]


# ----------------------------------------------------------------------------------------------------
# Links, pipes and devices.


def test_links_out_of_the_folder(folder: Path, tmp_path: Path, hub: HubServer, capsys: Any) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    for name in ("config.json", "README.md", "sheet.png", WEIGHTS):
        (secret / name).write_text("private")
    (tmp_path / "chain").symlink_to(secret / "README.md")
    (folder / "sub").mkdir()
    (folder / "token.json").write_text("private")

    def refused(path: str, target: Path | str, match: str = "is a symbolic link to another place") -> None:
        kept = None
        if (folder / path).is_dir():
            kept = shutil.move(folder / path, tmp_path / "kept")
        elif (folder / path).is_file():
            kept = (folder / path).read_bytes()
            (folder / path).unlink()
        (folder / path).symlink_to(target)
        with pytest.raises(ValueError, match=f"^{re.escape(path)} {match}") as caught:
            collect(folder, PARTS)
        assert "\n" not in str(caught.value)
        if path in ("passwd.txt", "README.md"):
            assert path in fails(capsys, "publish", str(folder), REPO, "--license", "mit")
        (folder / path).unlink()
        if isinstance(kept, bytes):
            (folder / path).write_bytes(kept)
        elif kept:
            shutil.move(kept, folder / path)

    refused("passwd.txt", "/etc/passwd")
    refused("README.md", "/etc/passwd")
    refused("README.md", tmp_path / "chain")  # a link to a link
    refused("README.md", "../secret/README.md")
    refused("README.md", "token.json")  # inside, but of something that is not published
    refused("generator/config.json", "../token.json")
    refused(f"generator/{WEIGHTS}", secret / WEIGHTS)
    refused("generator", secret)
    refused("images", secret)  # a folder that is left out anyway
    refused("LICENSE", tmp_path / "nowhere", "is a symbolic link")
    refused("NOTICE", "NOTICE", "is a symbolic link to nothing")
    refused("sheet.png", "/proc/self/environ")
    refused("model_index.json", "/dev/stdin")
    assert hub.repositories == {}
    # Links within the folder to what is published itself are copies without the space.
    (folder / "generator" / "diffusion_pytorch_model.fp16.safetensors").symlink_to(WEIGHTS)
    assert f"generator/{WEIGHTS}".replace("model.", "model.fp16.") in collect(folder, PARTS).files
    (tmp_path / "current").symlink_to(folder)  # the folder itself may be one
    assert set(collect(tmp_path / "current", PARTS).files) > PLAIN


@pytest.mark.parametrize("path", ["README.md", "generator/config.json", f"fusion/{WEIGHTS}", "other"])
def test_pipes(folder: Path, path: str) -> None:
    (folder / path).unlink(missing_ok=True)
    os.mkfifo(folder / path)
    with pytest.raises(ValueError, match=f"^{path} is neither a file nor a folder: remove it from the folder"):
        collect(folder, PARTS)


def test_a_snapshot_of_the_hubs_cache(hub: HubServer, tmp_path: Path) -> None:
    tiny_pipeline().push_to_hub(REPO)
    cache = tmp_path / "cache"
    snapshot = Path(StyleFusionPipeline.download(REPO, cache_dir=cache))
    assert (snapshot / "generator" / "config.json").is_symlink()
    publish(snapshot, "me/copy")
    same = {path for path, content in hub.files(REPO).items() if hub.files("me/copy").get(path) == content}
    assert {f"generator/{WEIGHTS}", f"fusion/{WEIGHTS}", "generator/config.json"} < same
    publish_models(snapshot / "generator", "me/generator")
    assert {"config.json", WEIGHTS} < set(hub.files("me/generator"))
    # Nothing but blobs of the same repository is followed.
    other = cache / "models--you--private" / "blobs" / ("0" * 40)
    other.parent.mkdir(parents=True)
    other.write_text("private")
    for target in (other, snapshot.parents[1] / "refs" / "main", "/etc/passwd"):
        (snapshot / "README.md").unlink(missing_ok=True)
        (snapshot / "README.md").symlink_to(target)
        with pytest.raises(ValueError, match=r"^README\.md is a symbolic link to another place"):
            publish(snapshot, "me/copy")
    (snapshot / "README.md").unlink()
    blob = snapshot.parents[1] / "blobs" / ("1" * 40)
    blob.symlink_to("/etc/passwd")
    (snapshot / "README.md").symlink_to(blob)
    with pytest.raises(ValueError, match=r"^README\.md is a symbolic link to another place"):
        publish(snapshot, "me/copy")


# ----------------------------------------------------------------------------------------------------
# Local paths.


def test_local_paths_of_every_kind(folder: Path, hub: HubServer) -> None:
    """In configs that plain diffusers wrote, at any depth, in metadata, cards, notes, recipes and pictures."""
    secret = "/home/jane/secret project/runs/base"

    def change(path: str, **values: Any) -> None:
        value = json.loads((folder / path).read_text())
        (folder / path).write_text(json.dumps(value | values))

    change("model_index.json", _name_or_path=secret)
    change(
        "generator/config.json", _name_or_path=secret, note={"_name_or_path": secret, "at": [secret, "C:\\jane\\x"]}
    )
    change("fusion/config.json", _name_or_path=secret, origin="file:///home/jane/x")
    tensors = load_file(folder / "generator" / WEIGHTS)
    told = {"format": "pt", "host": "janes-laptop", "source": secret, "tokens": "hf_jane"}
    save_file(tensors, folder / "generator" / WEIGHTS, metadata=told)
    source = {"name": "x.pkl", "bytes": 5, "sha256": "0" * 64, "path": secret}
    (folder / "conversion.json").write_text(json.dumps({"sources": {secret + "/x.pkl": source}}))
    (folder / "README.md").write_text(
        "---\nbase_model: /home/jane/base\n---\n# Ours\n"
        "![](sheet.png) from `/home/jane/runs/base`, (/tmp/jane/x.pt).\n"
        "See https://example.org/home/jane/x and [this](/user/repo) or user/repo, and/or C:\\Users\\jane\\y.pt\n"
    )
    recipe = {"version": 1, "base": 1, "model": {"name": secret, "sha256": {}}}
    info = PngInfo()
    info.add_text(RECIPE_KEY, json.dumps(recipe))
    info.add_text("Software", f"drawn by {secret}")
    info.add_itxt("jane", "jane")
    info.add_text("compressed", "jane", zip=True)
    exif = Image.Exif()
    exif[0x013B] = "jane"
    Image.new("RGB", (64, 64), "red").save(folder / "sheet.png", pnginfo=info, exif=exif)
    (folder / "recipe.json").write_text(json.dumps(recipe))
    publish(folder, REPO)
    files = hub.files(REPO)
    for path, content in files.items():
        where = content.replace(b"https://example.org/home/jane/x", b"")
        assert b"jane" not in where and b"secret" not in where and b"_name_or_path" not in where, path
    text = files["README.md"].decode()
    assert "base_model: base\n" in text and "from `base`, (x.pt).\n" in text and "and/or y.pt" in text
    assert "https://example.org/home/jane/x and [this](/user/repo) or user/repo" in text
    assert json.loads(files["conversion.json"])["sources"]["x.pkl"]["path"] == "base"
    assert json.loads(files["recipe.json"])["model"]["name"] == "base"
    assert json.loads(files["generator/config.json"])["note"] == {"at": ["base", "x"]}
    (folder / "published.png").write_bytes(files["sheet.png"])
    with Image.open(folder / "published.png") as picture:
        picture.load()
        assert set(picture.info) == {RECIPE_KEY}
        assert json.loads(picture.info[RECIPE_KEY])["model"]["name"] == "base"
        assert picture.getpixel((3, 3)) == (255, 0, 0)
    (folder / WEIGHTS).write_bytes(files[f"generator/{WEIGHTS}"])
    published = load_file(folder / WEIGHTS)
    assert published.keys() == tensors.keys() and all(torch.equal(published[k], tensors[k]) for k in tensors)
    with safe_open(folder / WEIGHTS, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert json.loads((folder / "generator" / "config.json").read_text())["_name_or_path"] == secret  # unchanged


def test_weights_are_copied_only_where_they_say_too_much(tmp_path: Path) -> None:
    plain, told, copies = tmp_path / "a.safetensors", tmp_path / "b.safetensors", CleanedFiles()
    tensors = {"x": torch.arange(7.0), "empty": torch.zeros(0)}
    save_file(tensors, plain, metadata={"format": "pt"})
    save_file(tensors, told, metadata={"format": "pt", "path": "/home/jane"})
    assert copies.weights(plain, "a") == plain
    copy = copies.weights(told, "b")
    assert copy.parent != tmp_path and torch.equal(load_file(copy)["x"], tensors["x"])
    assert b"jane" not in copy.read_bytes()
    del copies
    assert not copy.exists()
    for content in (b"", b"\x02\0\0\0\0\0\0\0[]", b"\xff" * 9, b"\x04\0\0\0\0\0\0\0null", b"\x80\x04."):
        plain.write_bytes(content)
        with pytest.raises(ValueError, match="^a is not a safetensors file: save the model again"):
            CleanedFiles().weights(plain, "a")


def test_directions_keep_their_table(folder: Path) -> None:
    about = {"source": "/home/jane/boundaries/age.npy", "trained": "/home/jane/faces"}
    save_directions(folder / "directions.safetensors", [Direction("older", "w", torch.ones(16), provenance=about)])
    path = collect_one(folder, "directions.safetensors")
    assert b"jane" not in path.read_bytes()
    direction = load_directions(path)["older"]
    assert direction.provenance["source"] == "age.npy" and torch.equal(direction.tensor, torch.ones(16))


def collect_one(folder: Path, name: str) -> Path:
    found = collect(folder, PARTS)
    content = found.files[name]
    target = folder.parent / name
    target.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return target


def test_text() -> None:
    same = [
        *("https://huggingface.co/user/repo/resolve/main/a.png", "user/repo", "and/or", "1/2/3", "[x](/user/repo)"),
        *(
            "/v1/models",
            "#!/usr/nowhere/env",
            "a // b",
            "s3://bucket/a/b",
            "`all*(a, b)`",
            "\\alpha \\\\beta",
            "x/y/z",
        ),
        *(
            "http://localhost:8000/home/x",
            "./runs/base",
            "../a/b",
            "ratio a:b",
            "12:30 / 13:00",
            "~/models",
            "</a></b>",
        ),
    ]
    for text in same:
        assert clean_text(f"see {text} there") == f"see {text} there"
    changed = {
        "/home/jane/a/b.pt": "b.pt", "/Users/jane": "~", "/home/jane/": "~", "`/mnt/disk/x`": "`x`", "C:\\a b": "a b",
        "D:/data/jane/x.pt": "x.pt", "\\\\server\\jane\\x": "x", "file:///tmp/jane/x.pt": "x.pt", "=/tmp/jane/x": "=x",
        "/tmp/jane/x.": "x.", "\"/root/jane/x\"": "\"x\"", "(/data/jane/x)": "(x)", "/work/jane/x, y": "x, y",
    }  # fmt: skip
    for text, expected in changed.items():
        assert clean_text(f"see {text} there") == f"see {expected} there", text
    assert clean_text(f"{os.path.realpath(__file__)} here").startswith("test_publication.py here")  # it exists
    assert base_name("/home/jane/my runs/base/") == "base"
    assert clean_json({"a": "/x/y", "b": {"space": "w", "shape": [1], "data": "/AAA/BBB"}})["b"]["data"] == "/AAA/BBB"
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(ValueError, match="levels is not published"):
        clean_json(deep)


@pytest.mark.parametrize(
    "text", ["/" * 9, "/a", "/a/", "a/", "\\", "\\\\", "C:\\", "C:/a\\", "~", "./", "file:/", "/a b"]
)
def test_cleaning_is_linear(text: str) -> None:
    began = time.process_time()
    clean_text(text * (10**6 // len(text)))
    assert time.process_time() - began < 5


def test_pngs(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("P", (9, 9)).save(path, transparency=0, gamma=0.5)
    content = path.read_bytes()
    assert clean_png(content, "a") == content
    private = struct.pack(">I4s", 4, b"prVt") + b"jane" + struct.pack(">I", zlib.crc32(b"prVtjane"))
    assert clean_png(content[:33] + private + content[33:] + b"jane", "a") == content  # also what follows its end
    for cut in (b"GIF89a", content[:20], content[:-12], content[:8] + b"\xff" * 12):
        with pytest.raises(ValueError, match="^a is (not a PNG file|cut off)"):
            clean_png(cut, "a")


def test_pictures_with_exif_stay(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x013B] = "jane"
    picture = Image.new("RGB", (9, 9))
    picture.save(folder / "a.jpg", exif=exif)
    picture.save(folder / "b.webp", exif=exif)
    picture.save(folder / "c.gif", comment=b"jane")
    (folder / "d.jpg").write_text("jane")
    (folder / "README.md").write_text("![](a.jpg) ![](b.webp) ![](c.gif) ![](d.jpg)")
    assert collect(folder, PARTS).left_out == ["a.jpg", "b.webp", "c.gif", "d.jpg"]


# ----------------------------------------------------------------------------------------------------
# The command.


@pytest.mark.usefixtures("elsewhere")
def test_a_dry_run_names_what_stays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("\x1b[31mred.json", "two\nlines", "generator/" + "long" * 40, "generator/wandb/x.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    assert main(["publish", str(folder), REPO, "--dry-run", "out"]) == 0
    said = capsys.readouterr().out
    (left,) = re.findall("^left out: (.*)$", said, re.MULTILINE)
    names = ["\\x1b[31mred.json", f"generator/{'long' * 16}lon...", "generator/wandb/", "two\\nlines"]
    assert left.split(", ") == names
    assert set(read_folder(Path("out"))) == {
        *PLAIN, "README.md", "sheet.png", "pipeline.py", *(f"{name}/stylefusion_hf.py" for name in PARTS)
    }  # fmt: skip


def test_damaged_json_is_named(folder: Path) -> None:
    (folder / "generator" / "config.json").write_text("{" + "x" * 5000)
    with pytest.raises(ValueError, match=r"^generator/config\.json is not JSON \(.{1,90}\): correct it") as caught:
        collect(folder, PARTS)
    assert len(str(caught.value)) < 250


def test_a_models_folder_alone(tmp_path: Path) -> None:
    tiny_generator().save_pretrained(tmp_path)
    (tmp_path / "stray.png").write_bytes(b"x")
    assert set(bytes_of(collect(tmp_path))) == {"config.json", WEIGHTS}
