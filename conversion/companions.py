"""Nets that this package has for a published generator, recognized by its weights: they join the converted folder.

A folder of `assets` with a `companions.json` belongs to one generator:

    {"generator": {"SynthesisNetwork.bin": "<sha256>", ...}, "notes": ["..."], "credits": ["..."], "limits": ["..."]}

`generator` names the source files that must be there with these hashes. Beside it lie the pipeline's other components,
fusion/, segmenter/ and perhaps encoder/, each of which `from_pretrained` loads. evaluation/ has the judges that
`stylefusion evaluate --judges` takes; it stays where it is, and is in the checkout only.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stylefusion_hf import core
from stylefusion_hf.core.json_files import read_json
from stylefusion_hf.models.encoder import ImageEncoder
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.models.segmenter import RegionSegmenter

ASSETS = Path(core.__file__).parents[1] / "assets"  # not of this file, whose folder is a link in a checkout
CLASSES: dict[str, Any] = {"fusion": FusionHierarchy, "segmenter": RegionSegmenter, "encoder": ImageEncoder}


@dataclass(frozen=True)
class Companions:
    """Nets for one generator.

    Attributes:
        folder: where they are.
        notes: lines for the conversion's report.
        credits, limits: paragraphs for the model card.
    """

    folder: Path
    notes: list[str]
    credits: list[str]
    limits: list[str]

    @property
    def parts(self) -> list[str]:
        """Names of the components."""
        return [name for name in CLASSES if (self.folder / name / "config.json").is_file()]

    def copy_to(self, work: Path) -> None:
        """Copy the components into a pipeline's folder."""
        for name in self.parts:
            shutil.copytree(self.folder / name, work / name)

    def index(self) -> dict[str, list[str]]:
        """Return the components' entries in model_index.json."""
        return {name: [CLASSES[name].__module__, CLASSES[name].__name__] for name in self.parts}


def find_companions(sources: dict[str, dict[str, Any]]) -> Companions | None:
    """Return the nets for the generator in these source files, or None if this package has none.

    sources: as in `Report.sources`, with the sha256 of every file.
    """
    for path in sorted(ASSETS.glob("*/companions.json")):
        about = read_json(path)
        if all(sources.get(name, {}).get("sha256") == digest for name, digest in about["generator"].items()):
            texts = ([str(text) for text in about.get(name, [])] for name in ("notes", "credits", "limits"))
            return Companions(path.parent, *texts)
    return None
