"""`stylefusion export`: the graphs' numbers, what the files hold, and one line for everything that is refused."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylefusion_hf import StyleFusionPipeline
from stylefusion_hf.cli import export as command
from stylefusion_hf.cli import main
from stylefusion_hf.core.installing import install_command
from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.export import graphs as exporting
from stylefusion_hf.export.description import check_target
from stylefusion_hf.export.graph_files import SUFFIXES, open_onnx, open_torch, trace
from stylefusion_hf.export.graphs import export, graphs
from tests.command_line import fails
from tests.tiny import tiny_fusion, tiny_generator, tiny_segmenter

ROOT = Path(__file__).resolve().parents[2]
MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"not installed (extra `export`): {', '.join(MISSING)}")

SWITCHES = {"gate_bias": True, "gate_product": True, "gate_novelty": True, "standardise": True}
TREES = (
    "avatar",
    "church",
    "all",  # a generator by itself
    "all(face*(mouth, skin), hair)",  # a root without a net: nothing below it plays a part
    "all*(face(mouth, skin), hair*(half, train))",  # an inner node without one; names that modules may not have
    "all*(my face*(the mouth, skin/neck), été)",
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in an empty folder, and tests without gradients."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STYLEFUSION_DEBUG", raising=False)


def small(tree: str = "all*(sky, sea)", fusion: Any = None, **changes: Any) -> StyleFusionPipeline:
    """8 px and few nets: an export takes about as long as it has operations. `changes` go to the generator."""
    config = {"resolution": 8, "channels": [8, 6]} | changes
    generator = tiny_generator(**config)
    nets = tiny_fusion(generator, tree, **(fusion or {}))
    if nets.spec.standardise:
        nets.set_statistics(torch.randn(8, nets.style_width) * 2 + 1)
    leaves = RegionTree.of(tree).leaves
    return StyleFusionPipeline(generator, nets, tiny_segmenter(tree) if len(leaves) > 1 else None)


def close(given: torch.Tensor, expected: torch.Tensor) -> None:
    assert given.shape == expected.shape
    assert float((given - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


# ----------------------------------------------------------------------------------------------------
# The traced networks.


def check_traced(graph: Any, batches: tuple[int, ...] = (1, 3)) -> None:
    """A batch is dynamic, shapes are as told, numbers those of the model."""
    program = trace(graph).module()
    for batch in batches:
        inputs = graph.example(batch)
        assert [tuple(tensor.shape) for tensor in inputs] == [
            tuple(batch if size is None else size for size in port.shape) for port in graph.inputs
        ]
        close(program(*inputs), graph.original(*inputs))


@torch.no_grad()
@pytest.mark.parametrize("tree", TREES)
def test_fusion_of_any_tree(tree: str) -> None:
    check_traced(graphs(small(tree))["fusion"])


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["max", "mean"])
@pytest.mark.parametrize(
    "changes",
    [
        SWITCHES,
        {"num_indicators": 16, "shared_indicators": False, "hidden_layers": 1, "lr_multiplier": 0.1},
        {"indicator_repeats": 3, "common_conv_layers": 2, "common_rgb_layers": 1, "padded_width": 11},
        {"common_conv_layers": 0, "common_rgb_layers": 0, "gate_novelty": True},
        {"context_width": 3, "standardise": True},
    ],
)
def test_fusion_with_every_switch(pooling: str, changes: dict[str, Any]) -> None:
    check_traced(graphs(small("all*(mouth, hair)", {"pooling": pooling, **changes}))["fusion"])


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {"resolution": 4, "channels": [8]},
        {"resolution": 16, "channels": [8, 6, 4], "conv_clamp": 0.5, "img_channels": 1},
        {"w_dim": 24, "mapping_width": 20, "mapping_layers": 3, "label_dim": 5},
    ],
)
def test_generators(changes: dict[str, Any]) -> None:
    found = graphs(small("all", **changes))
    assert list(found) == ["mapping", "fusion", "synthesis"]
    for graph in found.values():
        check_traced(graph)


# ----------------------------------------------------------------------------------------------------
# The files.


def check_folder(folder: Path, pipe: StyleFusionPipeline, form: str) -> dict[str, Any]:
    """What export.json says fits the files and the models; returns it."""
    about = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    assert {path.name for path in folder.iterdir()} == {"export.json", *about["files"]}
    assert about["kind"] == form
    assert about["nodes"] == list(pipe.fusion.tree.nodes)
    assert sum(about["style_sizes"].values()) == about["style_dim"] == pipe.generator.style_dim
    assert about["w_avg"] == pytest.approx(pipe.generator.w_avg.tolist())
    assert all(about["made_with"].values())
    for name, graph in graphs(pipe).items():
        told = about["graphs"][name]
        assert told["file"] == name + SUFFIXES[form]
        assert 0 <= told["check"]["max_error"] <= 1e-3 * told["check"]["output_std"]
        run = (open_onnx if form == "onnx" else open_torch)(folder / told["file"])
        inputs = graph.example(4)  # neither traced nor checked before
        error = (run(*inputs) - graph.original(*inputs)).abs().max()
        assert float(error) <= 1e-3 * told["check"]["output_std"]
    for path in folder.iterdir():
        assert str(ROOT).encode() not in path.read_bytes(), f"a local path in {path.name}"
    return about


def check_onnx(folder: Path, about: dict[str, Any]) -> None:
    """Names and shapes are as told; convolutions have stored weights; nothing but ONNX's own operators."""
    import onnx

    for name, told in about["graphs"].items():
        model = onnx.load(folder / told["file"])
        onnx.checker.check_model(model, full_check=True)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", about["opset"])]
        for found, listed in (
            (model.graph.input, told["inputs"]),
            (model.graph.output, told["outputs"]),
        ):
            shapes = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in found]
            assert [value.name for value in found] == [port["name"] for port in listed]
            assert shapes == [port["shape"] for port in listed]
        stored = {tensor.name for tensor in model.graph.initializer}
        weights = [node.input[1] for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
        assert set(weights) <= stored
        if name == "synthesis":
            assert len(weights) >= 2 * (about["resolution"].bit_length() - 2)


@needs_onnx
@torch.no_grad()
def test_onnx(tmp_path: Path) -> None:
    pipe = small()
    export(pipe, tmp_path / "out", "onnx")
    check_onnx(tmp_path / "out", check_folder(tmp_path / "out", pipe, "onnx"))


@needs_onnx
@torch.no_grad()
def test_onnx_of_a_conditional_model_with_every_switch(tmp_path: Path) -> None:
    pipe = small("all*(a face, été)", SWITCHES, label_dim=3, use_noise=False, conv_clamp=256.0)
    export(pipe, tmp_path / "out", "onnx", only=["fusion", "mapping"])
    about = json.loads((tmp_path / "out" / "export.json").read_text(encoding="utf-8"))
    assert list(about["graphs"]) == ["mapping", "fusion"]
    assert [port["name"] for port in about["graphs"]["mapping"]["inputs"]] == ["z", "class_labels", "truncation_psi"]
    check_onnx(tmp_path / "out", about)


@torch.no_grad()
def test_torch_export(tmp_path: Path) -> None:
    pipe = small(fusion=SWITCHES | {"pooling": "max"}, label_dim=2)
    export(pipe, tmp_path / "out", "torch-export")
    about = check_folder(tmp_path / "out", pipe, "torch-export")
    assert "opset" not in about


@needs_onnx
@pytest.mark.slow  # half a minute: a graph of every net of the embedded model
def test_the_embedded_model_and_the_documented_example(capsys: pytest.CaptureFixture[str]) -> None:
    """The example runs as it stands, and its picture is the pipeline's."""
    if not (ROOT / "stylefusion_hf/assets/model_index.json").is_file():
        pytest.skip("there is no embedded model in this checkout")
    assert main(["export", "--only", "mapping", "--only", "fusion", "--only", "synthesis"]) == 0
    said = capsys.readouterr().out
    mebibytes = Path("export/synthesis.onnx").stat().st_size / 2**20
    assert re.search(rf"synthesis\.onnx +{mebibytes:.2f} +\S+e-0\d +\S+e-0\d +\S+ +\S+ +\S+x", said)
    text = (ROOT / "docs/reference/export.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?onnxruntime.*?)```", text, re.DOTALL)
    assert "stylefusion" not in example
    exec(compile(example, "docs/reference/export.md", "exec"), {})
    expected = StyleFusionPipeline.from_embedded()(base=1, regions={"hair": 7}).images[0]
    with Image.open("fused.png") as image:
        assert np.abs(np.asarray(image).astype(int) - np.asarray(expected).astype(int)).max() <= 1


# ----------------------------------------------------------------------------------------------------
# What is refused.


@pytest.fixture
def saved(tmp_path: Path) -> str:
    pipe = small("all*(sky, sea)", resolution=4, channels=[4])
    StyleFusionPipeline(pipe.generator, pipe.fusion).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_only_one_graph_replaced_later(saved: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("export", "--model", saved, "--format", "torch-export", "--only", "mapping", "--out", "out")
    assert main([*argv, "--no-check"]) == 0
    said = capsys.readouterr().out
    assert "not compared with the model" in said
    assert "mapping and export.json" in said
    about = json.loads(Path("out/export.json").read_text(encoding="utf-8"))
    assert about["graphs"]["mapping"]["check"] is None
    assert "--overwrite" in fails(capsys, *argv)
    assert main([*argv, "--overwrite"]) == 0
    assert json.loads(Path("out/export.json").read_text(encoding="utf-8"))["graphs"]["mapping"]["check"]
    Path("out/notes.txt").write_text("mine")
    assert "contains notes.txt next to an export" in fails(capsys, *argv, "--overwrite")
    assert Path("out/notes.txt").exists()


def test_the_command_refuses(saved: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "invalid choice: 'tflite'" in fails(capsys, "export", "--format", "tflite")
    assert "invalid choice: 'encoder'" in fails(capsys, "export", "--only", "encoder")
    argv = ("export", "--model", saved, "--format", "torch-export")
    assert "no segmenter" in fails(capsys, *argv, "--only", "segmenter", "--out", "out")
    Path("full").mkdir()
    Path("full/export.json").write_text('{"format": "another"}')
    assert "not an export" in fails(capsys, *argv, "--overwrite", "--out", "full")
    assert "--overwrite would remove" in fails(capsys, *argv, "--overwrite", "--out", saved)
    Path("file").write_text("")
    assert "is a file" in fails(capsys, *argv, "--out", "file")
    assert "nowhere" in fails(capsys, "export", "--format", "torch-export", "--model", "nowhere/at-all/no")
    assert sorted(path.name for path in Path().iterdir()) == ["file", "full", "model"]


@torch.no_grad()
def test_a_graph_that_differs_is_an_error_and_leaves_nothing(
    saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("export", "--model", saved, "--format", "torch-export", "--only", "mapping", "--out", "out")
    monkeypatch.setattr(exporting, "open_torch", lambda path: lambda *inputs: open_torch(path)(*inputs) * 1.01)
    assert "the exported mapping differs from the model by" in fails(capsys, *argv)
    monkeypatch.setattr(exporting, "open_torch", lambda path: lambda *inputs: open_torch(path)(*inputs)[:1])
    assert "the exported mapping gives (1, 8) for a batch of 3" in fails(capsys, *argv)
    monkeypatch.setattr(exporting, "open_torch", lambda path: lambda *inputs: open_torch(path)(*inputs) * float("nan"))
    assert "differs from the model by nan" in fails(capsys, *argv)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("package", "flags"), [("onnx", ["--no-check"]), ("onnxscript", []), ("onnxruntime", [])])
def test_a_missing_package_is_one_line_that_names_the_extra(
    package: str, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find_spec(name: str, *rest: Any) -> Any:
        return None if name == package else object()

    monkeypatch.setattr("stylefusion_hf.export.graph_files.importlib.util.find_spec", find_spec)
    line = fails(capsys, "export", *flags)
    assert package in line
    assert install_command("export") in line


def test_names_that_the_help_repeats_are_those_of_the_code(tmp_path: Path) -> None:
    assert tuple(SUFFIXES) == command.FORMATS
    assert tuple(graphs(small())) == command.GRAPHS
    with pytest.raises(ValueError, match="unknown format 'tflite': choose from onnx, torch-export"):
        export(small(), tmp_path / "out", "tflite")
    check_target(tmp_path / "new", overwrite=False)
