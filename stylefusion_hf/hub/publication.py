"""What is published of a pipeline's folder.

Weights and configs, the one-line files with which plain diffusers loads them, a model card with a picture, and the
pictures and texts beside them; never checkpoints, logs, pickles or paths of this machine.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import stylefusion_hf
from stylefusion_hf.core.hub_files import LOCAL_PATH, WEIGHTS, is_hub_id
from stylefusion_hf.hub import model_card
from stylefusion_hf.hub.loading import PACKAGE, HubMixin, components_of

INDEX, CARD = "model_index.json", "README.md"
SUFFIXES = {".json", ".safetensors", ".md", ".txt", ".png", ".jpg", ".jpeg", ".webp", ".gif", ""}
# What else lies where a run was, with paths of its machine.
UNWANTED = re.compile(
    r"\.|checkpoint-|samples$|logs$|runs$|__pycache__$|(arguments|report)\.json$|report\.md$|log\.jsonl$"
)
TEXTS = {"LICENSE", "NOTICE"}  # the files without a suffix
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
        left_out: what the folder has beside them, by the names at its top.
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
    from stylefusion_hf.imaging.sheets import contact_sheet
    from stylefusion_hf.pipelines.fuse import StyleFusionPipeline

    folder = Path(folder)
    beside = folder / "report.json"
    measured = model_card.read_report(report or beside) if report is not None or beside.is_file() else None
    config = StyleFusionPipeline.load_config(folder) if (folder / INDEX).is_file() else {}
    name = config.get("_class_name")
    pipeline: Any = getattr(stylefusion_hf, name, None) if name in stylefusion_hf.__all__ else None
    if not (isinstance(pipeline, type) and issubclass(pipeline, HubMixin)):
        found = f"a pipeline of the class {name!r}" if name else f"a folder without {INDEX}"
        raise ValueError(f"{folder} is {found}: publish a folder that save_pretrained of a {PACKAGE} pipeline wrote")
    if pipe is None:
        pipe = pipeline.from_pretrained(folder)
    components = components_of(config)
    files, left_out = collect(folder, components)
    for component, (library, _) in components.items():
        if not any(WEIGHT_FILE.fullmatch(path.removeprefix(f"{component}/")) for path in files):
            raise ValueError(f"{folder / component} has no safetensors weights: save the pipeline again")
        if library == PACKAGE:
            files[f"{component}/{PACKAGE}.py"] = REEXPORT
    files["pipeline.py"] = f"from {PACKAGE} import {name}  # noqa: F401\n".encode()
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    files[INDEX] = _json(index | {"_class_name": ["pipeline", name]})
    if model_card.PICTURE not in files:
        sheet = contact_sheet(StyleFusionPipeline.from_pipe(pipe), [1, 2], [7, 8])
        buffer = io.BytesIO()
        sheet.save(buffer, "PNG")
        files[model_card.PICTURE] = buffer.getvalue()
    card = files.pop(CARD, "")
    text = card.read_text(encoding="utf-8") if isinstance(card, Path) else ""
    if text and report is not None:
        text = model_card.with_figures(text, measured or {})
    origin = str(pipe.config.get(LOCAL_PATH) or "")
    known = origin if "/" in origin and is_hub_id(origin) and origin != repo_id else None
    given = {"license": license, "base_model": base_model}
    return Publication(
        files,
        left_out,
        text,
        {key: value for key, value in given.items() if value},
        model_card.metadata(known, tags),
        model_card.body(pipe, repo_id, measured),
        tuple(components),
    )


def collect(folder: Path, components: Iterable[str] | None = None) -> tuple[dict[str, bytes | Path], list[str]]:
    """The files of a folder that may be uploaded, without local paths in their JSON, and the names that are left out.

    Args:
        folder: of a pipeline, or of any models.
        components: its subfolders that count; None for all.
    """
    files: dict[str, bytes | Path] = {}
    left_out: dict[str, None] = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        foreign = components is not None and len(parts) > 1 and parts[0] not in components
        odd = path.suffix.lower() not in SUFFIXES or (not path.suffix and path.name not in TEXTS)
        if not path.is_file():
            continue
        if foreign or odd or any(UNWANTED.match(part) for part in parts):
            left_out[parts[0]] = None
        else:
            files["/".join(parts)] = _without_paths(path) if path.suffix == ".json" else path
    return files, list(left_out)


def _without_paths(path: Path) -> bytes | Path:
    """A JSON file as it is, or without the keys that name a path of this machine."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items() if k != LOCAL_PATH}
        return [clean(item) for item in value] if isinstance(value, list) else value

    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): correct it, or take it out of the folder") from error
    return path if clean(value) == value else _json(clean(value))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
