"""The package as users get it: the wheel's content, the names at the top, and what an import costs."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import stylefusion_hf

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("pipelines", "conversion", "spaces_app")  # folders at the top that are sub-packages through links
SOURCES = ("LICENSE", "README.md", "pyproject.toml", "MANIFEST.in", "stylefusion_hf", *LINKED)


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
def wheel(checkout: Path) -> Path:
    flags = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "wheel", *flags, "--wheel-dir", checkout / "dist", checkout)
    (built,) = (checkout / "dist").glob("*.whl")
    return built


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path, checkout: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert all(entry.external_attr >> 28 != 0o12 for entry in archive.infolist()), "a link in the wheel"
        assert archive.read("stylefusion_hf/cli.py") == (checkout / "stylefusion_hf/cli.py").read_bytes()
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


def test_the_wheel_works_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    flags = ("--no-deps", "--no-index", "--disable-pip-version-check", "--no-compile")
    run(sys.executable, "-m", "pip", "install", *flags, "--target", tmp_path / "site", wheel)
    program = (
        "import stylefusion_hf, stylefusion_hf.conversion.layouts as linked\n"
        "from stylefusion_hf import RegionTree, StyleGAN2Generator\n"
        "assert StyleGAN2Generator(resolution=8, channels=[4, 4], z_dim=4, w_dim=4).style_dim == 20\n"
        "print(stylefusion_hf.__file__, linked.__file__, sep='\\n')"
    )
    places = run(sys.executable, "-c", program, cwd=tmp_path, env=isolated(tmp_path / "site")).split()
    assert all(Path(place).is_relative_to(tmp_path / "site") for place in places)
    assert (tmp_path / "site" / "bin" / "stylefusion").exists()


def test_the_sdist_builds_the_same_package(checkout: Path, wheel: Path) -> None:
    program = "import sys, setuptools.build_meta as backend; print(backend.build_sdist(sys.argv[1]))"
    name = run(sys.executable, "-c", program, checkout / "sdist", cwd=checkout).split()[-1]
    shutil.unpack_archive(checkout / "sdist" / name, checkout / "unpacked", filter="data")
    (unpacked,) = (checkout / "unpacked").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        packaged = {name for name in archive.namelist() if name.startswith("stylefusion_hf/")}
    assert {name for name in packaged if not (unpacked / name).is_file()} == set()
    assert (unpacked / "LICENSE").is_file()


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
