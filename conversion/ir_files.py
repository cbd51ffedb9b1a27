"""Locating the networks of an OpenVINO model in a wheel, a zip file or a folder, or next to an .xml."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from stylefusion_hf.conversion.ir_network import Network
from stylefusion_hf.conversion.mobile_graph import is_mapping
from stylefusion_hf.conversion.openvino_ir import read_graph
from stylefusion_hf.conversion.report import printable
from stylefusion_hf.core.untrusted.inert import Budget, ConversionError
from stylefusion_hf.core.untrusted.safe_pickle import map_file
from stylefusion_hf.core.untrusted.zip_reader import ZipReader

ARCHIVES = (".whl", ".zip")
MAX_NETWORKS = 32  # in one folder or archive
MAX_FILES, MAX_DEPTH = 20_000, 4  # limits of the search in a folder
PADDING = 64  # bytes that may follow the last constant


@dataclass
class IRFile:
    """A network's two files.

    Attributes:
        name: path of the .xml within its folder or archive.
        xml, weights: the contents; `weights` is None if the .bin is missing.
    """

    name: str
    xml: memoryview
    weights: memoryview | None

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).name.removesuffix(".xml")

    def facts(self) -> dict[str, dict[str, object]]:
        """Return name, size and sha256 of both files, for the report."""
        parts = {f"{self.stem}.xml": self.xml, f"{self.stem}.bin": self.weights or memoryview(b"")}
        return {
            printable(name): {"name": printable(name), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in parts.items()
        }


@dataclass
class IRModel:
    """The two networks of a generator."""

    mapping: Network
    synthesis: Network
    files: list[IRFile]
    notes: list[str] = field(default_factory=list)


def looks_like_ir(path: Path) -> bool:
    """Return whether the path is an OpenVINO model, or an archive or folder that contains one."""
    try:
        if path.is_dir():
            return any(name.suffix == ".xml" and name.with_suffix(".bin").is_file() for name in _walk(path))
        if path.suffix.lower() in ARCHIVES:
            archive = _archive(path)
            names = set(archive.names)
            return any(name.endswith(".xml") and f"{name[:-4]}.bin" in names for name in names)
    except ConversionError:
        return False  # the reader will report the error
    return path.suffix.lower() == ".xml" or (path.suffix.lower() == ".bin" and path.with_suffix(".xml").is_file())


def read_model(path: Path) -> IRModel:
    """Read the mapping and synthesis networks at a path, distinguished by their outputs.

    Raises:
        ConversionError: a network is missing, there are several candidates, or a file is invalid.
    """
    given = path.with_suffix(".xml") if path.suffix.lower() == ".bin" else path
    candidates = list(_candidates(given))
    if not candidates:
        raise ConversionError(f"{path}: holds no OpenVINO network, an .xml with a .bin of the same name")
    if len(candidates) > MAX_NETWORKS:
        raise ConversionError(f"{path}: holds {len(candidates)} networks; give the .xml of one of the two")
    found: dict[bool, list[tuple[IRFile, Network]]] = {True: [], False: []}
    errors: dict[str, ConversionError] = {}
    for file in candidates:
        try:
            network = _network(file, str(given) if file.name == given.name else f"{path}: {printable(file.name[:80])}")
            found[is_mapping(network)].append((file, network))
        except ConversionError as error:
            errors[file.name] = error
            if given.suffix.lower() == ".xml" and file.name == given.name:
                raise  # the file that the user gave
    for kind, what in ((True, "mapping network, z to w"), (False, "synthesis network, w to a picture")):
        if not found[kind] and errors:
            raise next(iter(errors.values()))
        if len(found[kind]) != 1:
            names = ", ".join(printable(file.name[:80]) for file, _ in found[kind][:4])
            listed = f"{len(found[kind])} ({names})" if names else "none"
            raise ConversionError(f"{path}: a generator has one {what}; there is {listed} here")
    (first, mapping), (second, synthesis) = found[True][0], found[False][0]
    notes = [f"not part of this generator: {error}" for error in errors.values()]
    return IRModel(mapping, synthesis, [first, second], notes)


def _network(file: IRFile, shown: str) -> Network:
    if file.weights is None:
        raise ConversionError(f"{shown}: its weights, {printable(file.stem[:80])}.bin beside it, are missing")
    graph = read_graph(file.xml, file.weights, shown)
    end, size = graph.end_of_constants(), len(file.weights)
    if size > end + PADDING:
        raise graph.error(
            f"its constants end at byte {end:,}, but its .bin has {size:,}: the two files are from different networks"
        )
    return Network(graph)


def _candidates(path: Path) -> Iterator[IRFile]:
    if path.is_dir():
        for name in _walk(path):
            if name.suffix == ".xml":
                yield _on_disk(name, name.relative_to(path).as_posix())
    elif path.suffix.lower() in ARCHIVES:
        archive = _archive(path)
        names = set(archive.names)
        for entry in sorted(names):
            if entry.endswith(".xml"):
                weights = archive.read(f"{entry[:-4]}.bin") if f"{entry[:-4]}.bin" in names else None
                yield IRFile(entry, archive.read(entry), weights)
    else:
        yield _on_disk(path, path.name)
        for name in sorted(path.parent.glob("*.xml"))[: MAX_NETWORKS + 1]:
            if name.name != path.name and name.with_suffix(".bin").is_file():
                yield _on_disk(name, name.name)


def _archive(path: Path) -> ZipReader:
    buffer = map_file(path)
    return ZipReader(buffer, Budget(str(path), len(buffer)))


def _on_disk(path: Path, name: str) -> IRFile:
    weights = path.with_suffix(".bin")
    return IRFile(name, map_file(path), map_file(weights) if weights.is_file() else None)


def _walk(folder: Path) -> list[Path]:
    """List the regular files below a folder, a few levels deep."""
    files: list[Path] = []
    for place, folders, names in os.walk(folder):
        if len(Path(place).relative_to(folder).parts) >= MAX_DEPTH:
            folders.clear()
        files += [Path(place, name) for name in names]
        if len(files) > MAX_FILES:
            raise ConversionError(f"{folder}: holds more than {MAX_FILES:,} files; give the folder of the networks")
    return sorted(path for path in files if path.is_file())
