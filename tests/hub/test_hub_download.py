"""Loading from a Hub with the real client: what is fetched, revisions, caches, other doors, and every fault.

`python -m pytest tests/hub` ends with the number of faults injected.
"""

import contextlib
import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from stylefusion_hf import (
    FusionHierarchy,
    RegionSegmenter,
    StyleFusionInterpolationPipeline,
    StyleFusionPipeline,
    StyleGAN2Generator,
)
from stylefusion_hf.hub.publication import prepare
from tests.hub_server import ALWAYS, READER, WRITER, HubServer, read_folder
from tests.tiny import tiny_fusion, tiny_pipeline, tiny_segmenter

REPO = "someone/avatars"
CALL: dict[str, Any] = {"base": 1, "regions": {"hair": 7}, "output_type": "pt"}
WEIGHTS = "diffusion_pytorch_model.safetensors"
NAMES = ("generator", "fusion", "segmenter")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder as it is published, in float32 and fp16."""
    saved, published = tmp_path_factory.mktemp("saved"), tmp_path_factory.mktemp("published")
    pipe = tiny_pipeline(segmenter=True)
    pipe.save_pretrained(saved)
    pipe.to(dtype=torch.float16).save_pretrained(saved, variant="fp16")
    prepare(saved, REPO).write(published)
    return published


@pytest.fixture
def repo(hub: HubServer, folder: Path) -> str:
    hub.add(REPO, folder)
    return REPO


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def load(cache: Path, name: str = REPO, **kwargs: Any) -> StyleFusionPipeline:
    return StyleFusionPipeline.from_pretrained(name, cache_dir=cache, **kwargs)


def pictures(pipe: Any) -> torch.Tensor:
    return pipe(**CALL).images


def fetched(hub: HubServer) -> set[str]:
    return {line.rpartition("/resolve/")[2].partition("/")[2] for line in hub.requests if "/resolve/" in line}


def refused(load_it: Any, *args: Any, **kwargs: Any) -> str:
    """The error's text, which is one line without a token."""
    with pytest.raises(OSError) as error:
        load_it(*args, **kwargs)
    text = str(error.value)
    assert len(text.splitlines()) == 1
    assert not re.search(r"hf_[A-Z]", text)
    return text


# ----------------------------------------------------------------------------------------------------
# What is fetched.


def test_a_pipeline_without_trust(hub, repo, cache):
    expected = pictures(tiny_pipeline())
    pipe = load(cache)
    assert torch.equal(pictures(pipe), expected)
    assert pipe(base=1).recipe["model"]["name"] == REPO
    files = {"model_index.json", *(f"{n}/config.json" for n in NAMES), *(f"{n}/{WEIGHTS}" for n in NAMES)}
    assert fetched(hub) == files
    assert not list(cache.rglob("*.py"))
    walk = StyleFusionInterpolationPipeline.from_pretrained(repo, cache_dir=cache)
    assert walk.generator.config.resolution == 32


def test_plain_diffusers_with_trust(repo, cache):
    expected = pictures(tiny_pipeline())
    pipe = DiffusionPipeline.from_pretrained(repo, trust_remote_code=True, cache_dir=cache)
    assert isinstance(pipe, StyleFusionPipeline)
    assert torch.equal(pictures(pipe), expected)
    half = DiffusionPipeline.from_pretrained(
        repo, trust_remote_code=True, cache_dir=cache, variant="fp16", dtype=torch.float16
    )
    assert half.dtype == torch.float16
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(repo, cache_dir=cache)
    assert list(cache.rglob("*.py"))  # what the trusted load left behind does not disturb an untrusted one
    assert torch.equal(pictures(load(cache)), expected)
    assert torch.equal(pictures(load(cache, local_files_only=True)), expected)


def test_a_folder_with_the_pipeline_of_this_checkout(folder):
    file = Path(__file__).parents[2] / "pipelines" / "pipeline.py"
    for code in (file, file.parent):
        pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(code), trust_remote_code=True)
        assert isinstance(pipe, StyleFusionPipeline)
        assert torch.equal(pictures(pipe), pictures(tiny_pipeline()))


def test_variants_dtypes_and_passed_components(hub, repo, folder, cache):
    files = read_folder(folder)
    del files["fusion/diffusion_pytorch_model.fp16.safetensors"]
    hub.add(repo, files)
    pipe = load(cache, variant="fp16", dtype=torch.float16, segmenter=None)
    assert pipe.generator.dtype == pipe.fusion.dtype == torch.float16
    half = "generator/diffusion_pytorch_model.fp16.safetensors"
    configs = {"model_index.json", "generator/config.json", "fusion/config.json"}
    assert fetched(hub) == {*configs, half, f"fusion/{WEIGHTS}"}
    mixed = load(cache, dtype={"fusion": torch.bfloat16})
    assert (mixed.generator.dtype, mixed.fusion.dtype) == (torch.float32, torch.bfloat16)
    with pytest.raises(ValueError, match=r"someone/avatars: no component in .* of the variant 'ema'"):
        load(cache, variant="ema")


def test_shards(hub, cache, tmp_path):
    pipe = tiny_pipeline(segmenter=True)
    pipe.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards" / "fusion").glob("*-of-*.safetensors"))) > 2
    hub.add(REPO, tmp_path / "shards")
    assert torch.equal(pictures(load(cache)), pictures(pipe))
    fusion = FusionHierarchy.from_pretrained(REPO, subfolder="fusion", cache_dir=cache)
    assert all(torch.equal(a, b) for a, b in zip(fusion.parameters(), pipe.fusion.parameters(), strict=True))
    missing = read_folder(tmp_path / "shards")
    gone = next(path for path in missing if "fusion/" in path and "00002-of" in path)
    hub.add(REPO, {path: content for path, content in missing.items() if path != gone})
    assert "00002-of" in refused(load, cache)


@pytest.mark.parametrize(("name", "kind"), [
    ("generator", StyleGAN2Generator), ("fusion", FusionHierarchy), ("segmenter", RegionSegmenter),
])  # fmt: skip
def test_one_component(hub, repo, cache, name, kind):
    model = kind.from_pretrained(repo, subfolder=name, cache_dir=cache, dtype=torch.float16, variant="fp16")
    assert model.dtype == torch.float16
    assert model.config["_name_or_path"] == repo
    assert fetched(hub) == {f"{name}/config.json", f"{name}/diffusion_pytorch_model.fp16.safetensors"}
    whole = kind.from_pretrained(repo, subfolder=name, cache_dir=cache)
    assert whole.dtype == torch.float32
    pipe = load(cache, **{name: whole})
    assert pipe.components[name] is whole
    assert f"{name}/{WEIGHTS}" in fetched(hub)  # for the component, not again for the pipeline
    assert sum(line.startswith("GET") and f"{name}/config" in line for line in hub.requests) == 1
    assert "there is no diffusion_pytorch_model.ema.safetensors" in refused(
        kind.from_pretrained, repo, subfolder=name, cache_dir=cache, variant="ema"
    )


def test_swapping_components(repo, cache):
    pipe, other = load(cache), tiny_fusion(tiny_pipeline().generator, seed=5)
    swapped = StyleFusionPipeline.from_pipe(pipe, fusion=other)
    assert swapped.generator is pipe.generator
    assert not torch.equal(pictures(swapped), pictures(pipe))
    pipe.fusion = other
    assert torch.equal(pictures(pipe), pictures(swapped))
    pipe.register_modules(segmenter=tiny_segmenter(seed=3))
    assert pipe(base=1, output_masks=True).masks is not None


# ----------------------------------------------------------------------------------------------------
# Revisions and caches.


def test_revisions(hub, folder, cache, tmp_path):
    first = hub.add(REPO, folder)
    expected = pictures(load(cache))
    other = tiny_pipeline(seed=9)
    other.save_pretrained(tmp_path / "other")
    second = hub.add(REPO, tmp_path / "other")
    hub.repositories[REPO].refs["v1"] = first
    assert torch.equal(pictures(load(cache)), pictures(other))  # a changed branch is noticed
    for revision in (first, "v1"):
        assert torch.equal(pictures(load(cache, revision=revision)), expected)
    hub.requests.clear()
    load(cache, revision=second)
    assert not any(line.startswith("GET") and "/resolve/" in line for line in hub.requests)
    assert "it has no revision 'v9'" in refused(load, cache, revision="v9")


def test_a_push_amid_a_load_mixes_nothing(hub, repo, cache, tmp_path):
    expected = pictures(tiny_pipeline())
    tiny_pipeline(seed=9).save_pretrained(tmp_path / "other")
    hub.fail("call", r"GET .*/resolve/.*/config\.json", times=1, action=lambda: hub.add(REPO, tmp_path / "other"))
    assert torch.equal(pictures(load(cache)), expected)
    assert torch.equal(pictures(load(cache)), pictures(tiny_pipeline(seed=9)))


def test_a_second_load_fetches_nothing(hub, repo, cache):
    load(cache)
    hub.requests.clear()
    load(cache)
    assert [line for line in hub.requests if line.startswith("GET") and "/resolve/" in line] == []
    load(cache, force_download=True)
    assert f"generator/{WEIGHTS}" in fetched(hub)


OFFLINE = {
    "told so": (None, {"local_files_only": True}),
    "no network": ("unplugged", {}),
    "connections break": ("reset", {}),
    "the Hub is down": ("503", {}),
    "a stale login": ("401", {}),
    "rate limited": ("429", {}),
}


def unplug(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nobody listens where the Hub was."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.mark.parametrize("case", OFFLINE)
def test_offline_with_a_cache(hub, repo, cache, case, monkeypatch):
    fault, options = OFFLINE[case]
    expected = pictures(load(cache, segmenter=None))
    if fault == "unplugged":
        unplug(monkeypatch)
    elif fault:
        hub.fail(fault)
    assert torch.equal(pictures(load(cache, segmenter=None, **options)), expected)
    component = StyleGAN2Generator.from_pretrained(repo, subfolder="generator", cache_dir=cache, **options)
    assert component.config.resolution == 32
    text = refused(load, cache, **options)  # no segmenter in it
    assert "the cache does not hold all of it" in text or fault in ("401", "reset")
    assert "someone/avatars" in refused(load, cache, revision="v1", **options)


def test_offline_by_the_environment(hub, repo, cache, monkeypatch):
    expected = pictures(load(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert torch.equal(pictures(load(cache)), expected)
    assert hub.requests == []
    assert "downloads are switched off" in refused(load, cache / "other")


# ----------------------------------------------------------------------------------------------------
# Faults.

FAULTS: dict[str, tuple[str, str]] = {
    "unplugged": (r"no connection to http://127.* \(ConnectError\), and the cache does not", "Check the network"),
    "reset": (r"no connection to http://127.* \(\w+\)", "Check the network and try again"),
    "stall": (r"no connection to http://127.* \(\w+\)", "Check the network and try again"),
    "401": (
        r"the Hub requires a valid login \(401\)|there is no such repository",
        "og in with `hf auth login`",
    ),
    "403": (r"the token does not permit this \(403\)", "hf auth login"),
    "404": (r"the Hub refused \(404\)", "Check the name"),
    "429": (r"too many requests \(429\)", "Try again in 7 seconds"),
    "500": (r"the Hub has an internal error \(500\)", "Try again later"),
    "503": (r"the Hub has an internal error \(503\)", "Try again later"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_without_a_cache_is_one_clear_line(hub, repo, cache, kind, monkeypatch):
    what, do = FAULTS[kind]
    if kind == "stall":  # seconds in life
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.1)
        monkeypatch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", 0.1)
    if kind == "unplugged":
        unplug(monkeypatch)
    else:
        hub.fail(kind)
    text = refused(load, cache)
    assert re.match(rf"'{REPO}' is not a local folder, and cannot be loaded from the Hub: ({what})", text), text
    assert do in text
    text = refused(StyleGAN2Generator.from_pretrained, repo, subfolder="generator", cache_dir=cache)
    assert re.match(rf"'{REPO}' is not a local folder, and cannot be loaded from the Hub: ({what})", text), text


def test_rights(hub, folder, cache, monkeypatch):
    hub.add(REPO, folder, private=True)
    assert load(cache, token=READER).segmenter is not None
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no such repository, or it is private" in refused(load, cache / "2")
    assert "the Hub requires a valid login (401)" in refused(load, cache / "2", token="hf_Expired")
    hub.add(REPO, folder, private=False, gated=True)
    assert "access must be granted by its owner" in refused(load, cache / "2", token=READER)
    assert load(cache / "3", token=WRITER).segmenter is not None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("someone/else", "there is no such repository, or it is private"),
        ("not a name", "that is not a repository name"),
        ("/no/such/folder", "that is not a repository name"),
        ("./folder", "that is not a repository name"),
        ("a/b/c", "that is not a repository name"),
    ],
)
def test_neither_a_folder_nor_on_the_hub(repo, cache, name, message):
    text = refused(load, cache, name)
    assert text.startswith(f"{name!r} is not a local folder, and cannot be loaded from the Hub: {message}")


def test_a_repository_of_another_kind(hub, cache):
    hub.add(REPO, {"README.md": b"# Something else\n", "config.json": b"{}"})
    assert "it has no model_index.json. Check the name" in refused(load, cache)
    text = refused(StyleGAN2Generator.from_pretrained, REPO, subfolder="generator", cache_dir=cache)
    assert "it has no generator/config.json" in text
    hub.add(REPO, {"model_index.json": b"{"})
    assert "is not a valid JSON file" in refused(load, cache)


def test_an_answer_of_something_that_is_no_hub(hub, repo, cache):
    hub.etags = False
    assert "does not answer like a Hub" in refused(load, cache)
    hub.etags = True
    hub.fail("flip", "/tree/")  # as a hotel's login page does to JSON
    assert "does not answer like a Hub. Check HF_ENDPOINT" in refused(load, cache)


@pytest.mark.parametrize("after", [0, 1000, 5000])
@pytest.mark.parametrize("times", [1, 3])
def test_a_connection_that_breaks_in_mid_file_is_resumed(hub, repo, cache, after, times, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)  # what is on disk so far; 10 MB in life
    hub.fail("drop", r"GET /lfs/", times=times, after=after)
    assert torch.equal(pictures(load(cache)), pictures(tiny_pipeline()))
    ranges = [headers["range"] for headers in hub.headers if "range" in headers]
    assert len(ranges) == (times if after else 0)  # went on where it broke
    assert all(int(re.findall(r"\d+", given)[0]) % after == 0 for given in ranges)


def test_a_connection_that_always_breaks(hub, repo, cache):
    hub.fail("drop", r"GET /lfs/")
    assert "no connection to" in refused(load, cache)
    hub.faults.clear()
    assert torch.equal(pictures(load(cache)), pictures(tiny_pipeline()))


@pytest.mark.parametrize("where", [r"GET /lfs/", r"GET .*generator/config\.json", r"GET .*model_index\.json"])
def test_a_corrupted_file_is_noticed_and_not_kept(hub, repo, cache, where):
    hub.fail("flip", where, times=1)
    text = refused(load, cache)
    assert text.startswith(f"{REPO!r} was damaged in download: ") or "valid JSON" in text
    assert "removed from the cache. Load it again" in text or "valid JSON" in text
    assert torch.equal(pictures(load(cache)), pictures(tiny_pipeline()))
    hub.fail("flip", r"GET /lfs/", times=1)
    text = refused(
        StyleGAN2Generator.from_pretrained, repo, subfolder="generator", cache_dir=cache, force_download=True
    )
    assert f"generator/{WEIGHTS} does not match the Hub's hash" in text
    assert StyleGAN2Generator.from_pretrained(repo, subfolder="generator", cache_dir=cache).dtype == torch.float32


def test_a_file_that_lacks_its_end(hub, repo, cache):
    hub.fail("short", r"GET /lfs/", times=1)
    assert "a download was incomplete. Load it again" in refused(load, cache)
    assert torch.equal(pictures(load(cache)), pictures(tiny_pipeline()))


def test_a_file_that_was_damaged_in_the_cache(hub, repo, cache):
    load(cache)
    blob = next(cache.glob(f"models--*/snapshots/*/fusion/{WEIGHTS}")).resolve()
    blob.write_bytes(blob.read_bytes()[:-50])
    text = refused(load, cache)
    assert text.startswith(REPO) and "truncated" in text and "force_download=True downloads it again" in text
    text = refused(FusionHierarchy.from_pretrained, repo, subfolder="fusion", cache_dir=cache)
    assert f"from {REPO}/fusion: its weights are truncated" in text and "force_download=True" in text
    assert torch.equal(pictures(load(cache, force_download=True)), pictures(tiny_pipeline()))


def test_a_full_disk(hub, repo, cache, monkeypatch):
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    assert "no space is left on the disk" in refused(load, cache)


def requests_of_a_load(hub: HubServer, cache: Path) -> list[str]:
    """Each request once, in order."""
    StyleFusionPipeline.download(REPO, cache_dir=cache, segmenter=None)
    return list(dict.fromkeys(hub.requests))


def download_or_one_line(place: Path) -> Path:
    try:
        return Path(StyleFusionPipeline.download(REPO, cache_dir=place, segmenter=None))
    except OSError as error:
        text = str(error)
        if len(text.splitlines()) != 1 or not (REPO in text or "valid JSON" in text):
            raise AssertionError(f"no clear line: {text}") from error
        raise


@pytest.mark.parametrize(("kind", "times"), [
    *((kind, ALWAYS) for kind in ("401", "403", "404", "429", "500", "503", "reset", "drop", "flip", "short")),
    *((kind, 1) for kind in ("429", "500", "503", "reset", "drop", "flip", "short")),
])  # fmt: skip
def test_every_fault_at_every_request(hub, repo, cache, kind, times):
    """All of it arrives, or one clear line does; and once the fault is gone, all of it arrives."""
    lines = requests_of_a_load(hub, cache)
    assert len(lines) >= 11
    wanted = {path: hub.files(REPO)[path] for path in fetched(hub)}
    for number, line in enumerate(lines):
        hub.faults.clear()
        hub.fail(kind, f"^{re.escape(line)}$", times=times, after=100)
        place = cache / str(number)
        with contextlib.suppress(OSError):
            download_or_one_line(place)
        hub.faults.clear()
        found = download_or_one_line(place)
        assert {path: (found / path).read_bytes() for path in wanted} == wanted, line
    assert hub.injected


def test_recipes_and_files_tell_no_path_of_the_cache(repo, cache, tmp_path):
    pipe = load(cache)
    pipe.save_pretrained(tmp_path / "again")
    pipe.generator.save_pretrained(tmp_path / "alone")
    texts = [path.read_text() for path in (*tmp_path.glob("again/**/*.json"), *tmp_path.glob("alone/*.json"))]
    assert len(texts) == 5
    assert not any("_name_or_path" in text or str(tmp_path) in text for text in texts)
    assert str(tmp_path) not in json.dumps(pipe(base=1).recipe)
