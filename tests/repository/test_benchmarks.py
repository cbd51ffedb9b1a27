"""What the benchmark compares with computes the same, and its floors count what they say."""

import json

import pytest
import torch
from PIL import Image

from benchmarks import photograph_tables, photographs, refined_gates, speed
from benchmarks.edits import Bench, at_equal
from benchmarks.inversion import inverted_subject
from benchmarks.loops import authors_fusion, nvidia_synthesis
from benchmarks.timing import medians
from stylefusion_hf import FusionHierarchy
from stylefusion_hf.evaluation.measuring import Subject
from stylefusion_hf.evaluation.pairs import FITTING_SEED
from stylefusion_hf.evaluation.statistics import resamples
from stylefusion_hf.models.sampling import draw_codes
from stylefusion_hf.pipelines.refining import frozen_networks
from tests.pipelines.test_photograph import POINTS, photograph
from tests.planted import planted_pipeline
from tests.tiny import STYLE_DIM, draw, tiny_encoder, tiny_generator, tiny_pipeline, tiny_segmenter

CPU = torch.device("cpu")


@pytest.mark.parametrize("batch", [1, 3])
def test_the_loops_give_our_numbers(batch):
    g = tiny_generator().requires_grad_(False)
    torch.manual_seed(1)
    fusion = FusionHierarchy(
        "avatar", g.conv_sizes, g.rgb_sizes, padded_width=16, hidden_width=8, common_conv_layers=3
    )
    codes = {node: torch.randn(batch if node != "eyes" else 1, g.style_dim) for node in fusion.tree.nodes}
    fused = fusion.fuse(codes)
    torch.testing.assert_close(authors_fusion(fusion, codes), fused, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(nvidia_synthesis(g, fused), g.synthesis(fused), rtol=1e-4, atol=1e-4)


class Rates:
    copy_rate, product_rate = 1e9, 1e9

    def conv_rate(self, *shape):
        return 1e9


def test_floors_count_weights_and_products():
    fusion = FusionHierarchy("a*(b, c)", [8], [8], padded_width=8, hidden_width=16, hidden_layers=1)
    segments, common = (3 * 8 + 190) * 16 + 16 * 8 + 8 * 8, (2 * 8 + 190) * 16 + 16 * 8 + 8 * 8
    biases = 2 * (16 + 8 + 8)
    reading = 4 * (segments + common + biases) / 1e9
    products = 2 * (2 * segments + 4 * common) / 1e9
    assert speed.fusion_floor(fusion, 1, 1, Rates()) == pytest.approx(max(reading, products))
    assert speed.fusion_floor(fusion, 3, 10**6, Rates()) == pytest.approx(3 * products)
    g = tiny_generator()  # 8 channels: one convolution at 4 px, two a block above, the first of them at half the size
    pixels = 4**2 + sum((r // 2) ** 2 + r**2 for r in (8, 16, 32))
    assert speed.synthesis_floor(g, Rates()) == pytest.approx(2 * 9 * 64 * pixels / 1e9)


def test_style_sizes_are_the_generators():
    g = tiny_generator(channels=[8, 6, 4, 2])
    assert speed.style_sizes([8, 6, 4, 2]) == (g.conv_sizes, g.rgb_sizes)


def test_jobs_take_turns():
    order = []
    found = medians({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CPU, rounds=3)
    assert order == ["a", "b"] * 4 and found.keys() == {"a", "b"}  # the first turn warms up
    assert len(found) == 2 and min(found.values()) >= 0


def test_the_table_leaves_out_what_was_not_measured():
    text = speed.table([speed.Row("fusion", "x", 0.002, 0.02, 0.001), speed.Row("call", "y", 0.1)])
    assert "| fusion, x | 2.0 | 20.0 | 10.0 | 1.0 | 2.00 |" in text and "| call, y | 100.0 |  |  |  |  |" in text


def test_corrections_fit_their_own_mix_and_its_neighbors():
    pipe, draws = planted_pipeline(), torch.Generator().manual_seed(0)
    networks, height = frozen_networks(pipe)
    assert height == pipe.generator.config.resolution
    samples = iter(lambda: draw_codes(pipe.generator, 12, draws, 0.5, 0.0), None)
    found = refined_gates.carried_over(networks, "a", samples, 3, 6)
    assert found["the same mix"] == pytest.approx(1, abs=0.05)
    near, far = (found[f"base {share} of the way to another"] for share in ("10%", "30%"))
    assert 1 > near > far > found["another base"]
    with pytest.raises(SystemExit):
        refined_gates.main(["--regions", "hiar"])


def test_edits_read_the_ratio_where_the_inside_is_equal():
    whole_in, whole_out = draw(20).abs() + 1, draw(20, seed=1).abs() + 1
    # inside grows as a^2, outside as a^3 / 8: equal inside at a = 2, where the ratio is 2
    sums = [torch.stack([whole_in * a**2 / 4, whole_out * a**3 / 16, whole_in, whole_out]).double() for a in (1, 3)]
    draws = at_equal(resamples(20), sums, [1.0, 3.0])
    assert torch.allclose(draws.exp(), torch.full_like(draws, 2.0), atol=1e-6)


def test_a_projected_edit_spares_what_lies_outside():
    pipe = planted_pipeline()
    bench = object.__new__(Bench)  # without the avatars' judges
    bench.pipe, bench.rank, bench.batch, bench.spans, bench.size = pipe, 16, 4, {}, None
    bench.regions = list(pipe.segmenter.config.regions)
    bench.base = draw(4, STYLE_DIM)
    bench.deviation = torch.ones(STYLE_DIM)
    plain = bench.pictures(bench.base)
    bench.labels = pipe.segmenter.segment(plain).argmax(dim=1)
    offset = draw(1, STYLE_DIM, seed=3)
    projected = bench.edited("right", 1e-3 * offset)
    basis = bench.spans["right"]
    torch.testing.assert_close(basis.transpose(1, 2) @ basis, torch.eye(64).expand(4, -1, -1), atol=1e-4, rtol=0)
    step = projected - bench.base
    assert (basis[..., :16].transpose(1, 2) @ step[..., None]).abs().max() < 1e-5
    outside = (bench.labels != 2)[:, None]
    changes = [((bench.pictures(s) - plain).square() * outside).sum() for s in (projected, bench.base + 1e-3 * offset)]
    assert changes[0] < 0.5 * changes[1]


def test_inverted_pictures_are_paired_two_by_two():
    plain, codes = Subject(tiny_pipeline(segmenter=True), None, None, batch=2), draw(6, STYLE_DIM)
    subject = inverted_subject(plain, codes)
    found = list(subject.pairs(3))
    assert [len(part) for part in found] == [2, 1]
    assert torch.equal(torch.cat([part.base for part in found]), codes[0::2])
    assert torch.equal(torch.cat([part.source for part in found]), codes[1::2])
    assert torch.equal(torch.cat([part.unrelated for part in found]), codes[[3, 5, 1]])  # the next pair's source
    assert found[0].plain.shape == (2, 3, 32, 32)
    (fitting,) = subject.pairs(2, FITTING_SEED)  # heads are chosen on the samples that all tables share
    assert torch.equal(fitting.base, next(iter(plain.pairs(2, FITTING_SEED))).base)


@pytest.fixture
def portraits(tmp_path):
    """Two photographs with landmarks, a model and judges: the arguments of a benchmark."""
    files = [tmp_path / f"{name}.png" for name in ("me", "you")]
    for seed, file in enumerate(files):
        photograph(seed=seed).save(file)
    (tmp_path / "points.json").write_text(json.dumps({file.name: POINTS.tolist() for file in files}))
    pipe = tiny_pipeline(segmenter=True)
    pipe.register_modules(encoder=tiny_encoder())
    pipe.save_pretrained(tmp_path / "model")
    tiny_segmenter(seed=1).save_pretrained(tmp_path / "judges" / "segmenter")
    where = ["--model", tmp_path / "model", "--landmarks", tmp_path / "points.json", "--judges", tmp_path / "judges"]
    return [str(argument) for argument in (*files, *where)]


def test_the_stages_of_photographs(portraits, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(photographs, "load_backbone", lambda name: lambda x: x.mean(dim=(2, 3)))
    call = [*portraits, "--table", "stages", "--steps", "2", "--tune", "1", "--backbone", "colors"]
    photographs.main([*call, "--rows", str(tmp_path / "rows.json")])
    said = capsys.readouterr().out
    names = ["mean face", "mean face + 2 steps", "encoder", "encoder + 2 steps", "encoder + 2 steps + 1 of tuning"]
    assert [line.split(" | ")[0][2:] for line in said.splitlines() if line.startswith("| ")][1:] == names
    assert (
        "| start and search | photographs | MSE | explained | likeness | recognized | regions | CPU seconds |" in said
    )
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 10 and rows["encoder + 2 steps, me"]["MSE"] <= rows["encoder, me"]["MSE"]
    photographs.main([*call, "--rows", str(tmp_path / "rows.json")])
    assert "encoder, me:" not in capsys.readouterr().out, "measured again"
    photographs.main([*call, "--rows", str(tmp_path / "rows.json"), "--starts", "encoder", "--tuned", "1"])
    found = [line.split(" | ")[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert found == [["| encoder", "2"], ["| encoder + 2 steps", "2"], ["| encoder + 2 steps + 1 of tuning", "1"]]


def test_what_separates_faces_from_other_pictures(portraits, tmp_path, capsys):
    call = [*portraits, "--table", "likeness", "--steps", "0"]
    photographs.main(call)
    said = capsys.readouterr().out
    assert "| checkerboard |" in said and "lowest to highest of 2" in said and "Lowest face" in said
    photographs.main([*call, "--others", portraits[0]])
    said = capsys.readouterr().out
    assert "| me |" in said and "| checkerboard |" not in said


def test_the_leak_of_dials_on_photographs_and_samples(portraits, tmp_path, capsys):
    call = [*portraits, "--steps", "1", "--codes", str(tmp_path / "kept")]
    photographs.main([*call, "--table", "stages"])
    assert sorted(file.name for file in (tmp_path / "kept").iterdir()) == ["me.safetensors", "you.safetensors"]
    capsys.readouterr()
    photographs.main(
        [*call, "--table", "leak", "--region", "hair", "--sources", "2", "--rows", str(tmp_path / "rows.json")]
    )
    said = capsys.readouterr().out
    assert "| region | leak, photographs | outside, photographs | leak, samples | outside, samples |" in said
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 2 * 2 * 2  # photographs, sources, and a sample for each
    for row in rows.values():
        outside, everything, swapped, counts = row["hair"]
        assert 0 <= outside <= everything and swapped > 0 and counts in (0, 1)


def test_likeness_is_1_for_the_same_and_0_for_another_person():
    face, others = draw(5), draw(4, 5, seed=1)
    assert photograph_tables.likeness(face, face, others) == 1
    assert abs(photograph_tables.likeness(face, draw(5, seed=2), face.expand(3, -1))) < 1e-6
    assert (
        photograph_tables.likeness(face, others[0] * 0.9, others[:1])
        < 0
        < photograph_tables.likeness(face, 0.9 * face, others)
    )
    assert photograph_tables.person("photos/032-smiling.jpg") == photograph_tables.person("032-neutral.jpg") == "032"


def test_edited_photographs_are_measured(tmp_path, capsys):
    photograph().save(tmp_path / "me.png")
    (tmp_path / "points.json").write_text(json.dumps(POINTS.tolist()))
    tiny_pipeline(segmenter=True).save_pretrained(tmp_path / "model")
    call = [str(tmp_path / "me.png"), "--model", str(tmp_path / "model"), "--region", "hair=7", "--steps", "1"]
    photographs.main([*call, "--landmarks", str(tmp_path / "points.json"), "--recipes", str(tmp_path / "r.json")])
    said = capsys.readouterr().out
    assert "outside 0," in said and "paste " in said and "edited " in said
    assert len(json.loads((tmp_path / "r.json").read_text())) == 1
    flat, half = Image.new("L", (8, 8), 9), Image.new("L", (8, 8))
    half.paste(255, (4, 0, 8, 8))
    assert photographs.seam(flat, half) == 0 and photographs.seam(half, half) == 255
