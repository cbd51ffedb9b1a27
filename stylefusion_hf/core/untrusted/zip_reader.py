"""Zip files read as views of a buffer, within bounds: too many or overlapping entries and zip bombs are errors.

The standard library's `zipfile` allocates an object for every entry that the directory claims, and inflates without
limit.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from itertools import pairwise

from stylefusion_hf.core.untrusted.inert import MAX_RATIO, Budget, MiB

MAX_ENTRIES = 100_000
SLACK = MiB

END = b"PK\x05\x06"
END64 = b"PK\x06\x06"
LOCATOR64 = b"PK\x06\x07"
ENTRY = b"PK\x01\x02"
LOCAL = b"PK\x03\x04"


@dataclass(frozen=True)
class Entry:
    method: int
    flags: int
    packed: int
    size: int
    header: int


class ZipReader:
    """The entries of a zip file in a buffer.

    Raises:
        ConversionError: truncated, damaged, encrypted, or made to exhaust the machine.
    """

    def __init__(self, buffer: memoryview, budget: Budget):
        self.buffer, self.budget = buffer, budget
        self.entries = self._directory()

    @property
    def names(self) -> list[str]:
        return list(self.entries)

    def _number(self, at: int, n: int) -> int:
        if at < 0 or at + n > len(self.buffer):
            raise self.budget.error("truncated or damaged: a zip file without its directory")
        return int.from_bytes(self.buffer[at : at + n], "little")

    def _directory(self) -> dict[str, Entry]:
        tail = max(0, len(self.buffer) - 22 - 65_535)  # the end record may be followed by a comment
        end = bytes(self.buffer[tail:]).rfind(END) + tail
        if end < tail or end + 22 > len(self.buffer):
            raise self.budget.error("truncated: a zip file that ends before its directory does; download it again")
        count, size, at = self._number(end + 10, 2), self._number(end + 12, 4), self._number(end + 16, 4)
        if 0xFFFFFFFF in (size, at) or count == 0xFFFF:
            locator = end - 20
            if bytes(self.buffer[max(0, locator) : locator + 4]) == LOCATOR64:
                end64 = self._number(locator + 8, 8)
                if bytes(self.buffer[end64 : end64 + 4]) != END64:
                    raise self.budget.error("damaged: a zip file whose directory cannot be found")
                count, size, at = (self._number(end64 + i, 8) for i in (32, 40, 48))
        if count > MAX_ENTRIES or at + size > len(self.buffer) or size < 46 * count:
            raise self.budget.error(f"damaged: a zip file whose directory claims {count:,} entries in {size:,} bytes")
        entries: dict[str, Entry] = {}
        for _ in range(count):
            at, name, entry = self._entry(at)
            if name in entries:
                raise self.budget.error(f"damaged: a zip file with two entries {name[:80]!r}")
            entries[name] = entry
        spans = sorted((e.header, e.header + 30 + e.packed) for e in entries.values())
        if any(end > start for (_, end), (start, _) in pairwise(spans)):
            raise self.budget.error("its entries overlap: a zip bomb")
        return entries

    def _entry(self, at: int) -> tuple[int, str, Entry]:
        if bytes(self.buffer[at : at + 4]) != ENTRY:
            raise self.budget.error("damaged: a zip file with a broken directory")
        lengths = [self._number(at + i, 2) for i in (28, 30, 32)]
        self.budget.charge(600 + sum(lengths))
        packed, size, header = self._number(at + 20, 4), self._number(at + 24, 4), self._number(at + 42, 4)
        name_at, extra_at = at + 46, at + 46 + lengths[0]
        self._number(at + 46 + sum(lengths), 0)
        name = bytes(self.buffer[name_at:extra_at]).decode("utf-8", "replace")
        wide = self._wide(extra_at, extra_at + lengths[1])
        values = [wide.pop(0) if value == 0xFFFFFFFF and wide else value for value in (size, packed, header)]
        entry = Entry(self._number(at + 10, 2), self._number(at + 8, 2), values[1], values[0], values[2])
        return at + 46 + sum(lengths), name, entry

    def _wide(self, at: int, end: int) -> list[int]:
        """Read the 64-bit sizes (zip64) in an entry's extra field."""
        while at + 4 <= end:
            kind, n = self._number(at, 2), self._number(at + 2, 2)
            if kind == 1:
                return [self._number(i, 8) for i in range(at + 4, min(at + 4 + n, end) - 7, 8)]
            at += 4 + n
        return []

    def read(self, name: str) -> memoryview:
        """Return an entry's bytes: a view of the file if it is stored (as torch does), else inflated within bounds."""
        if name not in self.entries:
            raise self.budget.error(f"truncated or damaged: it lacks its part {name[:80]!r}")
        e = self.entries[name]
        if bytes(self.buffer[e.header : e.header + 4]) != LOCAL or e.flags & 1 or e.method not in (0, 8):
            raise self.budget.error(f"its part {name[:80]!r} is damaged, encrypted or packed in an unknown way")
        start = e.header + 30 + self._number(e.header + 26, 2) + self._number(e.header + 28, 2)
        packed = self.buffer[start : start + e.packed]
        if len(packed) != e.packed or (e.method == 0 and e.packed != e.size):
            raise self.budget.error(f"truncated or damaged: its part {name[:80]!r} is cut off")
        if e.method == 0:
            return packed
        if e.size > MAX_RATIO * e.packed + SLACK:
            raise self.budget.error(f"its part {name[:80]!r} inflates from {e.packed:,} to {e.size:,} bytes: zip bomb")
        self.budget.charge_held(e.size)
        inflate = zlib.decompressobj(-15)
        try:
            data = inflate.decompress(packed, e.size + 1)
        except zlib.error as error:
            raise self.budget.error(f"its part {name[:80]!r} is damaged ({error})") from None
        if len(data) != e.size:
            raise self.budget.error(f"its part {name[:80]!r} is not as long as it claims: damaged, or a zip bomb")
        return memoryview(data)
