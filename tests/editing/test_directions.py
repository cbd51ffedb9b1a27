"""Finding directions: closed forms against plain references, planted boundaries, the command."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from stylefusion_hf import Code
from stylefusion_hf.cli import main
from stylefusion_hf.core.edits import load_directions
from stylefusion_hf.editing.directions import (
    STATISTICS,
    boundary_from_labels,
    boundary_from_regions,
    ganspace,
    measure_regions,
    principal_components,
    sample_w,
    sefa,
    style_channel,
)
from stylefusion_hf.imaging import sheets
from tests.tiny import (
    RESOLUTION,
    W_DIM,
    draw,
    tiny_generator,
    tiny_mobile_generator,
    tiny_pipeline,
    tiny_segmenter,
)


@pytest.fixture(scope="module")
def g():
    return tiny_generator().requires_grad_(False)


@pytest.mark.parametrize("layers", [None, [0, 3]])
def test_sefa_is_the_eigenvectors_of_the_affine_layers(g, layers):
    found = sefa(g, 5, layers)
    matrix = g.affine_weight.double() / W_DIM**0.5
    if layers:
        matrix = matrix[[k for k, row in enumerate(g.style_rows.tolist()) if row in layers]]
    _, values, vectors = torch.linalg.svd(matrix)
    for k, direction in enumerate(found):
        v = direction.tensor.double()
        assert torch.allclose(matrix.t() @ (matrix @ v), values[k] ** 2 * v, atol=1e-4)
        assert abs(float(v @ vectors[k])) == pytest.approx(1, abs=1e-5)
        assert v[v.abs().argmax()] > 0
        assert direction.scale == pytest.approx(float((sample_w(g, 2000) @ direction.tensor).std()), rel=1e-4)
        assert direction.layers == (None if layers is None else (0, 3))
    assert [direction.name for direction in found] == [f"sefa-{k}" for k in range(5)]


@pytest.mark.parametrize("shape", [(200, 12), (20, 300)])
def test_principal_components_are_those_of_the_samples(shape):
    x = draw(*shape) * torch.linspace(3, 1, shape[1]) + 5
    vectors, deviations = principal_components(x, 4)
    centred = x.double() - x.double().mean(0)
    _, values, reference = torch.linalg.svd(centred, full_matrices=False)
    assert torch.allclose(deviations, values[:4] / (len(x) - 1) ** 0.5)
    assert torch.allclose((vectors * reference[:4]).sum(1).abs(), torch.ones(4, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(vectors @ vectors.t(), torch.eye(4, dtype=torch.float64), atol=1e-6)


def test_ganspace_of_w_and_of_features(g):
    w = sample_w(g, 500)
    found = ganspace(g, 3, samples=500)
    _, values, vectors = torch.linalg.svd(w - w.mean(0), full_matrices=False)
    for k, direction in enumerate(found):
        assert abs(float(direction.tensor @ vectors[k])) == pytest.approx(1, abs=1e-3)
        assert direction.scale == pytest.approx(float(values[k]) / 499**0.5, rel=1e-3)
    assert [direction.name for direction in found] == ["pc000", "pc001", "pc002"]

    found = ganspace(g, 2, samples=300, space="features", resolution=4)
    w = sample_w(g, 300)
    x = g.synthesis(g.to_style(w), return_features=True)[1][4].flatten(1)
    u, values, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    coordinates = u * values
    for k, direction in enumerate(found):
        fit = torch.linalg.lstsq(coordinates[:, :6], w - w.mean(0)).solution[k] * values[k] / 299**0.5
        cosine = torch.nn.functional.cosine_similarity(fit, direction.tensor, dim=0)
        assert abs(float(cosine)) == pytest.approx(1, abs=1e-3)
        assert direction.scale == pytest.approx(float(fit.norm()), rel=1e-2)


def test_a_boundary_finds_the_planted_direction():
    codes, planted = draw(3000, 16) * torch.linspace(0.5, 3, 16), draw(16, seed=1)
    planted /= planted.norm()
    along = codes @ planted
    for labels in (along > 0, (along > 0).int() * 2 - 1, along * 3 + 7, (along * 3).tolist()):
        direction = boundary_from_labels(codes, labels, "smile")
        assert float(direction.tensor @ planted) > 0.98
        assert float(direction.tensor.norm()) == pytest.approx(1)
        assert direction.scale == pytest.approx(float((codes @ direction.tensor).std()), rel=1e-3)
    assert boundary_from_labels(codes, along).provenance["r2"] > 0.999
    rows = codes.reshape(3000, 4, 4)
    assert boundary_from_labels(rows, along, space="w+").tensor.shape == (4, 4)
    for labels, message in (
        ([1] * 3000, "all labels are the same"),
        ([1, 2], "one label per code for 3000 codes"),
        (along / 0, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            boundary_from_labels(codes, labels)


class Planted:
    """A segmenter that sees "hair" all over the picture, as strongly as the picture is bright."""

    def __init__(self):
        self.config = type("Config", (), {"regions": ["background", "hair"]})
        self.dtype = torch.float32

    def segment(self, images):
        level = images.mean((1, 2, 3))[:, None, None].expand(-1, *images.shape[2:])
        return torch.stack([torch.zeros_like(level), level], 1)


def test_a_boundary_of_a_region_moves_its_statistic(g):
    direction = boundary_from_regions(g, Planted(), "hair", "area", samples=400)
    w = sample_w(g, 100, seed=9) * 0.3
    pictures = [g.synthesis(g.to_style(w + a * direction.scale * direction.tensor)) for a in (-1, 0, 1)]
    low, middle, high = (Planted().segment(x.clamp(-1, 1))[:, 1].mean() for x in pictures)
    assert low < middle < high
    assert direction.name == "hair-area" and direction.provenance["r2"] > 0.1

    segmenter = tiny_segmenter()
    measured = measure_regions(g, segmenter, 130)
    assert set(measured.values) == {(region, s) for region in segmenter.config.regions for s in STATISTICS}
    assert sum(measured.values[region, "area"] for region in segmenter.config.regions).allclose(torch.ones(130))
    with pytest.raises(ValueError, match="unknown region 'hare'"):
        boundary_from_regions(g, segmenter, "hare", measured=measured)
    with pytest.raises(ValueError, match="unknown statistic 'size': choose from area"):
        boundary_from_regions(g, segmenter, "hair", "size", measured=measured)


def test_a_style_channel_changes_one_number(g):
    direction = style_channel(g, "conv2", 3)
    code = Code(g.to_style(sample_w(g, 2)), "s")
    changed = direction(2.0)(code, g).tensor - code.tensor
    assert (changed[0] != 0).sum() == 1
    column = g.split_style(changed)["conv2"][:, 3]
    deviation = g.split_style(g.to_style(sample_w(g, 2000)))["conv2"][:, 3].std()
    assert torch.allclose(column, 2 * deviation.expand(2), rtol=1e-3)
    with pytest.raises(ValueError, match="this generator has no layer 'conv9': it has conv0"):
        style_channel(g, "conv9", 0)
    with pytest.raises(ValueError, match="from 0 to 7, got 8"):
        style_channel(g, "conv2", 8)


def test_samples_are_the_same_every_time_and_have_classes_where_the_generator_has():
    g = tiny_generator(label_dim=3)
    assert torch.equal(sample_w(g, 50, 1), sample_w(g, 50, 1))
    assert not torch.equal(sample_w(g, 50, 1), sample_w(g, 50, 2))
    assert sample_w(g, 50).std(dim=0).min() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: sefa(g, 17), "count is an integer from 1 to 16"),
        (lambda g: sefa(g, 1, [8]), "from 0 to 7, got 8"),
        (lambda g: sefa(g, 1, []), "layers is empty"),
        (lambda g: ganspace(g, 1, 10, space="z"), "unknown space 'z'"),
        (lambda g: ganspace(g, 1, 10, space="features", resolution=5), "4, 8, 16, 32 pixels, not 5"),
        (lambda g: ganspace(g, 10, 5), "from 1 to 4, got 10"),
        (lambda g: sample_w(g, 1), "samples is an integer from 2"),
    ],
)
def test_finding_refuses(g, call, message):
    with pytest.raises(ValueError, match=message):
        call(g)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline(segmenter=True).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("method", ["sefa", "ganspace", "regions"])
def test_discover_writes_directions_and_a_sheet(elsewhere, model, capsys, method):
    argv = ["discover", "--method", method, "--count", "2", "--samples", "300", "--model", model]
    assert main(["directions", *argv, "--out", "new/d.safetensors", "--sheet", "d.png"]) == 0
    found = load_directions("new/d.safetensors")
    assert len(found) == 2 and all(name in capsys.readouterr().out for name in list(found)[:1])
    with Image.open("d.png") as sheet:
        assert sheet.width > 7 * RESOLUTION and sheet.height > 2 * RESOLUTION
    if method == "sefa":
        argv = ["--file", "new/d.safetensors", "--region", "hair", "--out", "hair.png", "--model", model]
        assert main(["directions", "sheet", *argv]) == 0
        assert Path("hair.png").read_bytes() != Path("d.png").read_bytes()


# ----------------------------------------------------------------------------------------------------
# Large generators.


def test_components_of_large_samples_are_found_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw(300, 400) * torch.logspace(1, -3, 400)  # a spectrum that falls, as those of feature maps do
    exact, deviations = principal_components(x, 5)
    monkeypatch.setattr("stylefusion_hf.editing.directions.EXACT", 64)
    state = torch.random.get_rng_state()
    found, spreads = principal_components(x, 5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(found, principal_components(x, 5)[0])  # seeded
    assert found.shape == (5, 400) and found.dtype == torch.float64
    assert torch.allclose(spreads, deviations, rtol=1e-3)
    assert ((found * exact).sum(dim=1).abs() > 0.999).all()


def test_feature_maps_beyond_memory_are_refused_before_sampling(g, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stylefusion_hf.editing.directions.sample_w", None)
    with pytest.raises(ValueError, match=r"100000000 feature maps of 8 pixels take .* GiB: use up to \d+ samples"):
        ganspace(g, 1, samples=10**8, space="features", resolution=8)


def test_rows_that_drive_nothing_have_no_directions() -> None:
    generator = tiny_mobile_generator()  # its last two rows of w+ are those of a StyleGAN2's full size
    with pytest.raises(ValueError, match="rows 6, 7 of w. drive nothing in this generator, whose layers take rows 0"):
        sefa(generator, 1, layers=[6, 7])
    assert sefa(generator, 1, layers=[5, 6], samples=8)[0].layers == (5, 6)


def test_a_sheet_of_directions_keeps_small_pictures_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes: set[tuple[int, int]] = set()
    drawn = sheets.draw_sheet

    def draw_sheet(columns, labels, rows, *args, **kwargs):
        sizes.update(picture.size for row in rows for picture in row)
        return drawn(columns, labels, rows, *args, **kwargs)

    monkeypatch.setattr(sheets, "draw_sheet", draw_sheet)
    monkeypatch.setattr(sheets, "CELL", 8)
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    found = str(tmp_path / "found.safetensors")
    main(["directions", "discover", "--model", str(tmp_path / "model"), "--count", "2", "--samples", "64",
          "--out", found, "--sheet", str(tmp_path / "sheet.png")])  # fmt: skip
    assert sizes == {(RESOLUTION // 2, RESOLUTION // 2)}
