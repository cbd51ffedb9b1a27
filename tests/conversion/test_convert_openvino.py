"""MobileStyleGANs in OpenVINO's format: what is converted computes what the graph computes; what is not says why."""

import hashlib
import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from stylefusion_hf import (
    FusionHierarchy,
    ImageEncoder,
    MobileStyleGANGenerator,
    RegionSegmenter,
    StyleFusionPipeline,
)
from stylefusion_hf.cli import main
from stylefusion_hf.conversion import companions, ir_network, openvino_ir
from stylefusion_hf.conversion.convert import convert
from stylefusion_hf.core.untrusted.inert import ConversionError
from tests.ir_interpreter import Interpreter
from tests.openvino_ir import Spec, floats, write_mapping, write_model, write_synthesis
from tests.parity import parity_file
from tests.tiny import tiny_fusion, tiny_segmenter

FACES = "STYLEFUSION_FACES_IR"  # the wheel of random-face, or its unpacked data folder


def converted(source: Path, out: Path, **options) -> MobileStyleGANGenerator:
    convert(source, out, progress=False, **options)
    return MobileStyleGANGenerator.from_pretrained(out / "generator").requires_grad_(False)


def affine_layers(graph: Interpreter) -> list[str]:
    """Ids of the layers that give style vectors, in the order of the graph's picture: first ones first."""
    (parameter,) = graph.of_type("Parameter")
    products = [name for name in graph.of_type("MatMul") if parameter in {giver for giver, _ in graph.inputs(name)}]
    sums = [name for name in graph.of_type("Add") if {giver for giver, _ in graph.inputs(name)} & set(products)]
    depth: dict[str, int] = {}

    def distance(name: str) -> int:
        """From the result."""
        return depth[name]

    (result,) = graph.of_type("Result")
    layer, depth[result] = [result], 0
    while layer:
        following = []
        for name in layer:
            for giver, _ in graph.inputs(name):
                if depth[name] + 1 > depth.get(giver, -1):
                    depth[giver] = depth[name] + 1
                    following.append(giver)
        layer = list(dict.fromkeys(following))
    return sorted(sums, key=distance, reverse=True)


def assert_same(
    g: MobileStyleGANGenerator, mapping: Path, synthesis: Path, psi: float, samples: int
) -> tuple[float, float]:
    """Codes within 1e-5 and pictures within 1e-4 of what the graphs compute; returns the errors."""
    graphs = Interpreter(mapping), Interpreter(synthesis)
    errors = [0.0, 0.0]
    for seed in range(samples):
        z = torch.randn(1, g.config.z_dim, generator=torch.Generator().manual_seed(seed))
        (w,) = graphs[0](z)
        w = g.truncate(w, psi)
        picture, *codes = graphs[1](w, *affine_layers(graphs[1]))
        code = torch.cat(codes, 1)
        assert picture.std() > 0.01 and code.shape == (1, g.style_dim)
        found = g.to_style(g.truncate(g.mapping(z), psi))
        errors[0] = max(errors[0], float((found - code).abs().max()))
        with torch.no_grad():
            errors[1] = max(errors[1], float((g.synthesis(found) - picture).abs().max()))
    assert errors[0] < 1e-5 and errors[1] < 1e-4
    return errors


# --- Conversion ------------------------------------------------------------------------------------------------------

SPECS = {
    "three blocks": Spec(),
    "other sizes": Spec(channels=(8, 16, 4, 5), w_dim=24, z_dim=10, mapping=(20, 20, 24), seed=3),
    "gray, one block": Spec(channels=(8,), img_channels=1, mapping=(16,), seed=4),
    "rgba, no noise": Spec(channels=(4, 12), img_channels=4, noise=False, mapping=(32, 16), seed=5),
    "other names and order": Spec(channels=(8, 8), name=lambda i: ("конв <&\"" if i % 2 else "") * 3, flipped=True),
    "other gains": Spec(channels=(8, 4), mapping_gain=0.9, gain=1.7, seed=6),
}  # fmt: skip


@pytest.mark.parametrize("name", SPECS)
def test_a_converted_model_computes_what_the_graph_does(name: str, tmp_path: Path) -> None:
    spec = SPECS[name]
    write_model(tmp_path / "ir", spec)
    g = converted(tmp_path / "ir", tmp_path / "out")
    config = g.config
    assert (config.resolution, config.channels) == (spec.resolution, list(spec.channels))
    assert (config.img_channels, config.z_dim, config.w_dim) == (spec.img_channels, spec.z_dim, spec.w_dim)
    assert (config.mapping_layers, config.use_noise) == (len(spec.mapping), spec.noise)
    assert g.synthesis.sizes[0] == spec.channels[0] and g.style_dim == len(g.style_rows)
    assert_same(g, tmp_path / "ir/a.xml", tmp_path / "ir/b.xml", psi=1.0, samples=3)
    z = torch.randn(4096, spec.z_dim, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(g.w_avg, g.mapping(z).mean(0))


def test_nets_of_this_package_join_their_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "ir")
    report = convert(tmp_path / "ir", tmp_path / "alone", progress=False)
    g = MobileStyleGANGenerator.from_pretrained(tmp_path / "alone/generator")
    own = tmp_path / "assets/mine"
    tiny_fusion(g, "ffhq", padded_width=12).save_pretrained(own / "fusion")
    tiny_segmenter("ffhq").save_pretrained(own / "segmenter")
    hashes = {name: report.sources[name]["sha256"] for name in ("a.bin", "b.bin")}
    about = {"generator": hashes, "notes": ["nets trained on samples of this generator"]}
    (own / "companions.json").write_text(json.dumps(about))
    monkeypatch.setattr(companions, "ASSETS", tmp_path / "assets")
    report = convert(tmp_path / "ir", tmp_path / "fused", progress=False)
    assert about["notes"][0] in report.notes and "nets trained" in (tmp_path / "fused/README.md").read_text()
    pipe = StyleFusionPipeline.from_pretrained(tmp_path / "fused")
    assert pipe.segmenter is not None and "hair" in pipe.fusion.tree.leaves
    with torch.no_grad():
        assert pipe(base=1, regions={"hair": 2}).images[0].tobytes() != pipe(base=1).images[0].tobytes()
    # Another generator of the same sizes gets none.
    write_model(tmp_path / "other", Spec(seed=9))
    convert(tmp_path / "other", tmp_path / "plain", progress=False)
    plain = StyleFusionPipeline.from_pretrained(tmp_path / "plain")
    assert plain.segmenter is None and [*plain.fusion.tree.leaves] == ["all"]


def test_the_nets_for_the_published_network() -> None:
    """Recognized by the hashes of its files alone; they load, fit its style code, and are small."""
    hashes = json.loads((companions.ASSETS / "faces/companions.json").read_text())["generator"]
    found = companions.find_companions({name: {"sha256": digest} for name, digest in hashes.items()})
    assert found is not None and found.parts == ["fusion", "segmenter", "encoder"]
    assert companions.find_companions({name: {"sha256": "0" * 64} for name in hashes}) is None
    nets = FusionHierarchy.from_pretrained(found.folder / "fusion")
    segmenter = RegionSegmenter.from_pretrained(found.folder / "segmenter")
    assert nets.style_width == 6752 and set(nets.tree.leaves) == set(segmenter.config.regions)
    encoder = ImageEncoder.from_pretrained(found.folder / "encoder")
    assert (encoder.config.num_ws, encoder.config.w_dim, encoder.config.resolution) == (18, 512, 128)
    assert encoder.dtype == torch.float32 and encoder.encode(torch.zeros(1, 3, 256, 256)).isfinite().all()
    weights = [path for name in found.parts for path in (found.folder / name).glob("*.safetensors")]
    assert len(weights) == 3 and sum(path.stat().st_size for path in weights) < 16e6
    card = (found.folder / "README.md").read_text()
    assert "research and other non-commercial use" in card


def test_random_noise_has_the_strength_of_the_stored_noise(tmp_path: Path) -> None:
    write_model(tmp_path / "ir")
    g = converted(tmp_path / "ir", tmp_path / "out")
    strengths = [p for name, p in g.named_parameters() if name.endswith("noise_strength")]
    assert len(strengths) == 5 and all(0.05 < float(p) < 0.2 for p in strengths)
    assert all(abs(float(b.square().mean()) - 1) < 1e-4 for n, b in g.named_buffers() if n.endswith("noise_const"))


def test_the_whole_folder(tmp_path: Path) -> None:
    """A pipeline that works, a report, and a card with hashes and the license."""
    write_model(tmp_path / "ir")
    report = convert(tmp_path / "ir", tmp_path / "out", progress=False)
    assert report.kind == "mobilestylegan" and not report.unused
    assert report.check["picture differs by"]
    pipe = StyleFusionPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(pipe.generator, MobileStyleGANGenerator)
    assert pipe(base=1).images[0].size == (32, 32)
    assert pipe.fusion.style_width == pipe.generator.style_dim
    card = (tmp_path / "out/README.md").read_text()
    for name in ("a.xml", "a.bin", "b.xml", "b.bin"):
        assert hashlib.sha256((tmp_path / "ir" / name).read_bytes()).hexdigest() in card
    weights = tmp_path / "out/generator/diffusion_pytorch_model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in card
    for words in ("research and other non-commercial use", "NVIDIA Source Code License", "FFHQ", "mobilestylegan"):
        assert words in card
    assert "MobileStyleGANGenerator" in card and "StyleGAN2Generator" not in card
    index = json.loads((tmp_path / "out/model_index.json").read_text())
    assert index["generator"] == ["stylefusion_hf", "MobileStyleGANGenerator"]


def test_previews_are_fitted_and_leave_the_picture_alone(tmp_path: Path) -> None:
    write_model(tmp_path / "ir", Spec(channels=(8, 16, 4, 5)))
    report = convert(tmp_path / "ir", tmp_path / "out", progress=False, previews=(16, 8), dtype="fp16")
    g = MobileStyleGANGenerator.from_pretrained(tmp_path / "out/generator")
    plain = converted(tmp_path / "ir", tmp_path / "plain", previews=())
    assert g.picture_sizes == [8, 16, 64] and plain.picture_sizes == [64]
    s = g.to_style(torch.randn(2, g.config.w_dim))
    with torch.no_grad():
        assert torch.equal(g.synthesis(s), plain.synthesis(s))
        assert g.synthesis(s, up_to=16).shape[-1] == 16 and float(g.synthesis(s, up_to=16).std()) > 0
    plain.fit_previews([8, 16])
    assert torch.equal(g.synthesis.previews["16"].weight, plain.synthesis.previews["16"].weight)
    card = (tmp_path / "out/README.md").read_text()
    assert re.search(r"previews of 8 px \(\d+\.\d dB\), 16 px", report.table())
    assert "previews of 8 px" in card
    half = MobileStyleGANGenerator.from_pretrained(tmp_path / "out/generator", variant="fp16", dtype=torch.float16)
    assert half.synthesis.previews["8"].weight.dtype == torch.float16


def test_only_larger_models_get_previews_by_default(tmp_path: Path) -> None:
    write_model(tmp_path / "small")
    assert converted(tmp_path / "small", tmp_path / "a").config.preview_resolutions == []
    write_model(tmp_path / "large", Spec(channels=(4, 4, 4, 4, 4, 4)))
    g = converted(tmp_path / "large", tmp_path / "b")
    assert g.config.resolution == 256 and g.config.preview_resolutions == [128]


def test_previews_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "ir")
    for wrong, message in (
        ("64", "this generator of 32 px has features of 4, 8, 16"),
        ("x", "expected sizes such as"),
    ):
        with suppress(SystemExit):
            main(["convert", str(tmp_path / "ir"), str(tmp_path / "out"), "--previews", wrong])
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert main(["convert", str(tmp_path / "ir"), str(tmp_path / "out"), "--previews", "none"]) == 0
    with pytest.raises(ConversionError, match="--previews is for a MobileStyleGAN"):
        convert(parity_file("nvidia-ada-tiny32.pkl"), tmp_path / "more", progress=False, previews=(8,))


def test_options(tmp_path: Path) -> None:
    write_model(tmp_path / "ir")
    g = converted(tmp_path / "ir", tmp_path / "out", truncation_psi=0.5, dtype="fp16", kind="mobilestylegan")
    assert g.config.truncation_psi == 0.5
    half = MobileStyleGANGenerator.from_pretrained(tmp_path / "out/generator", variant="fp16", dtype=torch.float16)
    assert half.dtype == torch.float16
    with pytest.raises(ConversionError, match="has no discriminator"):
        convert(tmp_path / "ir", tmp_path / "more", with_discriminator=True, progress=False)


def zipped(folder: Path, target: Path, inside: str = "random_face/data", **options) -> Path:
    with zipfile.ZipFile(target, "w", **options) as archive:
        archive.writestr("random_face/__init__.py", "raise SystemExit")
        for file in sorted(folder.iterdir()):
            archive.write(file, f"{inside}/{file.name}")
    return target


def test_every_place_that_a_model_can_be_in(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "package/data")
    (tmp_path / "package/__init__.py").write_text("raise SystemExit")
    places = {
        "folder": folder,
        "package": tmp_path / "package",
        "mapping": folder / "a.xml",
        "synthesis": folder / "b.xml",
        "weights": folder / "b.bin",
        "stored": zipped(folder, tmp_path / "model.whl"),
        "deflated": zipped(folder, tmp_path / "small.zip", "", compression=zipfile.ZIP_DEFLATED),
    }
    models = {name: converted(place, tmp_path / f"out of {name}") for name, place in places.items()}
    first = models["folder"].state_dict()
    for name, model in models.items():
        assert all(torch.equal(value, first[key]) for key, value in model.state_dict().items()), name


def test_names_of_files_decide_nothing(tmp_path: Path) -> None:
    write_model(tmp_path / "ir", stems=("SynthesisNetwork", "MappingNetwork"))
    swapped = converted(tmp_path / "ir", tmp_path / "out")
    write_model(tmp_path / "right")
    right = converted(tmp_path / "right", tmp_path / "more")
    assert torch.equal(swapped.affine_weight, right.affine_weight)


def test_constants_that_play_no_part_are_named(tmp_path: Path) -> None:
    spec = Spec(name=lambda i: f"number {i}")
    emitter = write_synthesis(spec)
    loose = emitter.const(torch.arange(40.0))
    write_mapping(spec).save(tmp_path / "ir", "a")
    emitter.save(tmp_path / "ir", "b")
    report = convert(tmp_path / "ir", tmp_path / "out", progress=False)
    assert len(report.unused) == 1 and f"layer {loose.layer} 'number {loose.layer}' (Const)" in report.unused[0]


@pytest.mark.skipif(FACES not in os.environ, reason=f"{FACES} does not name the wheel of random-face")
def test_the_published_network(tmp_path: Path) -> None:
    """1024 px, held to the graph."""
    source = Path(os.environ[FACES])
    folder = source
    if source.is_file():
        with zipfile.ZipFile(source) as archive:
            archive.extractall(tmp_path / "wheel")
        (found,) = (tmp_path / "wheel").rglob("SynthesisNetwork.xml")
        folder = found.parent
    g = converted(source, tmp_path / "out")
    assert g.style_dim == 6752 and g.config.resolution == 1024 and g.num_ws == 18
    errors = assert_same(g, folder / "MappingNetwork.xml", folder / "SynthesisNetwork.xml", psi=0.7, samples=2)
    print("errors of codes and pictures:", errors)


# --- Refusals --------------------------------------------------------------------------------------------------------


def refused(source: Path, message: str, **options) -> str:
    """The one line that a source is refused with; nothing is written."""
    with pytest.raises(ConversionError, match=message) as found:
        convert(source, source.parent / "refused", progress=False, **options)
    text = str(found.value)
    assert len(text.splitlines()) == 1 and len(text) < 700 and text.isprintable()
    assert not (source.parent / "refused").exists()
    return text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "ir")


def edit(folder: Path, old: str, new: str, file: str = "b.xml", count: int = 1) -> None:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, count))


def test_a_truncated_file_of_weights(folder: Path) -> None:
    data = (folder / "b.bin").read_bytes()
    for size in (0, 3, len(data) // 2, len(data) - 1):
        (folder / "b.bin").write_bytes(data[:size])
        refused(folder, "truncated|empty")


def test_files_that_do_not_belong_together(folder: Path, tmp_path: Path) -> None:
    a, b = (folder / "a.bin").read_bytes(), (folder / "b.bin").read_bytes()
    (folder / "a.bin").write_bytes(b)
    (folder / "b.bin").write_bytes(a)
    refused(folder, "from different networks|another network's")
    (folder / "a.bin").write_bytes(a)
    (folder / "b.bin").write_bytes(b)
    for name in ("b.xml", "b.bin"):  # the mapping network in place of the synthesis network
        shutil.copy(folder / name.replace("b.", "a."), folder / name)
    refused(folder, r"a generator has one mapping network, z to w; there is 2 \(a.xml, b.xml\) here")
    (folder / "b.xml").unlink()
    refused(folder, "one synthesis network, w to a picture; there is none here")
    write_synthesis(Spec(w_dim=20)).save(folder, "b")
    refused(folder, "takes a w of 20 numbers, but .* gives 16")
    write_synthesis(Spec()).save(folder, "b")
    write_synthesis(Spec(seed=9)).save(folder, "c")
    refused(folder, r"there is 2 \(b.xml, c.xml\) here")


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    (folder / "b.bin").unlink()
    refused(folder, "its weights, b.bin beside it, are missing")
    refused(folder / "b.xml", "its weights, b.bin beside it, are missing")
    (folder / "b.xml").unlink()
    refused(folder / "a.xml", "one synthesis network.* there is none here")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, "holds no OpenVINO network", kind="mobilestylegan")


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "ha"}">' for i in range(12))


@pytest.mark.parametrize(("head", "message"), [
    (f"<!DOCTYPE net [{LAUGHS}]>", "declares a document type"),
    ('<!DOCTYPE net SYSTEM "file:///etc/passwd">', "declares a document type"),
    ('<!DOCTYPE net [<!ENTITY x SYSTEM "file:///etc/passwd">]>', "declares a document type"),
    ("<unfinished", "not well-formed XML"),
    ("&bomb;", "not well-formed XML"),
    ("\x00", "not well-formed XML"),
])  # fmt: skip
def test_hostile_xml(head: str, message: str, folder: Path) -> None:
    edit(folder, "<net ", f"{head}<net ")
    refused(folder, message)


@pytest.mark.parametrize(("xml", "message"), [
    (b"", "empty"),
    (b"<html></html>", "XML of <html>, not an OpenVINO network"),
    (b"<net version='7'/>", "IR version '7'; versions 10 and 11"),
    (b"<net version='99999999999999999999999'/>", "IR version"),
    (b"<net/>", "IR version ''"),
    (b"<net version='10'/>", "its constants end at byte 0"),
    (b"<net version='10'>" + b"<a>" * 40 + b"</a>" * 40 + b"</net>", "nests deeper"),
    (b"<net version='10' " + b" ".join(b"a%d='1'" % i for i in range(100)) + b"/>", "more attributes"),
    (b"<?xml version='1.0' encoding='klingon'?><net version='10'/>", "XML"),
    (b"\xff\xfe\x00\x01", "XML"),
    (b"PK\x03\x04", "XML"),
])  # fmt: skip
def test_what_is_no_network(xml: bytes, message: str, folder: Path) -> None:
    (folder / "b.xml").write_bytes(xml)
    refused(folder / "b.xml", message)


def test_the_bounds_of_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, message in (("MAX_XML", 1000, "bytes of XML"), ("MAX_LAYERS", 20, "more than 20 layers")):
        with monkeypatch.context() as patch:
            patch.setattr(openvino_ir, name, value)
            refused(folder, message)
    for name, value, message in (
        ("MAX_NUMBERS", 100, "more than can be handled"),
        ("MAX_FOLDED", 50, "from constants"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(ir_network, name, value)
            refused(folder, message)


def numbered(folder: Path, kind: str, which: int = 0) -> str:
    """The id of a layer of that type."""
    return re.findall(rf'<layer id="(\d+)"[^>]* type="{kind}"', (folder / "b.xml").read_text())[which]


def test_a_cycle(folder: Path) -> None:
    name = numbered(folder, "PReLU")
    text = (folder / "b.xml").read_text()
    edge = re.search(rf'<edge from-layer="(\d+)" from-port="(\d+)" to-layer="{name}" to-port="0"/>', text)
    looped = edge[0].replace(f'from-layer="{edge[1]}" from-port="{edge[2]}"', f'from-layer="{name}" from-port="2"')
    (folder / "b.xml").write_text(text.replace(edge[0], looped))
    refused(folder, rf"its edges form a cycle: layer {name} .*PReLU.* depends on itself")


@pytest.mark.parametrize(("change", "message"), [
    (lambda text, edge: text.replace(edge, ""), "no edge leads to port 0 of layer .*PReLU"),
    (lambda text, edge: text.replace(edge, edge + edge), "two edges lead to port 0 of layer .*PReLU"),
    (lambda text, edge: text.replace(edge, re.sub('from-layer="[0-9]+"', 'from-layer="x"', edge)), "does not exist"),
    (lambda text, edge: text.replace(edge, re.sub('from-port="[0-9]+"', 'from-port="77"', edge)), "does not exist"),
    (lambda text, edge: text.replace(edge, re.sub('to-port="[0-9]+"', 'to-port="77"', edge)), "does not exist"),
    (lambda text, edge: text.replace('<layer id="5"', '<layer id="4"'), "two layers of the id '4'"),
    (lambda text, edge: text.replace("<port id=", "<port ident="), "does not exist|two (in|out)put ports"),
])  # fmt: skip
def test_graphs_that_are_none(change: Callable[[str, str], str], message: str, folder: Path) -> None:
    text = (folder / "b.xml").read_text()
    edge = re.search(
        rf'<edge from-layer="\d+" from-port="\d+" to-layer="{numbered(folder, "PReLU")}" to-port="0"/>', text
    )
    (folder / "b.xml").write_text(change(text, edge[0]))
    refused(folder, message)


@pytest.mark.parametrize(("old", "new", "message"), [
    (r'offset="\d+"', 'offset="999999999"', "ends at byte .* truncated, or another network's"),
    (r'offset="\d+"', 'offset="-4"', "not whole numbers within bounds"),
    (r'offset="\d+"', 'offset="1e3"', "not whole numbers within bounds"),
    (r'offset="\d+"', f'offset="{"9" * 5000}"', "not whole numbers within bounds"),
    (r'offset="\d+"', "", "not whole numbers within bounds"),
    (r' size="\d+"', ' size="12"', "take .* bytes, not 12"),
    (r'shape="[\d, ]+" offset', 'shape="16777216, 16777216, 16777216" offset', "bytes, not"),
    (r'shape="[\d, ]+" offset', f'shape="{"1, " * 300}1" offset', "not whole numbers within bounds"),
    (r'shape="[\d, ]+" offset', 'shape="1, -1" offset', "not whole numbers within bounds"),
    (r'element_type="f32" shape="[\d, ]+" offset', 'element_type="f\N{SNOWMAN}" shape="1" offset', "unknown type"),
    ('shape="1, 16"', 'shape="1, 99999999999"', "expected 1, WIDTH of f32"),
    ('shape="1, 16"', 'shape="1, 17"', "declares an output of 1x16, but gives 1x17"),
    ('shape="1, 16"', 'shape="16"', "expected 1, WIDTH of f32"),
    ("<dim>16</dim>", "<dim>15</dim>", "declares an output of .*15.*, but gives"),
])  # fmt: skip
def test_constants_and_shapes_that_do_not_fit(old: str, new: str, message: str, folder: Path) -> None:
    text = (folder / "b.xml").read_text()
    changed = re.sub(old, new, text, count=1)
    assert changed != text
    (folder / "b.xml").write_text(changed)
    refused(folder, message)


@pytest.mark.parametrize(("value", "message"), [
    (math.nan, "inf or nan"),
    (math.inf, "inf or nan"),
])  # fmt: skip
def test_weights_that_are_no_numbers(value: float, message: str, folder: Path) -> None:
    data = floats((folder / "b.bin").read_bytes())
    data[:40] = value  # of the first layer's constant or weights
    (folder / "b.bin").write_bytes(data.tobytes())
    refused(folder, message)


# --- Other architectures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "old", "new", "message"), [
    ("PReLU", 'type="PReLU"', 'type="Elu"', r"layer \d+ .*\(Elu\): is an unsupported operation"),
    ("Convolution", 'strides="1, 1"', 'strides="2, 2"', r"\(Convolution\): declares an output of"),
    ("Convolution", 'strides="1, 1"', 'strides="1"', "has strides='1', expected two numbers"),
    ("Convolution", 'auto_pad="explicit"', 'auto_pad="same_upper"', "pads its sides unequally or automatically"),
    ("MatMul", 'transpose_a="false"', 'transpose_a="true"', r"\(MatMul\): its inputs .* do not fit it"),
    ("Result", 'type="Result"', 'type="Sink"', "has 0 layers of the type Result, expected one"),
    ("Parameter", 'element_type="f32"', 'element_type="u8"', "expected 1, WIDTH of f32"),
])  # fmt: skip
def test_a_changed_attribute(kind: str, old: str, new: str, message: str, folder: Path) -> None:
    text = (folder / "b.xml").read_text()
    start = text.index(f'type="{kind}"')
    (folder / "b.xml").write_text(text[:start] + text[start:].replace(old, new, 1))
    refused(folder, message)


def replaced(folder: Path, file: str, old: list[float], new: list[float]) -> None:
    """Other numbers for a constant."""
    before, after = (torch.tensor(values).numpy().tobytes() for values in (old, new))
    data = (folder / file).read_bytes()
    assert data.count(before) == 1
    (folder / file).write_bytes(data.replace(before, after))


def test_the_first_layer_that_differs_is_named(folder: Path) -> None:
    def differs(kind: str, expected: str) -> None:
        message = rf"is not a supported MobileStyleGAN: layer \d+ .*\({kind}\) gives [\dx]+ where {expected}"
        refused(folder, message)

    write_model(folder, Spec(slope=0.1))
    differs("PReLU", r"a leaky ReLU of slope 0\.2, not 0\.1, is expected")
    write_model(folder)
    haar, other = [1 / math.sqrt(2)] * 6, [0.5] * 6
    replaced(folder, "b.bin", haar, other)
    differs("Add", "the inverse Haar transform of bands LL, then LH, HL, HH of each channel, is expected")
    for kind, expected in (("Add", ".* is expected"), ("Multiply", ".* is expected")):
        write_model(folder)
        edit(folder, f'type="{kind}"', 'type="Subtract"', count=10**6)
        differs("Subtract", expected)


def test_a_mapping_network_without_pixel_norm(folder: Path) -> None:
    replaced(folder, "a.bin", [1e-8], [1.0])  # what is added to the mean square
    refused(folder, r"a\.xml: is not a supported MobileStyleGAN: layer \d+ .* is expected")


def test_layers_that_skip_others_or_repeat(folder: Path) -> None:
    """A network of the same layers in another order."""
    text = (folder / "b.xml").read_text()
    activation = numbered(folder, "PReLU", 1)
    edge = re.search(rf'<edge from-layer="(\d+)" from-port="2" to-layer="{activation}" to-port="0"/>', text)
    before = re.search(rf'<edge from-layer="(\d+)" from-port="2" to-layer="{edge[1]}" to-port="0"/>', text)
    skipped = edge[0].replace(f'from-layer="{edge[1]}"', f'from-layer="{before[1]}"')
    (folder / "b.xml").write_text(text.replace(edge[0], skipped))
    refused(folder, "is not a supported MobileStyleGAN: layer .* a bias after a 1 x 1 convolution is expected")


# --- Archives --------------------------------------------------------------------------------------------------------


def test_hostile_archives(folder: Path, tmp_path: Path) -> None:
    whole = zipped(folder, tmp_path / "whole.whl")
    cut = tmp_path / "cut.whl"
    cut.write_bytes(whole.read_bytes()[:-30])
    refused(cut, "truncated|damaged")
    bomb = tmp_path / "bomb.whl"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m.xml", " " * 50_000_000)
        archive.writestr("m.bin", b"\0" * 50_000_000)
    refused(bomb, "zip bomb")
    plain = tmp_path / "plain.whl"
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr("package/__init__.py", "")
    refused(plain, "holds no OpenVINO network", kind="mobilestylegan")
    refused(plain, "is a zip file, but not one of torch.save")
