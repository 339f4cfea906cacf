# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The log of dm-log-writes, and what a power cut may leave of it on the disk.

The kernel logs a write when it is complete, and puts those that no flush has covered yet behind the next flush or
mark: whatever stands before a flush or a mark is on the disk for certain, what stands behind it may be there in part
and in any order. Source: Linux ``drivers/md/dm-log-writes.c``.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SECTOR = 512
_MAGIC = 0x6A736677736872
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
_FLUSH, _FUA, _DISCARD, _MARK = 1, 2, 4, 8

#: How a mark begins that is only for people.
LABEL = "label:"
#: The label of the time in which nothing happens but that zeros are written where nothing is yet.
FILLING = "filling"


class LogError(Exception):
    """The file is not a log of dm-log-writes of a known version."""


@dataclass(frozen=True)
class Entry:
    """One entry: a write of ``length`` bytes at ``offset`` whose data stand at ``data`` in the log file.

    ``mark`` is the text of a mark. ``durable`` says that a power cut behind this entry leaves all before it.
    """

    offset: int
    length: int
    data: int
    durable: bool
    discard: bool = False
    mark: str | None = None

    @property
    def writes(self) -> bool:
        """Whether it changes the disk."""
        return self.length > 0 and self.mark is None


def entries(log: Path) -> Iterator[Entry]:
    """Yield the entries of the log. Raises ``LogError``."""
    with log.open("rb") as file:
        magic, version, count, sector = _SUPER.unpack(file.read(_SUPER.size))
        if (magic, version) != (_MAGIC, 1) or sector not in (512, 4096):
            raise LogError(f"{log}: magic {magic:x}, version {version}, sectors of {sector} bytes")
        at = sector
        for _number in range(count):
            file.seek(at)
            start, length, flags, data_length = _ENTRY.unpack(file.read(_ENTRY.size))
            # Positions are counted in 512 bytes whatever the sectors of the disk are.
            size = length * SECTOR
            if flags & _MARK:
                yield Entry(0, 0, at, True, mark=file.read(data_length).rstrip(b"\0").decode())
                at += sector
                continue
            discard = bool(flags & _DISCARD)
            yield Entry(start * SECTOR, size, at + sector, bool(flags & (_FLUSH | _FUA)), discard)
            at += sector + (0 if discard else size)


def length(log: Path) -> int:
    """Return how many bytes of the log file are in use."""
    listed = tuple(entries(log))
    if not listed:
        return SECTOR
    last = listed[-1]
    return last.data + (SECTOR if last.mark is not None else 0 if last.discard else last.length)


@dataclass(frozen=True)
class Cut:
    """A moment of a power cut: entries before ``after`` are on the disk, of the following ones only ``stray``.

    ``torn`` is how many sectors of the last stray write arrived, None for all of it.
    """

    after: int
    stray: tuple[int, ...] = ()
    torn: int | None = None


def cuts(log: Sequence[Entry], seed: int = 0) -> Iterator[Cut]:
    """Yield a cut behind every barrier that differs from the one before, and one among the writes that follow it.

    Marks that begin with ``LABEL`` only name what happens; every other mark says that something outside of the disk
    became durable at that moment, so that a cut before and one behind it differ.
    """
    choice = random.Random(seed)
    changed = True
    for number, entry in enumerate(log):
        changed = changed or entry.writes or _outside(entry)
        if not entry.durable or not changed:
            continue
        changed = False
        yield Cut(number + 1)
        following = _open_epoch(log, number + 1)
        if following:
            kept = sorted(choice.sample(following, choice.randint(1, len(following))))
            last = log[kept[-1]]
            torn = choice.randrange(1, last.length // SECTOR) if last.length > SECTOR and not last.discard else None
            yield Cut(number + 1, tuple(kept), torn)


def _outside(entry: Entry) -> bool:
    return entry.mark is not None and not entry.mark.startswith(LABEL)


def _open_epoch(log: Sequence[Entry], start: int) -> list[int]:
    """Return the numbers of the writes that no barrier covers yet at ``start``.

    What was written after something outside became durable cannot be there before it.
    """
    found = []
    for number in range(start, len(log)):
        if _outside(log[number]):
            break
        if log[number].writes:
            found.append(number)
        if log[number].durable and log[number].mark is None:
            break
    return found


class Disk:
    """A disk image that is brought forward along a log."""

    def __init__(self, log: Path, listed: Sequence[Entry], image: Path) -> None:
        self._log, self._entries, self._image = log, listed, image
        self._position = 0

    def advance(self, position: int) -> None:
        """Write every entry before ``position``."""
        if position < self._position:
            raise ValueError("a disk does not go back")
        self._apply(self._image, range(self._position, position), None)
        self._position = position

    def stray(self, cut: Cut, image: Path) -> None:
        """Write what strayed onto a copy of the disk."""
        self._apply(image, cut.stray, cut.torn)

    def _apply(self, image: Path, numbers: Sequence[int], torn: int | None) -> None:
        with self._log.open("rb") as log, image.open("r+b") as disk:
            for place, number in enumerate(numbers):
                entry = self._entries[number]
                if not entry.writes:
                    continue
                size = entry.length if torn is None or place + 1 < len(numbers) else torn * SECTOR
                log.seek(entry.data)
                disk.seek(entry.offset)
                disk.write(bytes(size) if entry.discard else log.read(size))
