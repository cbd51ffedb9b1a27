"""`stylefusion render`: the pictures of single calls, every line once, shards that are whole or absent."""

import importlib.util
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylefusion_hf import StyleFusionPipeline, cli
from stylefusion_hf.core.codes import Code
from stylefusion_hf.core.installing import install_command
from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.export import rendering, shards
from stylefusion_hf.export.rendering import RandomRecipes, RecipeFile, render
from tests.command_line import fails
from tests.tiny import NUM_WS, W_DIM, draw, tiny_pipeline

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture(scope="module")
def pipe() -> StyleFusionPipeline:
    found = tiny_pipeline(segmenter=True)
    found.set_progress_bar_config(disable=True)
    return found


def recipes() -> list[Recipe]:
    """Of many kinds, so that batches mix lines."""
    code, rows = Code(draw(1, W_DIM), "w"), Code(draw(1, NUM_WS, W_DIM, seed=1), "w+")
    found = [Recipe(base=(i,), num_images=1, regions={"hair": (i + 9,)}) for i in range(9)]
    found += [Recipe(base=(1, 2, 3), num_images=3, global_code=(7,), strength={"all": 0.5})]
    found += [Recipe(base=(i,), num_images=1, nodes={"face": (code,)}, edits={"eyes": (rows,)}) for i in range(3)]
    found += [Recipe(base=(4,), num_images=2, noise_mode="random", noise_seeds=(1, 2), truncation_psi=0.5)]
    return [*found, Recipe(base=(code,), num_images=1, truncation_cutoff=2)]


def written(tmp_path: Path, lines: list[str]) -> Path:
    path = tmp_path / "recipes.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def file(tmp_path) -> Path:
    lines = [r.to_json() for r in recipes()]
    return written(tmp_path, [*lines[:5], "", *lines[5:]])


def samples(folder: Path) -> dict[str, dict[str, Any]]:
    """key -> image and mask as arrays, and the facts, of all shards of either format."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("shard-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, end = member.name.split(".", 1)
                found.setdefault(key, {})[end] = tar.extractfile(member).read()  # type: ignore[union-attr]
    for path in sorted(folder.glob("shard-*.parquet")):
        import pyarrow.parquet as pq

        for row in pq.read_table(path).to_pylist():
            facts = {"line": row["line"], "picture": row["picture"], "recipe": json.loads(row["recipe"])}
            found[row["key"]] = {"png": row["image"]["bytes"], "json": json.dumps(facts)}
            if row["mask"] is not None:
                found[row["key"]]["mask.png"] = row["mask"]["bytes"]
    for sample in found.values():
        sample |= json.loads(sample["json"])
        for name in ("png", "mask.png"):
            if name in sample:
                with Image.open(io.BytesIO(sample[name])) as image:
                    assert image.mode == {"png": "RGB", "mask.png": "P"}[name]
                    sample[name] = np.array(image)
    return found


@pytest.mark.parametrize("kind", shards.FORMATS)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_shards_have_the_pictures_of_single_calls(pipe, file, tmp_path, kind, batch_size):
    out = tmp_path / "out"
    done = render(pipe, RecipeFile(file), out, kind=kind, shard_size=6, batch_size=batch_size)
    assert (done.pictures, done.shards) == (18, 3) and done.rate > 0
    regions = json.loads((out / "dataset.json").read_text())["regions"]
    assert regions == list(pipe.segmenter.config.regions)
    found = samples(out)
    numbers = [*range(1, 6), *range(7, 17)]  # line 6 is empty
    assert sorted(found) == [
        f"{n:09d}-{i:04d}" for n, r in zip(numbers, recipes(), strict=True) for i in range(r.num_images)
    ]
    for number, recipe in zip(numbers, recipes(), strict=True):
        for i in range(recipe.num_images):
            sample, alone = found[f"{number:09d}-{i:04d}"], pipe.from_recipe(recipe.select(i), output_masks=True)
            expected = np.array(alone.images[0])
            assert np.abs(sample["png"].astype(int) - expected).max() <= (batch_size > 1)
            assert (sample["line"], sample["picture"]) == (number, i)
            assert sample["recipe"] == alone.recipe
            if np.array_equal(sample["png"], expected):
                for j, name in enumerate(regions):
                    assert np.array_equal(sample["mask.png"] == j, alone.masks[name][0].numpy()), name


def test_two_processes_share_the_lines_and_any_number_goes_on(pipe, file, tmp_path):
    for process in range(2):
        done = render(pipe, RecipeFile(file), tmp_path / "two", shard_size=2, process=process, processes=2)
        assert done.pictures and done.shards == 4 * (process + 1)
    render(pipe, RecipeFile(file), tmp_path / "one", shard_size=2)
    one, two = (sorted((tmp_path / name).glob("shard-*")) for name in ("one", "two"))
    assert [p.name for p in one] == [p.name for p in two]
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]
    for gone in two[3:5]:
        gone.unlink()
    kept = [p.stat().st_mtime_ns for p in two[:3]]
    assert render(pipe, RecipeFile(file), tmp_path / "two", shard_size=2).pictures == 4
    assert [p.stat().st_mtime_ns for p in two[:3]] == kept
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


def test_what_fails_half_way_leaves_no_half_shard(pipe, file, tmp_path, monkeypatch):
    calls, plain = [], rendering.render_batch

    def full(*args):
        calls.append(args)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        return plain(*args)

    monkeypatch.setattr(rendering, "render_batch", full)
    with pytest.raises(OSError, match=r"shard-000001.tar could not be written: .*No space left on device"):
        render(pipe, RecipeFile(file), tmp_path / "out", shard_size=4, batch_size=2)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["dataset.json", "shard-000000.tar"]


def test_random_recipes_give_every_region_a_seed(pipe, tmp_path):
    source = RandomRecipes(3, 0, pipe.fusion.tree)
    made = [make() for _, make in source]
    assert all(set(r.regions) == set(pipe.fusion.tree.leaves) for r in made)
    seeds = {row for r in made for rows in (r.base, *r.regions.values()) for row in rows}
    assert len(seeds) == 3 * (1 + len(pipe.fusion.tree.leaves))
    assert made == [make() for _, make in source] != [make() for _, make in RandomRecipes(3, 1, pipe.fusion.tree)]
    half = tiny_pipeline("all*(face(mouth, eyes), hair)", segmenter=True)  # what is below `face` has no effect
    assert set(RandomRecipes(1, 0, half.fusion.tree).make(1).regions) == {"face", "hair"}
    assert render(half, RandomRecipes(1, 0, half.fusion.tree), tmp_path / "out").pictures == 1


def test_batches_mix_no_kinds_and_lose_nothing():
    singles = [rendering.Picture(n, i, r.select(i)) for n, r in enumerate(recipes()) for i in range(r.num_images)]
    for size in (1, 2, 5, 100):
        found = list(rendering.batches(iter(singles), size))
        assert sorted(p.key for batch in found for p in batch) == sorted(p.key for p in singles)
        assert all(len(batch) <= size for batch in found)
        assert all(len({rendering.kind_of(p.recipe) for p in batch}) == 1 for batch in found)
    assert max(map(len, rendering.batches(iter(singles), 100))) == 9


def test_few_recipes_wait(monkeypatch):
    kinds = [rendering.Picture(i, 0, Recipe(base=(1,), num_images=1, strength=i / 100)) for i in range(100)]
    monkeypatch.setattr(rendering, "MAX_WAITING", 5)
    taken = 0

    def feed():
        nonlocal taken
        for picture in kinds:
            taken += 1
            yield picture

    for given, _ in enumerate(rendering.batches(feed(), 2)):
        assert taken - given <= 10


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3: the recipe is not JSON"),
        ('{"version": 1}', "line 3: base: the recipe has no base code"),
        ('{"version": 1, "base": 1, "regions": {"nose": 1}}', "line 3: .*'nose'"),
        ('{"version": 1, "base": 1, "class_labels": 1}', "line 3: class_labels were given, but this model"),
        (
            Recipe(base=(Code(torch.ones(1, 3), "w"),), num_images=1).to_json(),
            r"line 3: base has the shape \(batch, 3\)",
        ),
        (
            '{"version": 1, "base": 1, "model": {"sha256": {"generator": "' + "0" * 64 + '"}}}',
            "line 3: written with other",
        ),
        ("\xff", "line 3: "),
    ],
)
def test_a_bad_line_is_named_before_anything_is_rendered(pipe, tmp_path, line, message):
    good = Recipe(base=(1,), num_images=1).to_json()
    path = written(tmp_path, [good, good])
    with open(path, "ab") as f:
        f.write(line.encode("latin-1") + b"\n")
    with pytest.raises(ValueError, match=message):
        render(pipe, RecipeFile(path), tmp_path / "out", shard_size=1)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["dataset.json"]


def test_recipes_of_other_weights_where_that_is_wanted(pipe, tmp_path):
    recipe = replace(recipes()[0], model={"name": None, "sha256": {"generator": "0" * 64}})
    path = written(tmp_path, [recipe.to_json()])
    assert render(pipe, RecipeFile(path), tmp_path / "out", any_model=True, masks=False).pictures == 1
    (sample,) = samples(tmp_path / "out").values()
    assert "mask.png" not in sample and sample["recipe"]["model"]["sha256"] == pipe.model_identity()["sha256"]


def test_a_folder_of_something_else_is_refused(pipe, file, tmp_path):
    render(pipe, RandomRecipes(2, 0, pipe.fusion.tree), tmp_path / "out", shard_size=1)
    for source, more, message in (
        (RecipeFile(file), {}, "out has pictures of another random"),
        (RandomRecipes(2, 1, pipe.fusion.tree), {}, r"another seed \(0, now 1\)"),
        (RandomRecipes(2, 0, pipe.fusion.tree), {"shard_size": 2}, r"another shard_size \(1, now 2\)"),
        (RandomRecipes(2, 0, pipe.fusion.tree), {"kind": "parquet"}, "another format"),
    ):
        with pytest.raises(ValueError, match=message):
            render(pipe, source, tmp_path / "out", **({"shard_size": 1} | more))
    with pytest.raises(ValueError, match=r"is not empty and has no dataset.json"):
        render(pipe, RecipeFile(file), file.parent)
    (tmp_path / "out" / "dataset.json").write_text("[")
    with pytest.raises(ValueError, match=r"dataset.json cannot be read"):
        render(pipe, RecipeFile(file), tmp_path / "out")


def test_what_readers_of_parquet_need(pipe, tmp_path):
    import pyarrow.parquet as pq

    render(pipe, RandomRecipes(2, 0, pipe.fusion.tree), tmp_path / "out", kind="parquet", masks=True)
    metadata = pq.read_schema(tmp_path / "out" / "shard-000000.parquet").metadata
    features = json.loads(metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == features["mask"] == {"_type": "Image"}
    assert json.loads(metadata[b"stylefusion"])["regions"] == list(pipe.segmenter.config.regions)


def test_webdataset_reads_its_own(pipe, tmp_path):
    import webdataset

    render(pipe, RandomRecipes(3, 0, pipe.fusion.tree), tmp_path / "out", shard_size=2)
    urls = [str(p) for p in sorted((tmp_path / "out").glob("*.tar"))]
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert [s["json"]["line"] for s in read] == [1, 2, 3]
    assert all(s["png"].size == s["mask.png"].size == (32, 32) for s in read)


def test_the_command(pipe, tmp_path, capsys):
    pipe.save_pretrained("model")
    flags = "--random 3 --seed 5 --model model --out a --shard-size 2 --batch-size 2"
    assert cli.main(["render", *flags.split()]) == 0
    said = capsys.readouterr().out
    assert "2 shards; 3 rendered, " in said and "images/s" in said
    lines = [json.dumps(sample["recipe"]) for _, sample in sorted(samples(Path("a")).items())]
    Path("again.jsonl").write_text("\n".join(lines))
    flags = "--model model --out b --shard-size 2 --batch-size 2 --format parquet"
    assert cli.main(["render", "again.jsonl", *flags.split()]) == 0
    assert "2 shards; " in capsys.readouterr().out
    assert cli.main(["render", "--random", "1", "--model", "model", "--out", "one"]) == 0
    assert "(1 shard; 1 rendered" in capsys.readouterr().out
    a, b = samples(Path("a")), samples(Path("b"))
    assert a.keys() == b.keys()
    for key in a:
        assert np.array_equal(a[key]["png"], b[key]["png"]) and np.array_equal(a[key]["mask.png"], b[key]["mask.png"])
    assert cli.main(["render", "again.jsonl", *flags.split()]) == 0
    assert "all existed before" in capsys.readouterr().out


def test_the_command_refuses(pipe, tmp_path, capsys, monkeypatch):
    assert "a file of recipes or --random N" in fails(capsys, "render", "--out", "x")
    assert "a file of recipes or --random N" in fails(capsys, "render", "a.jsonl", "--random", "3", "--out", "x")
    assert "--seed goes with --random" in fails(capsys, "render", "a.jsonl", "--seed", "3", "--out", "x")
    assert "the recipes absent.jsonl: there is no such file" in fails(capsys, "render", "absent.jsonl", "--out", "x")
    Path("empty.jsonl").write_text("\n\n")
    pipe.save_pretrained("model")
    assert "there is no recipe" in fails(capsys, "render", "empty.jsonl", "--model", "model", "--out", "x")
    tiny_pipeline().save_pretrained("plain")
    said = fails(capsys, "render", "--random", "1", "--model", "plain", "--out", "y")
    assert "masks need a segmenter" in said and "--no-masks" in said
    monkeypatch.setattr(shards, "FORMATS", {"tar": "no_such_package", "parquet": "no_such_package"})
    assert importlib.util.find_spec("no_such_package") is None
    said = fails(capsys, "render", "--random", "1", "--model", "model", "--out", "z")
    assert install_command("render") in said
