"""The examples in docstrings run.

Pytest's own collection finds none of them: doctest skips classes whose `__module__` is not the module they stand in,
and the models' is set to the package (see `stylefusion_hf/__init__.py`).
"""

import ast
import doctest
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import stylefusion_hf

PACKAGE = Path(stylefusion_hf.__path__[0])
OPTIONAL = ("python_avatars", "resvg_py", "gradio", "spaces", "tensorboard")  # what the extras bring


def files_with_examples() -> Iterator[str]:
    """Source files below the package, through its links, that have an example."""
    for folder, _, names in os.walk(PACKAGE, followlinks=True):
        for path in (Path(folder, name) for name in names if name.endswith(".py")):
            if path.relative_to(PACKAGE).parts[0] != "assets" and ">>> " in path.read_text(encoding="utf-8"):
                yield str(path.relative_to(PACKAGE))


def examples(file: str) -> list[doctest.DocTest]:
    """The examples of a file's docstring, and of the public classes and functions that are defined in it."""
    name = ".".join(["stylefusion_hf", *Path(file).with_suffix("").parts]).removesuffix(".__init__")
    module = importlib.import_module(name)
    found = [doctest.DocTestParser().get_doctest(module.__doc__ or "", {}, name, file, 0)]
    finder = doctest.DocTestFinder(exclude_empty=True)
    for node in ast.parse((PACKAGE / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            # module=False: the finder takes classes of any `__module__`
            found += finder.find(getattr(module, node.name), f"{name}.{node.name}", module=False, globs={})
    return [test for test in found if test.examples]


FILES = sorted(files_with_examples())


def test_the_models_examples_are_found() -> None:
    assert [test.name for test in examples("models/fusion/hierarchy.py")] == [
        "stylefusion_hf.models.fusion.hierarchy.FusionHierarchy"
    ]


@pytest.mark.parametrize("file", FILES)
def test_examples(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        tests = examples(file)
    except ImportError as error:
        if (error.name or "").split(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"{error.name} is not installed")
    assert tests, "its examples stand in no public docstring"
    monkeypatch.chdir(tmp_path)  # examples may write files
    embedded = (PACKAGE / "assets" / "model_index.json").is_file()
    skipped = [test.name for test in tests if "from_embedded" in (test.docstring or "") and not embedded]
    output: list[str] = []
    for test in tests:
        if test.name not in skipped:
            flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            doctest.DocTestRunner(optionflags=flags).run(test, out=output.append)
    assert not output, "".join(output)
    if skipped:
        pytest.skip(f"this checkout has no embedded model, which {', '.join(skipped)} uses")
