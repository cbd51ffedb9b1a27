"""Selection of the files of a model's folder that may be published.

Only known files are published: weights and configs, the card with its pictures, licenses, directions and recipes.
Everything else is left out, links that leave the folder are rejected, and local paths are removed (cleaning.py).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from stylefusion_hf.core.checks import shown
from stylefusion_hf.core.hub_files import WEIGHTS
from stylefusion_hf.hub import model_card
from stylefusion_hf.hub.cleaning import (
    MAX_JSON,
    RECIPE_CHUNK,
    CleanedFiles,
    clean_json,
    clean_png,
    clean_text,
    encode_json,
    has_metadata,
    is_recipe,
    read_header,
    read_json,
)

INDEX, CARD = "model_index.json", "README.md"
CONFIGS = ("config.json", "preprocessor_config.json")  # of components
NOTES = ("conversion.json", "judges.json")  # records written by `stylefusion convert` and the trainer of judges
LICENSES = re.compile(r"(LICEN[CS]E|NOTICE|COPYING)(\.(md|txt))?")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
MAX_PICTURE = 2**26  # bytes
TABLE_FORMATS = ("stylefusion-directions", "stylefusion-codes")  # formats of safetensors files outside components
RUN_FOLDERS = re.compile(r"checkpoint-\d+|wandb|logs|runs|samples")  # folders left by training runs
WEIGHT_FILE = re.compile(
    rf"(?:{'|'.join(WEIGHTS)})(?:\.(?P<of>[^.-]+))?(?:-\d+-of-\d+)?\.safetensors(?:\.index(?:\.(?P<index>[^.]+))?\.json)?"
)


@dataclass
class Collection:
    """The cleaned files of a folder that may be uploaded.

    Args:
        files: path -> its content, or a file with the content; without the card.
        card: the text of README.md.
        left_out: all other paths.
        copies: owns the rewritten files.
    """

    files: dict[str, bytes | Path] = field(default_factory=dict)
    card: str = ""
    left_out: list[str] = field(default_factory=list)
    copies: CleanedFiles = field(default_factory=CleanedFiles)


def collect(folder: Path, components: Mapping[str, Any] | None = None) -> Collection:
    """Collect and clean the files of a folder that may be uploaded.

    Args:
        folder: folder of a pipeline, or of any models.
        components: subfolders to include; None for the folder itself and every subfolder with a model.

    Raises:
        ValueError: a link that leaves the folder, something that is neither a file nor a folder, or a damaged file.
    """
    root = Path(os.path.realpath(folder))
    if components is None:
        components = dict.fromkeys(["", *(child.name for child in sorted(root.iterdir()) if _is_model_folder(child))])
    found = Collection()
    if _is_file(root, CARD, components):
        found.card = clean_text(_read_text(root / CARD, CARD))
    for path in _walk(root, "", components, found.left_out):
        name = PurePosixPath(path).name
        parent = path.removesuffix(name).rstrip("/")
        if path == CARD:
            continue
        content = _clean_content(root / path, path, parent, components, found)
        if content is None:
            found.left_out.append(path)
        else:
            found.files[path] = content
    found.left_out.sort()
    return found


def _is_model_folder(folder: Path) -> bool:
    """Return whether a subfolder is a model saved by diffusers, and not left by a training run."""
    if not folder.is_dir() or folder.name.startswith(".") or RUN_FOLDERS.fullmatch(folder.name):
        return False
    return (folder / CONFIGS[0]).is_file() and any(WEIGHT_FILE.fullmatch(child.name) for child in folder.iterdir())


def _walk(root: Path, inside: str, components: Mapping[str, Any], left_out: list[str]) -> Iterator[str]:
    """Yield the files at the top of a folder and in its components; other folders are not entered."""
    for entry in sorted(os.scandir(root / inside), key=lambda entry: entry.name):
        path = f"{inside}/{entry.name}".lstrip("/")
        if _is_file(root, path, components):
            yield path
        elif not inside and entry.name in components:
            yield from _walk(root, path, components, left_out)
        else:
            left_out.append(f"{path}/")


def _is_file(root: Path, path: str, components: Mapping[str, Any]) -> bool:
    """Return whether a path is a regular file; False for a folder or a missing path.

    ValueError for a link that leaves the folder or leads to an unpublished file, and for pipes and devices.
    """
    full = root / path
    if not os.path.lexists(full):
        return False
    target = Path(os.path.realpath(full))
    if target != full and not (_is_blob(root, target) or _is_published(root, target, full.suffix, components)):
        raise ValueError(
            f"{shown(path)} is a symbolic link to another place: put a copy there, or remove it from the folder"
        )
    try:
        mode = target.stat().st_mode
    except OSError as error:
        raise ValueError(f"{shown(path)} is a symbolic link to nothing: remove it from the folder") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"{shown(path)} is neither a file nor a folder: remove it from the folder")
    return stat.S_ISREG(mode)


def _is_blob(root: Path, target: Path) -> bool:
    """Return whether a link stays within a repository of the Hub's cache, whose snapshots link to its blobs."""
    for snapshots in [folder for folder in root.parents[:3] if folder.name == "snapshots"]:
        repository = snapshots.parent
        hashed = re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", target.name) is not None
        return repository.name.startswith("models--") and target.parent == repository / "blobs" and hashed
    return False


def _is_published(root: Path, target: Path, suffix: str, components: Mapping[str, Any]) -> bool:
    """Return whether a link leads to a file of the same kind that is published anyway."""
    if not target.is_relative_to(root) or target.suffix != suffix:
        return False
    path = target.relative_to(root).as_posix()
    parent, _, name = path.rpartition("/")
    top = not parent and (name in (INDEX, CARD, *NOTES) or LICENSES.fullmatch(name) or suffix.lower() in PICTURES)
    return bool(top) or (parent in components and bool(WEIGHT_FILE.fullmatch(name) or name in CONFIGS))


def _clean_content(
    file: Path, path: str, parent: str, components: Mapping[str, Any], found: Collection
) -> bytes | Path | None:
    """Return the cleaned content of a file, or a file with it; None for a file that is left out."""
    name, suffix, size = file.name, file.suffix.lower(), file.stat().st_size
    if LICENSES.fullmatch(name):
        return _read_text(file, path).encode()
    if parent in components:
        if WEIGHT_FILE.fullmatch(name) and suffix == ".safetensors":
            return found.copies.weights(file, path)
        if WEIGHT_FILE.fullmatch(name) or name in CONFIGS:
            return encode_json(clean_json(read_json(file, path)))
    if parent:
        return None
    if name == INDEX or name in NOTES:
        return encode_json(clean_json(read_json(file, path)))
    in_card = name == model_card.PICTURE or re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", found.card)
    try:
        if suffix == ".json":
            value = read_json(file, path)
            return encode_json(clean_json(value)) if is_recipe(value) else None
        if suffix == ".safetensors":
            with file.open("rb") as opened:
                kind = (read_header(opened, path)[0].get("__metadata__") or {}).get("format")
            return found.copies.weights(file, path) if kind in TABLE_FORMATS else None
        if suffix == ".png" and size <= MAX_PICTURE:
            picture = clean_png(file.read_bytes(), path)
            return picture if in_card or RECIPE_CHUNK in picture else None
    except ValueError:
        if in_card:
            raise
        return None  # an unrelated file, which is left out even if it is damaged
    return file if suffix in PICTURES and in_card and size <= MAX_PICTURE and not has_metadata(file) else None


def _read_text(file: Path, where: str) -> str:
    try:
        if file.stat().st_size > MAX_JSON:
            raise ValueError("it is too large")
        return file.read_bytes().decode("utf-8")
    except ValueError as error:
        raise ValueError(f"{where} is not UTF-8 text: correct it, or remove it from the folder") from error
