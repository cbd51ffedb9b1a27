"""Preparation of a pipeline's folder for publishing: its files, the generated ones, and the card.

Generated are the one-line files with which plain diffusers loads the pipeline, a contact sheet, and gaps of the card.
collecting.py selects and cleans the folder's own files.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from stylefusion_hf.core.hub_files import LOCAL_PATH, is_hub_id
from stylefusion_hf.hub import model_card
from stylefusion_hf.hub.cleaning import (
    CleanedFiles,
    clean_json,
    encode_json,
    read_json,
)
from stylefusion_hf.hub.collecting import CARD, INDEX, WEIGHT_FILE, collect
from stylefusion_hf.hub.components import PACKAGE, components_of
from stylefusion_hf.hub.loading import HubMixin
from stylefusion_hf.imaging.sheets import contact_sheet

# The same for all components, because diffusers copies the files of all local folders to one place.
REEXPORT = f"from {PACKAGE} import *  # noqa: F403\n".encode()


@dataclass
class Publication:
    """The files and the card to upload.

    Args:
        files: path in the repository -> its content, or a file with the content; without the card.
        left_out: the other paths in the folder; a subfolder that is left out entirely ends in a slash.
        card: the folder's card; "" if it has none.
        given, gaps: metadata of the card, as in `model_card.complete`.
        body: the text of the card if the folder has none.
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
        """The folder's card with completed metadata, or a generated card."""
        return model_card.add_mark(model_card.complete(self.card, self.given, self.gaps, self.body))

    def merged_card(self, published: str | None, overwrite: bool = False) -> str:
        """Return the card to upload, given the repository's; one that was changed there is kept and completed."""
        if overwrite or published is None or model_card.is_unchanged(published):
            return self.own_card
        return model_card.complete(published, self.given, self.gaps, self.body)

    def sizes(self) -> dict[str, int]:
        """Return {path in the repository: bytes}, including the card."""
        sizes = {path: len(it) if isinstance(it, bytes) else it.stat().st_size for path, it in self.files.items()}
        return dict(sorted({**sizes, CARD: len(self.own_card.encode())}.items()))

    def write(self, folder: Path) -> None:
        """Write all files into a folder, as they will be in the repository."""
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
    """Collect what `publish` uploads, without network access.

    Args:
        folder: a pipeline's folder, as written by `save_pretrained` or a trainer; its report.json is shown, if any.
        repo_id: used in the card's example.
        pipe: the pipeline in the folder; None loads it, which also checks that it can be loaded.
        license, base_model, tags: for the card: an identifier from the Hub's list, a Hub id, words.
        report: another report.json of `stylefusion evaluate`, whose table is also added to the folder's README.md.

    Raises:
        ValueError, OSError: not a pipeline of this package, or one that cannot be loaded; names the file.
    """
    package = import_module(PACKAGE)  # imported here because pipelines are in a layer above this module
    folder = Path(folder)
    beside = folder / "report.json"
    measured = model_card.read_report(report or beside) if report is not None or beside.is_file() else None
    config = package.StyleFusionPipeline.load_config(folder) if (folder / INDEX).is_file() else {}
    name = config.get("_class_name")
    pipeline: Any = getattr(package, str(name), None) if name in package.__all__ else None
    if not (isinstance(pipeline, type) and issubclass(pipeline, HubMixin)):
        given_folder = f"a pipeline of the class {name!r}" if name else f"a folder without {INDEX}"
        raise ValueError(
            f"{folder} is {given_folder}: publish a folder that save_pretrained of a {PACKAGE} pipeline wrote"
        )
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
        text = model_card.add_figures(text, measured or {})
    origin = str(pipe.config.get(LOCAL_PATH) or "")
    known = origin if "/" in origin and is_hub_id(origin) and origin != repo_id else None
    given = {"license": license, "base_model": base_model}
    return Publication(
        files,
        found.left_out,
        text,
        {key: value for key, value in given.items() if value},
        model_card.default_metadata(known, tags),
        model_card.write_body(pipe, repo_id, measured),
        tuple(components),
        found.copies,
    )
