"""What is published of a pipeline's folder.

An allow-list: what a pipeline or a model consists of, by name, and what belongs to its card. Weights and configs, the
one-line files with which plain diffusers loads them, the card with its pictures, licences, directions and recipes.
Everything else stays where it is, links that leave the folder are refused, and local paths are removed (cleaning.py).
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from stylefusion_hf.core.checks import shown
from stylefusion_hf.core.hub_files import LOCAL_PATH, WEIGHTS, is_hub_id
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
from stylefusion_hf.hub.loading import PACKAGE, HubMixin, components_of
from stylefusion_hf.imaging.sheets import contact_sheet

INDEX, CARD = "model_index.json", "README.md"
CONFIGS = ("config.json", "preprocessor_config.json")  # of a component
NOTES = ("conversion.json", "judges.json")  # what `stylefusion convert` and the trainer of judges say of their work
LICENCES = re.compile(r"(LICEN[CS]E|NOTICE|COPYING)(\.(md|txt))?")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
MAX_PICTURE = 2**26  # bytes
TABLES = ("stylefusion-directions", "stylefusion-codes")  # formats of safetensors files beside the components
RUN = re.compile(r"checkpoint-\d+|wandb|logs|runs|samples")  # folders that a run leaves, whatever lies in them
WEIGHT_FILE = re.compile(
    rf"(?:{'|'.join(WEIGHTS)})(?:\.(?P<of>[^.-]+))?(?:-\d+-of-\d+)?\.safetensors(?:\.index(?:\.(?P<index>[^.]+))?\.json)?"
)

# The same for every component of every model: diffusers copies the files of all local folders to one place.
REEXPORT = f"from {PACKAGE} import *  # noqa: F403\n".encode()


@dataclass
class Publication:
    """What is uploaded.

    Args:
        files: path in the repository -> its content, or the file that has it; without the card.
        left_out: what the folder has beside them; a folder that is left out as a whole ends in a slash.
        card: of the folder; "" if it has none.
        given, gaps: metadata of the card, as in `model_card.complete`.
        body: the card's text, where nobody wrote one.
        components: folders with weights.
    """

    files: dict[str, bytes | Path]
    left_out: list[str] = field(default_factory=list)
    card: str = ""
    given: dict[str, Any] = field(default_factory=dict)
    gaps: dict[str, Any] = field(default_factory=dict)
    body: str = ""
    components: tuple[str, ...] = ()
    copies: CleanedFiles | None = None  # keeps the cleaned files until they are uploaded

    @cached_property
    def own_card(self) -> str:
        """The folder's card, completed, or the generated one."""
        return model_card.marked(model_card.complete(self.card, self.given, self.gaps, self.body))

    def card_beside(self, published: str | None, overwrite: bool = False) -> str:
        """The card to upload where the repository has one already: what somebody changed there is kept."""
        if overwrite or published is None or model_card.is_as_published(published):
            return self.own_card
        return model_card.complete(published, self.given, self.gaps, self.body)

    def sizes(self) -> dict[str, int]:
        """Path in the repository -> bytes, with the card."""
        sizes = {path: len(it) if isinstance(it, bytes) else it.stat().st_size for path, it in self.files.items()}
        return dict(sorted({**sizes, CARD: len(self.own_card.encode())}.items()))

    def write(self, folder: Path) -> None:
        """Puts it all into a folder, as the repository will have it."""
        for path, content in {**self.files, CARD: self.own_card.encode()}.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content if isinstance(content, bytes) else content.read_bytes())


# --- What is uploaded ------------------------------------------------------------------------------------------------


def prepare(
    folder: str | Path,
    repo_id: str,
    *,
    pipe: Any = None,
    license: str | None = None,
    base_model: str | None = None,
    tags: Sequence[str] = (),
    report: str | Path | None = None,
) -> Publication:
    """What `publish` uploads, without the network.

    Args:
        folder: of a pipeline, as `save_pretrained` or a trainer leaves it; report.json, if it has one, is shown.
        repo_id: for the card's snippet.
        pipe: what the folder holds; None loads it, and so finds out whether it loads.
        license, base_model, tags: for the card: an identifier of the Hub's list, a Hub id, words.
        report: another report.json of `stylefusion evaluate`; its table is added to a README.md of the folder's, too.

    Raises:
        ValueError, OSError: no pipeline of this package, or one that does not load; names the file.
    """
    package = import_module(PACKAGE)  # whose pipelines stand above this module
    folder = Path(folder)
    beside = folder / "report.json"
    measured = model_card.read_report(report or beside) if report is not None or beside.is_file() else None
    config = package.StyleFusionPipeline.load_config(folder) if (folder / INDEX).is_file() else {}
    name = config.get("_class_name")
    pipeline: Any = getattr(package, name, None) if name in package.__all__ else None
    if not (isinstance(pipeline, type) and issubclass(pipeline, HubMixin)):
        found = f"a pipeline of the class {name!r}" if name else f"a folder without {INDEX}"
        raise ValueError(f"{folder} is {found}: publish a folder that save_pretrained of a {PACKAGE} pipeline wrote")
    if pipe is None:
        pipe = pipeline.from_pretrained(folder)
    components = components_of(config)
    found = collect(folder, components)
    files = found.files
    for component, (library, _) in components.items():
        if not any(WEIGHT_FILE.fullmatch(path.removeprefix(f"{component}/")) for path in files):
            raise ValueError(f"{folder / component} has no safetensors weights: save the pipeline again")
        if library == PACKAGE:
            files[f"{component}/{PACKAGE}.py"] = REEXPORT
    files["pipeline.py"] = f"from {PACKAGE} import {name}  # noqa: F401\n".encode()
    index = clean_json(read_json(folder / INDEX, str(folder / INDEX)))
    files[INDEX] = encode_json(index | {"_class_name": ["pipeline", name]})
    if model_card.PICTURE not in files:
        sheet = contact_sheet(package.StyleFusionPipeline.from_pipe(pipe), [1, 2], [7, 8])
        buffer = io.BytesIO()
        sheet.save(buffer, "PNG")
        files[model_card.PICTURE] = buffer.getvalue()
    text = found.card
    if text and report is not None:
        text = model_card.with_figures(text, measured or {})
    origin = str(pipe.config.get(LOCAL_PATH) or "")
    known = origin if "/" in origin and is_hub_id(origin) and origin != repo_id else None
    given = {"license": license, "base_model": base_model}
    return Publication(
        files,
        found.left_out,
        text,
        {key: value for key, value in given.items() if value},
        model_card.metadata(known, tags),
        model_card.body(pipe, repo_id, measured),
        tuple(components),
        found.copies,
    )


@dataclass
class Collection:
    """The files of a folder that may be uploaded, cleaned.

    Args:
        files: path -> content, or the file that has it; without the card.
        card: the text of README.md.
        left_out: everything else.
        copies: keeps files that had to be rewritten.
    """

    files: dict[str, bytes | Path] = field(default_factory=dict)
    card: str = ""
    left_out: list[str] = field(default_factory=list)
    copies: CleanedFiles = field(default_factory=CleanedFiles)


def collect(folder: Path, components: Mapping[str, Any] | None = None) -> Collection:
    """What of a folder may be uploaded.

    Args:
        folder: of a pipeline, or of any models.
        components: its subfolders that count; None for the folder itself and every subfolder that holds a model.

    Raises:
        ValueError: a link that leaves the folder, or something that is neither file nor folder; a damaged file.
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
        content = _content(root / path, path, parent, components, found)
        if content is None:
            found.left_out.append(path)
        else:
            found.files[path] = content
    found.left_out.sort()
    return found


def _is_model_folder(folder: Path) -> bool:
    """Whether a subfolder holds a model as diffusers saves it, rather than what a run leaves."""
    if not folder.is_dir() or folder.name.startswith(".") or RUN.fullmatch(folder.name):
        return False
    return (folder / CONFIGS[0]).is_file() and any(WEIGHT_FILE.fullmatch(child.name) for child in folder.iterdir())


def _walk(root: Path, inside: str, components: Mapping[str, Any], left_out: list[str]) -> Iterator[str]:
    """The files at the top of a folder and in those of its components; other folders are not entered."""
    for entry in sorted(os.scandir(root / inside), key=lambda entry: entry.name):
        path = f"{inside}/{entry.name}".lstrip("/")
        if _is_file(root, path, components):
            yield path
        elif not inside and entry.name in components:
            yield from _walk(root, path, components, left_out)
        else:
            left_out.append(f"{path}/")


def _is_file(root: Path, path: str, components: Mapping[str, Any]) -> bool:
    """Whether a path is a regular file; False for a folder, and where nothing is.

    ValueError for a link out of the folder, or to a file of it that is not published, and for pipes and devices.
    """
    full = root / path
    if not os.path.lexists(full):
        return False
    target = Path(os.path.realpath(full))
    if target != full and not (_is_blob(root, target) or _is_published(root, target, full.suffix, components)):
        raise ValueError(
            f"{shown(path)} is a symbolic link to another place: put a copy there, or take it out of the folder"
        )
    try:
        mode = target.stat().st_mode
    except OSError as error:
        raise ValueError(f"{shown(path)} is a symbolic link to nothing: take it out of the folder") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"{shown(path)} is neither a file nor a folder: take it out of the folder")
    return stat.S_ISREG(mode)


def _is_blob(root: Path, target: Path) -> bool:
    """Whether a link stays within a repository of the Hub's cache, whose snapshots are links to its blobs."""
    for snapshots in [folder for folder in root.parents[:3] if folder.name == "snapshots"]:
        repository = snapshots.parent
        hashed = re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", target.name) is not None
        return repository.name.startswith("models--") and target.parent == repository / "blobs" and hashed
    return False


def _is_published(root: Path, target: Path, suffix: str, components: Mapping[str, Any]) -> bool:
    """Whether a link leads to a file of the same kind that is published itself, whatever it holds."""
    if not target.is_relative_to(root) or target.suffix != suffix:
        return False
    path = target.relative_to(root).as_posix()
    parent, _, name = path.rpartition("/")
    top = not parent and (name in (INDEX, CARD, *NOTES) or LICENCES.fullmatch(name) or suffix.lower() in PICTURES)
    return bool(top) or (parent in components and bool(WEIGHT_FILE.fullmatch(name) or name in CONFIGS))


def _content(
    file: Path, path: str, parent: str, components: Mapping[str, Any], found: Collection
) -> bytes | Path | None:
    """What is uploaded of a file; None for one that is left out."""
    name, suffix, size = file.name, file.suffix.lower(), file.stat().st_size
    if LICENCES.fullmatch(name):
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
            return found.copies.weights(file, path) if kind in TABLES else None
        if suffix == ".png" and size <= MAX_PICTURE:
            picture = clean_png(file.read_bytes(), path)
            return picture if in_card or RECIPE_CHUNK in picture else None
    except ValueError:
        if in_card:
            raise
        return None  # somebody else's, which is left out whatever it is
    return file if suffix in PICTURES and in_card and size <= MAX_PICTURE and not has_metadata(file) else None


def _read_text(file: Path, where: str) -> str:
    try:
        if file.stat().st_size > MAX_JSON:
            raise ValueError("it is too large")
        return file.read_bytes().decode("utf-8")
    except ValueError as error:
        raise ValueError(f"{where} is not a text in UTF-8: correct it, or take it out of the folder") from error
