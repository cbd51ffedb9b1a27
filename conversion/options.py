"""Options of a conversion, and the checks that need no file to be read."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stylefusion_hf.conversion.sources import KINDS
from stylefusion_hf.conversion.writing import check_destination
from stylefusion_hf.core.checks import short
from stylefusion_hf.core.untrusted.inert import ConversionError
from stylefusion_hf.core.untrusted.safe_pickle import check_ordinary

SIZE = r"\d+(\.\d+)?[KMGT]B"


@dataclass
class Options:
    """Options of a conversion; the defaults suit every kind.

    Attributes:
        kind: "auto" or one of `sources.KINDS`.
        generator: for fusion nets, the generator's checkpoint; for directions, the converted model they are for.
        with_discriminator: also convert the discriminator.
        dtype: "fp32", or "fp16" to write the fp16 variant in addition to the float32 files.
        truncation_psi: the model's default truncation; None for that of the source, or 0.7.
        tree: region tree of fusion nets, if their JSON is ambiguous.
        space, layers: of directions, if their files are ambiguous.
        reference, reference_seed, reference_class: outputs to compare with; see `checks.compare`.
        overwrite: replace a destination that is not empty.
        max_shard_size: as in diffusers: "5GB", or bytes.
        previews: sizes of the preview heads that are fitted for a MobileStyleGAN or a StyleGAN3; None for 128 and 256
            px, where a MobileStyleGAN is larger.
        progress: show a progress bar.
    """

    kind: str = "auto"
    generator: str | os.PathLike[str] | None = None
    with_discriminator: bool = False
    dtype: str = "fp32"
    truncation_psi: float | None = None
    tree: str | None = None
    space: str | None = None
    layers: list[int] | None = None
    reference: str | os.PathLike[str] | None = None
    reference_seed: int | None = None
    reference_class: int | None = None
    overwrite: bool = False
    max_shard_size: int | str = "5GB"
    previews: tuple[int, ...] | None = None
    progress: bool = True


@dataclass(frozen=True)
class Paths:
    """The files and folders of a conversion."""

    source: Path
    destination: Path
    generator: Path | None
    reference: Path | None


def check_options(source: Any, destination: Any, options: Options) -> Paths:
    """Return the paths of a conversion; ConversionError for the first thing that is wrong, before the long work."""
    source, destination = _path(source, "source"), _path(destination, "destination")
    generator, reference = (
        None if value is None else _path(value, name)
        for name, value in (("generator", options.generator), ("reference", options.reference))
    )
    if options.kind not in ("auto", *KINDS) or options.dtype not in ("fp32", "fp16"):
        got = f"{options.kind!r}, {options.dtype!r}"
        raise ConversionError(f"kind is auto or one of {', '.join(KINDS)}, dtype is fp32 or fp16; got {got}")
    psi = options.truncation_psi
    if psi is not None and (type(psi) not in (int, float) or not 0 <= psi <= 2):
        raise ConversionError(f"truncation_psi is between 0 and 2, got {short(psi)}")
    size = options.max_shard_size
    sound = size > 0 if type(size) is int else type(size) is str and re.fullmatch(SIZE, size.upper()) is not None
    if not sound:
        raise ConversionError(f"max_shard_size is a size such as 5GB or 200MB, or bytes; got {short(size)}")
    given = [path for path in (source, generator, reference) if path is not None]
    for path in given:
        if not path.exists():
            raise ConversionError(f"{path}: there is no such file")
        check_ordinary(path)
    check_destination(destination, options.overwrite, given)
    return Paths(source, destination, generator, reference)


def _path(value: Any, name: str) -> Path:
    """Return a path given as text or as a path; ConversionError for anything else."""
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text:
        raise ConversionError(f"{name} is the path of a file or folder, got {short(value)}")
    return Path(text)
