"""Publishing to a Hub with the real client: what arrives, what is kept, and every fault."""

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from stylefusion_hf import RegionSegmenter, StyleFusionInterpolationPipeline, StyleFusionPipeline, StyleGAN2Generator
from stylefusion_hf.cli import main
from stylefusion_hf.hub.publication import Publication, prepare
from stylefusion_hf.hub.publishing import publish, stale_weights, upload
from stylefusion_hf.training.common import push_to_hub
from tests.command_line import fails
from tests.hub_server import ALWAYS, READER, WRITER, HubServer, read_folder
from tests.tiny import tiny_pipeline, tiny_segmenter

REPO = "me/avatars"
WEIGHTS = "diffusion_pytorch_model.safetensors"
NAMES = ("generator", "fusion", "segmenter")
ALL = {
    *(f"{name}/{file}" for name in NAMES for file in ("config.json", WEIGHTS, "stylefusion_hf.py")),
    *(".gitattributes", "README.md", "model_index.json", "pipeline.py", "sheet.png"),
}
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's LFS uploads
SECRET = re.compile(r"hf_[A-Z]\w+")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder beside what else lies where a run was; it was loaded and saved, as a user's are."""
    first, folder = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("runs")
    tiny_pipeline(segmenter=True).save_pretrained(first)
    StyleFusionPipeline.from_pretrained(first).save_pretrained(folder)
    config = json.loads((folder / "fusion" / "config.json").read_text())
    (folder / "fusion" / "config.json").write_text(json.dumps(config | {"_name_or_path": str(first)}))
    for name in ("checkpoint-5/model.safetensors", "samples/1.png", "logs/events", "fusion/weights.bin", ".env"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("private")
    for name in ("arguments.json", "log.jsonl", "report.md", "notes.py", "discriminator/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text('{"output_dir": "/home/me"}')
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def pictures(pipe: Any) -> torch.Tensor:
    return pipe(base=1, regions={"hair": 7}, output_type="pt").images


def card(hub: HubServer, revision: str = "main") -> str:
    return hub.files(REPO, revision)["README.md"].decode()


# ----------------------------------------------------------------------------------------------------
# What arrives.


def test_a_folder(hub, folder, cache, capsys):
    assert (
        main(["publish", str(folder), REPO, "--license", "apache-2.0", "--base-model", "me/base", "--tag", "x"]) == 0
    )
    said = capsys.readouterr().out
    files = hub.files(REPO)
    assert (
        f"published {len(ALL) - 1} files" in said and f"/{REPO}/commit/{hub.repositories[REPO].refs['main']}" in said
    )
    assert set(files) == ALL
    assert not any(b"_name_or_path" in content or b"/tmp/" in content for content in files.values())
    assert json.loads(files["model_index.json"])["_class_name"] == ["pipeline", "StyleFusionPipeline"]
    assert files["sheet.png"].startswith(b"\x89PNG")
    text = card(hub)
    for line in ("license: apache-2.0", "base_model: me/base", "- x", "url: sheet.png", "library_name: diffusers"):
        assert f"{line}\n" in text.split("---\n")[1]
    expected = pictures(tiny_pipeline())
    assert torch.equal(pictures(StyleFusionPipeline.from_pretrained(REPO, cache_dir=cache)), expected)
    trusted = DiffusionPipeline.from_pretrained(REPO, cache_dir=cache, trust_remote_code=True)
    assert torch.equal(pictures(trusted), expected)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("kind", ["plain", "conditional", "two regions"])
def test_the_cards_snippet_runs(hub, kind):
    changes: dict[str, Any] = {"conditional": {"label_dim": 3}, "two regions": {"tree": "all*(a, b)"}}.get(kind, {})
    tiny_pipeline(**changes).push_to_hub(REPO)
    (snippet,) = re.findall(r"```python\n(.*?)```", card(hub), re.DOTALL)
    assert REPO in snippet
    exec(snippet, {})
    assert Path("fused.png").is_file()


def test_a_pipe(hub, cache):
    pipe = tiny_pipeline(segmenter=True)
    address = pipe.push_to_hub(REPO, private=True, commit_message="First", license="mit")
    assert address == f"{hub.endpoint}/{REPO}/commit/{hub.repositories[REPO].refs['main']}"
    assert set(hub.files(REPO)) == ALL
    assert hub.repositories[REPO].private
    assert "license: mit" in card(hub)
    loaded = StyleFusionPipeline.from_pretrained(REPO, cache_dir=cache)
    assert torch.equal(pictures(loaded), pictures(pipe))
    loaded.push_to_hub("me/copy")
    assert f"base_model: {REPO}" in hub.files("me/copy")["README.md"].decode()
    walk = StyleFusionInterpolationPipeline.from_pipe(pipe)
    walk.push_to_hub("me/walk")
    assert b'"StyleFusionInterpolationPipeline"' in hub.files("me/walk")["model_index.json"]
    assert b"StyleFusionPipeline.from_pretrained" in hub.files("me/walk")["README.md"]
    trusted = DiffusionPipeline.from_pretrained("me/walk", cache_dir=cache, trust_remote_code=True)
    assert isinstance(trusted, StyleFusionInterpolationPipeline)
    with pytest.raises(ValueError, match="would publish pickles"):
        pipe.push_to_hub(REPO, safe_serialization=False)


def test_saving_and_pushing_in_one_call(hub, tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "avatars", push_to_hub=True, license="mit", token=WRITER)
    assert "license: mit" in card(hub)
    pipe.save_pretrained(tmp_path / "other", push_to_hub=True, repo_id="me/third")
    assert set(hub.files("me/third")) == ALL - {path for path in ALL if "segmenter" in path}
    with pytest.raises(TypeError, match="licence"):
        pipe.save_pretrained(tmp_path / "other", push_to_hub=True, licence="mit")


def test_one_model(hub, tmp_path, cache):
    model = tiny_segmenter()
    model.save_pretrained(tmp_path)
    RegionSegmenter.from_pretrained(tmp_path).push_to_hub("me/segmenter")
    assert b"_name_or_path" not in hub.files("me/segmenter")["config.json"]
    assert RegionSegmenter.from_pretrained("me/segmenter", cache_dir=cache).config.regions == model.config.regions
    hub.fail("403")
    with pytest.raises(OSError, match="cannot upload to 'me/segmenter': the token does not permit this"):
        model.push_to_hub("me/segmenter")


def test_variants_and_shards_replace_what_they_are_of(hub, cache):
    pipe, main_weights = tiny_pipeline(), f"fusion/{WEIGHTS}"
    pipe.push_to_hub(REPO, max_shard_size="10KB")
    assert main_weights not in hub.files(REPO)
    shards = {
        path for path in hub.files(REPO) if "-of-" in path or "/diffusion_pytorch_model.safetensors.index" in path
    }
    assert len(shards) > 5
    half = tiny_pipeline().to(dtype=torch.float16)
    half.push_to_hub(REPO, variant="fp16")
    assert shards < set(hub.files(REPO))
    pipe.push_to_hub(REPO)
    files = set(hub.files(REPO))
    assert not shards & files
    assert {main_weights, "fusion/diffusion_pytorch_model.fp16.safetensors"} < files
    loaded = StyleFusionPipeline.from_pretrained(REPO, cache_dir=cache, variant="fp16", dtype=torch.float16)
    assert loaded.dtype == torch.float16


def test_a_folder_replaces_all_weights(hub, folder):
    hub.add(
        REPO, {f"fusion/{WEIGHTS}".replace("model", "model.fp16"): b"old", "notes.txt": b"kept", "fusion/a.md": b""}
    )
    publish(folder, REPO)
    assert set(hub.files(REPO)) == ALL - {".gitattributes"} | {"notes.txt", "fusion/a.md"}


def test_what_is_stale():
    there = [
        "a/model.safetensors", "a/diffusion_pytorch_model-00001-of-00002.safetensors", "b/model.safetensors",
        "a/diffusion_pytorch_model.safetensors.index.json", "a/diffusion_pytorch_model.fp16-1-of-2.safetensors",
        "a/diffusion_pytorch_model.safetensors.index.fp16.json", "a/directions.safetensors", "a/config.json",
        "diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    new = {"a/diffusion_pytorch_model.safetensors": b""}
    assert stale_weights(there, new, ["a"], keep_variants=True) == sorted([there[0], there[1], there[3]])
    assert stale_weights(there, new, ["a"], keep_variants=False) == sorted([there[0], there[1], *there[3:6]])
    assert stale_weights(there, {"model.safetensors": b""}, [""], keep_variants=True) == [there[8]]


def test_branches_and_pull_requests(hub, folder):
    publish(folder, REPO)
    first = hub.repositories[REPO].refs["main"]
    publish(folder, REPO, revision="v2", license="mit")
    assert hub.repositories[REPO].refs["main"] == first
    assert "license: mit" in card(hub, "v2")
    address = publish(folder, REPO, create_pr=True, license="cc0-1.0")
    assert address.endswith(f"{REPO}/discussions/1")
    assert "license: cc0-1.0" in card(hub, "refs/pr/1")
    assert hub.repositories[REPO].refs["main"] == first
    assert publish(folder, REPO).endswith(first)  # nothing new, no empty commit


def test_large_files_in_parts(hub, folder, cache):
    hub.part_size = 10_000
    publish(folder, REPO)
    assert any("/upload/" in line and line.endswith("/3") for line in hub.requests)
    expected = pictures(tiny_pipeline())
    assert torch.equal(pictures(StyleFusionPipeline.from_pretrained(REPO, cache_dir=cache)), expected)


def test_what_was_uploaded_is_not_uploaded_again(hub, folder):
    hub.fail("403", r"POST .*/commit/", times=1)
    with pytest.raises(OSError, match="the token does not permit this"):
        publish(folder, REPO)
    hub.requests.clear()
    publish(folder, REPO)
    assert not any(line.startswith("PUT") for line in hub.requests)


# ----------------------------------------------------------------------------------------------------
# The card.


def test_a_card_that_somebody_wrote_is_kept(hub, folder, caplog):
    publish(folder, REPO)
    assert "names no license" in caplog.text
    generated = card(hub)
    own = "---\nlanguage: en  # ours\ntags: [mine]\n---\n# Our avatars\n\nPlease cite us.\n"
    hub.add(REPO, hub.files(REPO) | {"README.md": own.encode()})
    publish(folder, REPO, license="mit")
    assert f"README.md of {REPO} was changed there and is kept" in caplog.text
    kept = card(hub)
    assert kept.endswith("---\n# Our avatars\n\nPlease cite us.\n")
    assert "language: en\n" in kept and "- mine\n- stylefusion\n" in kept and "license: mit\n" in kept
    publish(folder, REPO, overwrite_card=True)
    assert card(hub) == generated
    hub.add(REPO, hub.files(REPO) | {"README.md": generated.replace("## Use", "## How to use").encode()})
    publish(folder, REPO, license="mit")
    assert "## How to use" in card(hub)
    hub.add(REPO, {"README.md": b"---\nlicense: mit\n---\n"})  # as the web page makes it
    publish(folder, REPO)
    assert "license: mit\n" in card(hub) and "## The model" in card(hub)


def test_a_card_that_nobody_changed_is_renewed(hub, folder, tmp_path):
    publish(folder, REPO, license="mit")
    publish(folder, REPO, license="apache-2.0", tags=["new"])
    assert "license: apache-2.0" in card(hub) and "- new" in card(hub)
    for content in read_folder(folder), {"README.md": b"# From the folder\n"}:
        for path, it in content.items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(it)
    publish(tmp_path, REPO)
    assert "# From the folder\n" in card(hub) and "- stylefusion" in card(hub)
    (tmp_path / "README.md").write_text("# Better\n")
    publish(tmp_path, REPO)
    assert "# Better\n" in card(hub)


def test_the_measured_table(hub, folder, tmp_path):
    estimate = {"value": 0.0131, "low": 0.012, "high": 0.0143, "n": 500}
    figures = {"outside": estimate, "transfer": estimate | {"value": None}, "response": estimate, "dead": estimate}
    report = {"swaps": {"leaf": {"hair": figures}}, "settings": {"pairs": 500, "quick": False}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    publish(folder, REPO, report=tmp_path / "report.json")
    assert "| hair | 0.013 [0.012, 0.014] | undefined | 0.013 [0.012, 0.014] |" in card(hub)
    assert "500 pairs of seeds" in card(hub)
    copied = shutil.copytree(folder, tmp_path / "copied")
    (copied / "README.md").write_text("# Written by hand\n")
    publish(copied, REPO, report=tmp_path / "report.json")
    assert re.search(r"# Written by hand\n\n## Figures\n(.*\n)+\| hair \| 0.013", card(hub))
    (copied / "README.md").write_text("# Written by hand\n\n## Figures\n")
    with pytest.raises(ValueError, match=r"README\.md has a section Figures: take it out"):
        publish(copied, REPO, report=tmp_path / "report.json")
    (copied / "README.md").unlink()
    (tmp_path / "report.json").rename(copied / "report.json")  # found by itself
    publish(copied, "me/measured")
    assert "| hair | 0.013" in hub.files("me/measured")["README.md"].decode()
    assert "report.json" not in hub.files("me/measured")  # names folders of this machine
    (tmp_path / "report.json").write_text('{"settings": {}}')
    with pytest.raises(
        ValueError, match=r"report\.json is not a report\.json of `stylefusion evaluate` with the section"
    ):
        publish(folder, REPO, report=tmp_path / "report.json")


# ----------------------------------------------------------------------------------------------------
# The command.


@pytest.mark.usefixtures("elsewhere")
def test_a_dry_run(hub, folder, capsys):
    assert main(["publish", str(folder), REPO, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert {line.split()[-1] for line in said.splitlines() if line.startswith("  ")} == ALL - {".gitattributes"}
    left = re.search("left out: (.*)", said)
    assert left is not None
    assert set(left[1].split(", ")) == {
        *(".env", "arguments.json", "checkpoint-5/", "discriminator/", "fusion/weights.bin"),
        *("log.jsonl", "logs/", "notes.py", "report.md", "samples/"),
    }
    assert main(["publish", str(folder), REPO, "--dry-run", "out"]) == 0
    assert set(read_folder(Path("out"))) == ALL - {".gitattributes"}
    pipe = DiffusionPipeline.from_pretrained("out", trust_remote_code=True)
    assert torch.equal(pictures(pipe), pictures(tiny_pipeline()))
    assert hub.requests == []
    assert "the folder is not empty" in fails(capsys, "publish", str(folder), REPO, "--dry-run", "out")


@pytest.mark.usefixtures("elsewhere")
def test_the_command_refuses(hub, folder, capsys, monkeypatch):
    Path("empty").mkdir()
    assert "nowhere is not a folder" in fails(capsys, "publish", "nowhere", REPO)
    assert "empty is a folder without model_index.json" in fails(capsys, "publish", "empty", REPO)
    assert "'a/b/c' is not the name of a repository" in fails(capsys, "publish", str(folder), "a/b/c")
    Path("empty/model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    assert "a pipeline of the class 'DDPMPipeline'" in fails(capsys, "publish", "empty", REPO)
    Path("report.json").write_text("[]")
    assert "is not a report.json" in fails(capsys, "publish", str(folder), REPO, "--report", "report.json")
    monkeypatch.setenv("HF_TOKEN", READER)
    text = fails(capsys, "publish", str(folder), REPO)
    assert f"cannot publish to {REPO!r}: the token does not permit this (403)" in text
    assert hub.repositories == {}


def test_trainers_push(hub, folder, tmp_path):
    args = argparse.Namespace(push_to_hub=True, hub_model_id=None, hub_token=WRITER, output_dir=tmp_path / "avatars")
    push_to_hub(args, folder)
    assert set(hub.files(REPO)) == ALL
    args.hub_model_id = "me/generator"
    push_to_hub(args, folder / "generator")
    assert set(hub.files("me/generator")) == {".gitattributes", "README.md", "config.json", WEIGHTS}
    assert StyleGAN2Generator.from_pretrained("me/generator", cache_dir=tmp_path).config.resolution == 32
    args.push_to_hub = False
    push_to_hub(args, tmp_path)  # no folder of a model, and nobody asked
    args.push_to_hub = True
    with pytest.raises(ValueError, match="has no safetensors weights to publish"):
        push_to_hub(args, folder / "logs")


# ----------------------------------------------------------------------------------------------------
# Faults.


@pytest.fixture(scope="module")
def publication(folder: Path) -> Publication:
    return prepare(folder, REPO, license="mit")


@pytest.mark.parametrize(("kind", "times"), [
    ("403", ALWAYS), ("drop", ALWAYS), ("503", 1), ("flip", 1),
    *(pytest.param(kind, ALWAYS, marks=pytest.mark.slow)
      for kind in ("401", "404", "429", "500", "503", "reset", "lost", "flip")),
    *(pytest.param(kind, 1, marks=pytest.mark.slow) for kind in ("429", "500", "reset", "drop", "lost")),
])  # fmt: skip
def test_every_fault_at_every_request(hub, publication, kind, times, capfd):
    """All of it is published, or nothing and one clear line; and once the fault is gone, all of it."""
    hub.part_size = 50_000
    old = {"README.md": b"# Ours\n", f"fusion/{WEIGHTS}": b"old", "segmenter/model.safetensors": b"stale"}

    def attempt() -> None:
        try:
            upload(publication, REPO, revision="next")
        except OSError as error:
            text = str(error)
            if (
                not text.startswith(f"cannot publish to {REPO!r}: ")
                or len(text.splitlines()) > 1
                or SECRET.search(text)
            ):
                raise AssertionError(f"no clear line: {text}") from error

    hub.add(REPO, old)
    attempt()
    lines = list(dict.fromkeys(re.sub("[0-9a-f]{40,64}", "[0-9a-f]+", line) for line in hub.requests))
    assert len(lines) >= 10
    new = hub.files(REPO, "next")
    assert new["README.md"].endswith(b"# Ours\n")
    for line in lines:
        hub.reset()
        hub.part_size = 50_000
        hub.add(REPO, old)
        hub.fail(kind, f"^{line.replace('.', '[.]').replace('[0-9a-f]+', '[0-9a-f]+')}$", times=times, after=20)
        attempt()
        assert hub.files(REPO) == old, line
        refs = hub.repositories[REPO].refs
        assert refs.get("next", refs["main"]) == refs["main"] or hub.files(REPO, "next") == new, line
        hub.faults.clear()
        attempt()
        assert hub.files(REPO, "next") == new, line
    assert hub.injected
    said = capfd.readouterr()
    assert not SECRET.search(said.out + said.err)


def test_somebody_else_pushes_meanwhile(hub, folder):
    publication = prepare(folder, REPO)
    hub.add(REPO, {"README.md": b"# Ours\n"})
    theirs = {"README.md": b"# Theirs\n"}
    hub.fail("call", r"POST .*/preupload/", times=1, action=lambda: hub.add(REPO, theirs))
    with pytest.raises(OSError, match=r"cannot publish to 'me/avatars': someone else changed it meanwhile"):
        upload(publication, REPO)
    assert hub.files(REPO) == theirs
    upload(publication, REPO)
    assert card(hub).endswith("# Theirs\n")
