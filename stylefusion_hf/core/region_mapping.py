"""Region maps: JSON tables from the classes of a third-party segmentation network to the regions of a tree.

    {"#": "a note",
     "regions": {"bg": [], "skin": ["skin", "nose", "l_ear|left ear"], "hair": ["hair", 18]},
     "rest": "bg"}

An entry is a class number or name; `a|b` matches whichever of the two names the network has. Names are compared
without case, spaces and punctuation, and also with each synonym of a label such as "building, edifice". `rest` is the
region of all classes not listed; without it these classes are ignored, and their pixels go to the most probable
region. Regions are listed back to front, as elsewhere in this package.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from stylefusion_hf.core.checks import listed, short, shown
from stylefusion_hf.core.json_files import read_json

FOLDER = "region_maps"  # contains the tables that ship with the package
LARGEST_FILE = 2**20  # bytes
KEYS = ("regions", "rest")


@dataclass(frozen=True)
class RegionMap:
    """A table from classes to regions; the module docstring describes its entries.

    Args:
        regions: region -> its classes, by name or number.
        rest: the region of all classes not listed, or None.
        name: what to call the table in errors.

    Raises:
        ValueError: fewer than two regions, malformed entries, or a region without classes.
    """

    regions: Mapping[str, Sequence[str | int]]
    rest: str | None = None
    name: str = "the region map"

    def __post_init__(self) -> None:
        if not isinstance(self.regions, Mapping) or len({*self.regions, self.rest} - {None}) < 2:
            raise ValueError(f'{self.name}: "regions" names two or more regions, got {short(self.regions)}')
        if self.rest is not None and not isinstance(self.rest, str):
            raise ValueError(f'{self.name}: "rest" is the name of a region, got {short(self.rest)}')
        for region, classes in self.regions.items():
            if not isinstance(region, str) or not region:
                raise ValueError(f"{self.name}: a region's name is text, got {short(region)}")
            if isinstance(classes, str) or not isinstance(classes, Sequence):
                raise ValueError(f"{self.name}: {short(region)} is a list of classes, got {short(classes)}")
            for entry in classes:
                if isinstance(entry, bool) or not isinstance(entry, (str, int)):
                    raise ValueError(
                        f"{self.name}: a class of {short(region)} is a name or a number, got {short(entry)}"
                    )
            if not classes and region != self.rest:
                raise ValueError(f'{self.name}: {short(region)} has no class: list some, or make it the "rest"')

    @classmethod
    def of(cls, given: RegionMap | Mapping[str, Any] | str | os.PathLike) -> RegionMap:
        """Make a map from a map, its dict, a JSON file's path, or the name of a shipped table.

        Raises:
            ValueError: as for the class, or an unknown key.
            OSError: no such file or table; lists the shipped tables.
        """
        if isinstance(given, RegionMap):
            return given
        if isinstance(given, Mapping):
            return cls._of_dict(given, "the region map")
        if not isinstance(given, (str, os.PathLike)):
            raise ValueError(f"a region map is a dict, a file or one of {', '.join(shipped())}, got {short(given)}")
        where = os.fspath(given)
        if os.path.exists(where):
            loaded = read_json(where, f"region map {shown(where, 400)}", LARGEST_FILE)
        else:
            name = where.removesuffix(".json") + ".json"
            if name not in shipped():
                raise FileNotFoundError(
                    f"there is no region map {short(where)}: give a JSON file or one of {', '.join(shipped())}"
                )
            loaded = json.loads((files("stylefusion_hf.core") / FOLDER / name).read_text("utf-8"))
        if not isinstance(loaded, dict):
            raise ValueError(f"region map {shown(where, 400)} is a JSON object, found {type(loaded).__name__}")
        return cls._of_dict(loaded, f"region map {shown(where, 400)}")

    @classmethod
    def _of_dict(cls, given: Mapping[str, Any], name: str) -> RegionMap:
        notes = [key for key in given if isinstance(key, str) and key.startswith("#")]
        if unknown := [key for key in given if key not in KEYS and key not in notes]:
            raise ValueError(f"{name} has {' and '.join(KEYS)}, and notes under #...; got {short(unknown[0])}")
        return cls(given.get("regions", {}), given.get("rest"), name)

    def classes(self, labels: Mapping[int, str]) -> dict[str, list[int]]:
        """Return region -> class numbers, for a network whose class `i` is called `labels[i]`.

        Raises:
            ValueError: an unknown class (suggests the closest), a class in two regions, a name that matches several
                classes, or a `rest` without any class left.
        """
        index = _LabelIndex(labels)
        taken: dict[int, str] = {}
        found: dict[str, list[int]] = {}
        for region, entries in self.regions.items():
            found[region] = []
            for entry in entries:
                number = self._number(entry, region, labels, index)
                if number in taken:
                    other = taken[number]
                    twice = (
                        f"twice in {short(region)}" if other == region else f"in {short(other)} and {short(region)}"
                    )
                    raise ValueError(f"{self.name}: class {number} ({short(labels[number], 60)}) is {twice}")
                taken[number] = region
                found[region].append(number)
        if self.rest is not None:
            left = [number for number in sorted(labels) if number not in taken]
            found.setdefault(self.rest, []).extend(left)
            if not found[self.rest]:
                raise ValueError(f'{self.name}: nothing is left for the "rest" {short(self.rest)}: leave it out')
        return found

    def _number(self, entry: str | int, region: str, labels: Mapping[int, str], index: _LabelIndex) -> int:
        if isinstance(entry, int):
            if entry not in labels:
                raise ValueError(
                    f"{self.name}: {short(region)} names class {entry}, but the network's are 0 to {max(labels)}"
                )
            return entry
        for name in entry.split("|"):
            matches = index.labels.get(plain(name)) or index.synonyms.get(plain(name), [])
            if len(matches) > 1:
                raise ValueError(
                    f"{self.name}: {short(name)} of {short(region)} fits the classes {listed(matches)}: give a number"
                )
            if matches and plain(name):
                return matches[0]
        known = {plain(word): word.strip() for label in labels.values() for word in re.split("[,;]", label)}
        wanted, spelled = [plain(name) for name in entry[:200].split("|")], [k for k in known if len(k) <= 40][:200]
        near = [shown(known[m]) for n in wanted if len(n) <= 40 for m in difflib.get_close_matches(n, spelled, n=3)]
        every = [short(label.strip(), 40) for _, label in sorted(labels.items())]
        some_names = ", ".join(every[:24]) + (f" and {len(every) - 24} more" if len(every) > 24 else "")
        hint = f"did you mean {' or '.join(dict.fromkeys(near))}? " if near else ""
        raise ValueError(
            f"{self.name}: the network has no class {short(entry)} for {short(region)}; {hint}It has {some_names}"
        )


class _LabelIndex:
    """Class numbers by normalized label and by normalized synonym."""

    def __init__(self, labels: Mapping[int, str]):
        self.labels: dict[str, list[int]] = {}
        self.synonyms: dict[str, list[int]] = {}
        for number, label in labels.items():
            self.labels.setdefault(plain(label), []).append(number)
            for word in synonyms(label):
                self.synonyms.setdefault(word, []).append(number)


def plain(name: str) -> str:
    """Return a class name without case, spaces and punctuation."""
    return re.sub(r"[\W_]+", "", name.lower())


def synonyms(label: str) -> set[str]:
    """Return the names in a label such as "building, edifice", each normalized by `plain`."""
    return {plain(word) for word in re.split("[,;]", label)}


def shipped() -> list[str]:
    """Return the names of the tables that ship with the package."""
    return sorted(
        item.name for item in (files("stylefusion_hf.core") / FOLDER).iterdir() if item.name.endswith(".json")
    )
