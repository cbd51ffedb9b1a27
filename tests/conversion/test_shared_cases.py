"""Files that people brought and that once failed, as they were found: each gives what is right, or says what to do.

Those of forks and of codes are also in test_forks.py and tests/core/test_foreign_codes.py. They lie beside the parity
data (tests/parity.py); without it these tests are skipped.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylefusion_hf import StyleFusionInterpolationPipeline, StyleFusionPipeline, StyleGenerator
from stylefusion_hf.conversion.convert import convert
from stylefusion_hf.core.code_files import pick_code
from stylefusion_hf.imaging.animation import write_animation
from tests.command_line import fails
from tests.parity import case_file

QUIET = {"progress": False}


@pytest.mark.parametrize(("case", "network"), [("non-square", "init4x6"), ("five-channels", "network")])
def test_pictures_are_those_of_the_references(tmp_path: Path, case: str, network: str) -> None:
    source = case_file(case, f"{network}.pkl")
    reference = case_file(case, "init4x6-ref.safetensors" if case == "non-square" else "ref.safetensors")
    report = convert(source, tmp_path, reference=str(reference), **QUIET)
    assert len(report.comparison) > 2 and not report.mismatches


def test_a_constant_of_odd_sides(tmp_path: Path) -> None:
    convert(case_file("non-square", "init3x5.pkl"), tmp_path, **QUIET)
    g = StyleGenerator.from_pretrained(tmp_path, subfolder="generator")
    assert g.base_size == (3, 5) and g.picture_size == (24, 40)
    pipe = StyleFusionPipeline.from_pretrained(tmp_path)
    assert pipe(base=1).images[0].size == (40, 24)


@pytest.mark.parametrize("case", ["rgba-reference", "tf-reference-picture"])
def test_reference_pictures(tmp_path: Path, case: str) -> None:
    source = case_file(case, "network.pkl" if case == "rgba-reference" else "network-final.pkl")
    report = convert(str(source), str(tmp_path), reference=str(case_file(case, "seed0085.png")), **QUIET)
    assert report.comparison and not report.mismatches


def test_five_channels_are_refused_as_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(case_file("five-channels", "network.pkl"), tmp_path / "m", **QUIET)
    pipe = StyleFusionPipeline.from_pretrained(tmp_path / "m")
    assert pipe(base=1, output_type="pt").images.shape == (1, 5, 32, 32)
    with pytest.raises(ValueError, match=r"img_channels is 5.*output_type"):
        pipe(base=1)
    commands = (["fuse", "--base", "1"], "x.png"), (["sheet"], "x.png"), (["interpolate", "--base", "1,2"], "x.webp")
    for command, name in commands:
        said = fails(capsys, *command, "--out", str(tmp_path / name), "--model", str(tmp_path / "m"))
        assert "img_channels is 5" in said
        assert not (tmp_path / name).exists()


def test_alpha_is_kept_or_put_on_white(tmp_path: Path) -> None:
    folder = case_file("rgba", "model_index.json").parent
    pipe = StyleFusionPipeline.from_pretrained(folder)
    whole = pipe(base=1).images[0]
    assert whole.mode == "RGBA"
    white = Image.new("RGBA", whole.size, "white")
    white.alpha_composite(whole)
    walk = StyleFusionInterpolationPipeline.from_pipe(pipe)
    walk.set_progress_bar_config(disable=True)
    frames = walk(base=[1, 2], frames=2).frames
    for name, mode in (("film.webp", "RGBA"), ("film.gif", "RGB")):
        write_animation(tmp_path / name, frames, fps=2)
        with Image.open(tmp_path / name) as film:
            first = film.convert("RGBA" if mode == "RGBA" else "RGB")
        expected = np.asarray(frames[0] if mode == "RGBA" else white.convert("RGB"), float)
        alpha = expected[..., 3:] / 255 if mode == "RGBA" else 1.0
        difference = np.abs((np.asarray(first, float) - expected) * alpha)
        assert difference.mean() < 8, name


def test_paths_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(case_file("expanded-tensor", "model.pt"))
    monkeypatch.chdir(tmp_path)
    convert(
        source, "dest", reference=str(case_file("expanded-tensor", "ref.safetensors")), max_shard_size=20_000, **QUIET
    )
    assert len(list(Path("dest/generator").glob("*.safetensors"))) > 1
    code = pick_code(str(case_file("expanded-tensor", "codes.pt")))
    assert code.tensor.isfinite().all()
