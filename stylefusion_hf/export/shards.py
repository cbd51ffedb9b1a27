"""Shards of a picture data set: WebDataset tar files or Parquet files, each complete or absent.

A shard is written under a temporary name, flushed to disk and renamed, so a file with its final name is complete even
if the writing process was killed. The same samples give the same bytes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stylefusion_hf.core.files import atomic_path
from stylefusion_hf.core.installing import install_command
from stylefusion_hf.core.processes import one_line

FORMATS = {"tar": "webdataset", "parquet": "pyarrow"}  # format -> package that writes it
ROW_GROUP = 2**25  # bytes of a Parquet row group, about
TYPES = {"key": "string", "line": "int64", "picture": "int32", "recipe": "string"}

Write = Callable[[dict[str, Any]], None]


def check_format(kind: str) -> None:
    """Raise ValueError for an unknown format, ImportError if its package is missing."""
    if kind not in FORMATS:
        raise ValueError(f"unknown format {kind!r}: choose from {', '.join(FORMATS)}")
    try:
        __import__(FORMATS[kind])
    except ImportError as error:
        raise ImportError(
            f"the format {kind} needs the package {FORMATS[kind]}: {install_command('render')}"
        ) from error


def shard_path(folder: Path, index: int, kind: str) -> Path:
    return folder / f"shard-{index:06d}.{kind}"


@contextlib.contextmanager
def write_shard(path: Path, about: dict[str, Any]) -> Iterator[Write]:
    """Yield a function that writes samples; the file appears when the body ends without an error.

    Args:
        path: ends in .tar or .parquet.
        about: JSON-serializable facts about the data set, stored in Parquet files.

    A sample has `key` (str), `line` and `picture` (int), `image` (PNG bytes), `mask` (PNG bytes or None) and `recipe`
    (JSON text).

    Raises:
        OSError: the file cannot be written, for example because the disk is full; no partial file is left.
    """
    try:
        with atomic_path(path) as part, {".tar": _tar, ".parquet": _parquet}[path.suffix](part, about) as write:
            yield write
    except OSError as error:
        raise OSError(f"{path} could not be written: {one_line(error)}") from error


@contextlib.contextmanager
def _tar(path: Path, about: dict[str, Any]) -> Iterator[Write]:
    """Write WebDataset entries: <key>.png, <key>.mask.png and <key>.json."""
    from webdataset.writer import TarWriter

    fixed = {"user": "", "group": "", "mtime": 0}  # same bytes for every user and time
    with open(path, "wb") as file, contextlib.closing(TarWriter(file, encoder=False, compress=False, **fixed)) as tar:

        def write(sample: dict[str, Any]) -> None:
            facts = {"line": sample["line"], "picture": sample["picture"], "recipe": json.loads(sample["recipe"])}
            files = {"png": sample["image"], "json": json.dumps(facts).encode()}
            if sample["mask"] is not None:
                files["mask.png"] = sample["mask"]
            tar.write({"__key__": sample["key"], **files})

        yield write


@contextlib.contextmanager
def _parquet(path: Path, about: dict[str, Any]) -> Iterator[Write]:
    """Write Parquet columns with the metadata that lets the Hub's viewer and `datasets` decode pictures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    picture = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    fields = {name: getattr(pa, kind)() for name, kind in TYPES.items()} | {"image": picture, "mask": picture}
    features: dict[str, Any] = {name: {"dtype": kind, "_type": "Value"} for name, kind in TYPES.items()}
    features |= {name: {"_type": "Image"} for name in ("image", "mask")}
    metadata = {"huggingface": json.dumps({"info": {"features": features}}), "stylefusion": json.dumps(about)}
    schema = pa.schema(fields, metadata=metadata)
    rows: list[dict[str, Any]] = []
    size = 0
    with pq.ParquetWriter(path, schema) as file:

        def flush_rows() -> None:
            if rows:
                file.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows.clear()

        def write(sample: dict[str, Any]) -> None:
            nonlocal size
            pictures = {
                name: None if sample[name] is None else {"bytes": sample[name], "path": f"{sample['key']}.{end}"}
                for name, end in (("image", "png"), ("mask", "mask.png"))
            }
            rows.append({name: sample[name] for name in TYPES} | pictures)
            size += sum(len(sample[name] or b"") for name in ("image", "mask", "recipe"))
            if size > ROW_GROUP:
                flush_rows()
                size = 0

        yield write
        flush_rows()
