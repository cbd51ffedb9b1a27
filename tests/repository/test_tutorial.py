"""docs/guides/tutorial.ipynb is a notebook of format 4.5 without outputs, and its cells run one after the other."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

PATH = Path(__file__).resolve().parents[2] / "docs" / "guides" / "tutorial.ipynb"


@pytest.fixture(scope="module")
def notebook() -> dict:
    return json.loads(PATH.read_text(encoding="utf-8"))


def test_it_is_a_small_notebook(notebook: dict) -> None:
    assert PATH.stat().st_size < 200_000
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert set(notebook) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert notebook["metadata"]["kernelspec"].keys() >= {"name", "display_name"}
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in names)
    for cell in notebook["cells"]:
        shared = {"cell_type", "id", "metadata", "source"}
        more = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert cell["cell_type"] in ("code", "markdown")
        assert set(cell) == shared | more
        assert all(isinstance(line, str) and line.endswith("\n") for line in cell["source"][:-1])
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_its_cells_run(
    notebook: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    ran = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            code = "".join(cell["source"])
            exec(compile(code, f"{PATH.name}, {cell['id']}", "exec"), names)
            ran += 1
    assert ran > 10
    assert names["out"].images[0].size == (128, 128)
    assert len(names["faces"]) == 3
    assert len(names["row"]) == 5
    assert float(names["found"].mse[0]) < float(names["guess"].mse[0])
    with Image.open("hair.webp") as film:
        assert film.n_frames == 8  # type: ignore[attr-defined]
    assert (tmp_path / "fused" / "model_index.json").is_file()
    assert names["own"].fusion.tree.leaves == names["RegionTree"].of(names["TREE"]).leaves
    printed = capsys.readouterr().out
    assert re.search(r"squared error: encoder \.?\d", printed)
