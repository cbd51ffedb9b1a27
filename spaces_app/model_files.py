"""Files that a model's folder or repository has beside its weights: its card, its directions. Imports no gradio."""

from __future__ import annotations

import os
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache

from stylefusion_hf import StyleGenerator
from stylefusion_hf.core.edits import Direction, load_directions
from stylefusion_hf.core.hub_files import LOCAL_PATH, PATIENCE, is_hub_id
from stylefusion_hf.spaces_app import EMBEDDED

DIRECTIONS = "directions.safetensors"


def find_file(pipe: Any, name: str, fetch: bool = False) -> str | None:
    """Return the path of a file of the model that a pipeline was loaded from; None if there is none.

    A file of a repository comes from the Hub's cache. With `fetch` it is downloaded if it is not there; None if the
    Hub does not answer, which it may take half a minute to find out.
    """
    place = str(pipe.config.get(LOCAL_PATH) or "")
    if place in ("", EMBEDDED):
        return None
    try:
        if not is_hub_id(place):
            path: Any = os.path.join(place, name)
        else:
            path = try_to_load_from_cache(place, name)
            if fetch and not isinstance(path, str):
                path = hf_hub_download(place, name, etag_timeout=PATIENCE)
    except (OSError, ValueError):
        return None
    return path if isinstance(path, str) and os.path.isfile(path) else None


def read_directions(path: str, generator: StyleGenerator) -> dict[str, Direction]:
    """Return the directions of a file, which must fit the generator.

    Raises:
        ValueError, OSError: as in `load_directions`, or directions of another generator.
    """
    found = load_directions(path)
    if not found:
        raise ValueError(f"{path}: there are no directions in this file")
    for direction in found.values():
        try:
            direction.step(generator)
        except ValueError as error:
            raise ValueError(f"{path}: {error}: were these directions found in another model?") from error
    return found
