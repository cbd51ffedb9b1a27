"""Models with a short name: `embedded` comes with the package, `make demo` leaves `faces` in a cache."""

from __future__ import annotations

import contextlib
import os
from importlib.resources import files
from pathlib import Path

from stylefusion_hf.cache import cache_folder

EMBEDDED = "embedded"
# What to do where a named model has not been made yet. Weights are never part of this package.
HOW_TO_GET = {
    "faces": (
        "run `make demo` in a checkout, or `pip download --no-deps random-face==2021.7.21.1` and `stylefusion convert"
        " random_face-2021.7.21.1-py3-none-any.whl {folder}`"
    ),
}


def cache_folders() -> list[Path]:
    """Where named models are looked for, in this order: the working folder, the checkout, the user's cache."""
    checkout = Path(__file__).resolve().parents[2]
    folders = [Path(".cache")]
    if (checkout / "pyproject.toml").is_file():
        folders.append(checkout / ".cache")
    with contextlib.suppress(OSError):  # a user without a home folder
        folders.append(cache_folder() / "models")
    return folders


def find_model(given: str) -> str:
    """`given` as it is, or the folder of a model with that short name.

    Raises:
        FileNotFoundError: a known name whose model is in none of the caches, or not in this installation; says how to
            get it.
    """
    if given == EMBEDDED and not os.path.isdir(given):
        return str(check_embedded(Path(str(files("stylefusion_hf") / "assets"))))
    if given not in HOW_TO_GET or os.path.isdir(given):
        return given
    for folder in cache_folders():
        if (folder / given / "model_index.json").is_file():
            return str(folder / given)
    target = cache_folders()[-1] / given
    raise FileNotFoundError(
        f"the model {given!r} is not on this machine: {HOW_TO_GET[given].format(folder=target)}; then --model {given}"
    )


def check_embedded(folder: Path) -> Path:
    """Return the folder of the embedded model; FileNotFoundError if the model is not there."""
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"this installation of stylefusion_hf has no embedded model: {folder / 'model_index.json'} is missing."
            " Install the package's wheel or a full checkout, or load a model with from_pretrained"
        )
    return folder
