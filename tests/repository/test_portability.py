"""What can be held to other systems from here: docs/reference/platforms.md says what was not run on them.

Files are read and written as UTF-8, whatever the system's own encoding is; nothing is imported that Windows lacks; no
model makes float64 numbers, which MPS has not.
"""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import stylefusion_hf
from stylefusion_hf import StyleGAN2Discriminator
from tests import tiny

PACKAGE = Path(stylefusion_hf.__path__[0])
POSIX = {"fcntl", "grp", "pwd", "resource", "termios"}  # modules that Windows does not have


def sources() -> Iterator[tuple[str, ast.Module]]:
    for folder, _, names in os.walk(PACKAGE, followlinks=True):
        for path in (Path(folder, name) for name in names if name.endswith(".py")):
            yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


# ----------------------------------------------------------------------------------------------------
# Windows.


def text_without_encoding(tree: ast.Module) -> Iterator[int]:
    """Lines that read or write text in the encoding of whatever system they run on."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(keyword.arg in ("encoding", None) for keyword in node.keywords):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        if name in ("read_text", "write_text") and owner is not None:
            if len(node.args) == (name == "write_text"):  # the encoding may come without its name
                yield node.lineno
        elif name == "open" and getattr(owner, "id", None) not in ("Image", "os", "tarfile", "zipfile"):
            place = 1 if owner is None else 0  # open(path, mode) and path.open(mode)
            given = [keyword.value for keyword in node.keywords if keyword.arg == "mode"] + node.args[place:][:1]
            if not given or (isinstance(given[0], ast.Constant) and "b" not in str(given[0].value)):
                yield node.lineno


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("open(p)", True),
        ("open(p, 'a')", True),
        ("p.open()", True),
        ("p.read_text()", True),
        ("p.write_text(t, newline='')", True),
        ("open(p, 'rb')", False),
        ("p.open('a+b')", False),
        ("p.read_text(encoding='utf-8')", False),
        ("p.read_text('utf-8')", False),
        ("Image.open(p)", False),
    ],
)
def test_the_search_finds_text_without_an_encoding(line: str, found: bool) -> None:
    assert list(text_without_encoding(ast.parse(line))) == ([1] if found else [])


def test_text_files_are_utf_8_on_every_system() -> None:
    bad = [f"{name}:{line}" for name, tree in sources() for line in text_without_encoding(tree)]
    assert bad == []


def test_what_windows_lacks_is_imported_where_it_may_fail() -> None:
    names = 0
    for name, tree in sources():
        names += 1
        guarded = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in ast.walk(node)}
        for node in ast.walk(tree):
            found = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            found |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
            assert not found & POSIX or id(node) in guarded, f"{name}:{node.lineno} imports {found & POSIX}"
    assert names > 100


# MPS, which has no float64.


class NoDoubles(TorchDispatchMode):
    """Fails where an operation makes a float64 tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = function(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)):
            self.seen += 1
            if tensor.dtype == torch.float64:
                raise TypeError(f"{function} makes float64")
        return out


def test_the_watch_sees_float64() -> None:
    with NoDoubles(), pytest.raises(TypeError, match="float64"):
        torch.ones(2).double()


@pytest.mark.parametrize("gradients", [False, True])
def test_no_model_makes_float64(gradients: bool) -> None:
    generator = tiny.tiny_generator()
    fusion, segmenter, encoder = tiny.tiny_fusion(generator), tiny.tiny_segmenter(), tiny.tiny_encoder()
    discriminator = StyleGAN2Discriminator(resolution=tiny.RESOLUTION, channels=[8] * 4)
    with torch.set_grad_enabled(gradients), NoDoubles() as watch:
        styles = generator.to_style(generator.truncate(generator.mapping(tiny.draw(2, tiny.Z_DIM)), 0.7))
        fused = fusion.fuse({node: styles * (1 + i) for i, node in enumerate(fusion.tree.nodes)})
        images = [generator.synthesis(fused, noise_mode=mode) for mode in ("const", "random", "none")]
        outputs = [
            segmenter.segment(images[0]),
            encoder.encode(images[1]),
            discriminator(images[2], return_dict=False)[0],
        ]
        if gradients:
            torch.stack([x.mean() for x in outputs]).sum().backward()
    assert all(output.isfinite().all() for output in outputs)
    assert watch.seen > 100


def doubles_before_cpu(tree: ast.Module) -> Iterator[int]:
    """Lines with `x.double().cpu()`, which MPS refuses; `x.cpu().double()` is the same elsewhere."""
    for node in ast.walk(tree):
        called: list[str] = []  # methods, the last call first
        inner = node
        while isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute):
            called.append(inner.func.attr)
            inner = inner.func.value
        if called[:1] == ["cpu"] and "double" in called:
            yield inner.lineno  # type: ignore[attr-defined]


def test_numbers_leave_their_device_before_they_are_made_float64() -> None:
    assert list(doubles_before_cpu(ast.parse("x.t().double().abs().cpu()"))) == [1]
    assert list(doubles_before_cpu(ast.parse("x.t().cpu().double()"))) == []
    assert [f"{name}:{line}" for name, tree in sources() for line in doubles_before_cpu(tree)] == []
