# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Device-mapper tables as values.

A table is a tuple of targets. It is rendered for ``dmsetup create`` and ``load`` and read back from ``dmsetup
table``. All lengths and offsets are in sectors of 512 bytes. A device is named by a path or as the kernel prints it,
``major:minor``. Source: Linux Documentation/admin-guide/device-mapper.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional, Sequence, Union

from ..errors import FdeError

SECTOR = 512


class TableError(FdeError):
    """A table or status line that does not have the form its target documents."""

    def __init__(self, line: str, cause: str) -> None:
        super().__init__(
            "device-mapper", f"{cause}: {line!r}", "Check that dmsetup and the kernel are supported versions"
        )


@dataclass(frozen=True)
class Linear:
    """A slice of another device."""

    start: int
    length: int
    device: str
    offset: int

    @property
    def kind(self) -> str:
        return "linear"

    @property
    def arguments(self) -> str:
        return f"{self.device} {self.offset}"


@dataclass(frozen=True)
class Clone:
    """A writable copy of ``source`` that fills ``destination`` as time permits (dm-clone.rst).

    ``region`` is the unit of copying in sectors, ``threshold`` how many regions may be under way at once and
    ``batch`` how many neighbours are copied by one request.
    """

    start: int
    length: int
    metadata: str
    destination: str
    source: str
    region: int
    hydrate: bool = False
    discard_passdown: bool = False
    threshold: Optional[int] = None
    batch: Optional[int] = None

    @property
    def kind(self) -> str:
        return "clone"

    @property
    def arguments(self) -> str:
        features = [] if self.hydrate else ["no_hydration"]
        features += [] if self.discard_passdown else ["no_discard_passdown"]
        core: list[str] = []
        if self.threshold is not None:
            core += ["hydration_threshold", str(self.threshold)]
        if self.batch is not None:
            core += ["hydration_batch_size", str(self.batch)]
        words = [self.metadata, self.destination, self.source, str(self.region), str(len(features)), *features]
        return " ".join([*words, str(len(core)), *core] if core else words)


@dataclass(frozen=True)
class Other:
    """A target that this collection reads but never writes, with its arguments as printed."""

    start: int
    length: int
    kind: str
    arguments: str


Target = Union[Linear, Clone, Other]
Table = tuple[Target, ...]


def zero(length: int) -> Table:
    """Return the table of a device that reads as zeros."""
    return (Other(0, length, "zero", ""),)


def error(length: int) -> Table:
    """Return the table of a device on which everything fails."""
    return (Other(0, length, "error", ""),)


def render(table: Sequence[Target]) -> str:
    """Return a table as dmsetup reads it, one target a line."""
    for target in table:
        if target.length <= 0 or target.start < 0:
            raise ValueError(f"no such target: {target}")
        if re.search(r"[\n\0]", target.arguments):
            raise ValueError(f"a device name may not contain a line break: {target.arguments!r}")
    return "".join(f"{t.start} {t.length} {t.kind} {t.arguments}".rstrip() + "\n" for t in table)


def parse(text: str) -> Table:
    """Read what ``dmsetup table NAME`` printed. Raises ``TableError``."""
    return tuple(_target(line) for line in text.splitlines() if line.strip())


def _target(line: str) -> Target:
    match = re.fullmatch(r"(\d{1,20}) (\d{1,20}) ([a-z0-9_-]{1,16})(?: (.*))?", line.rstrip())
    if match is None:
        raise TableError(line, "not a table line")
    start, length, kind, arguments = int(match[1]), int(match[2]), match[3], match[4] or ""
    if kind == "linear":
        return _linear(line, start, length, arguments.split())
    if kind == "clone":
        return _clone(line, start, length, arguments.split())
    return Other(start, length, kind, arguments)


def _linear(line: str, start: int, length: int, words: list[str]) -> Linear:
    if len(words) != 2:
        raise TableError(line, "a linear target has two arguments")
    return Linear(start, length, words[0], number(line, words[1]))


def _clone(line: str, start: int, length: int, words: list[str]) -> Clone:
    if len(words) < 4:
        raise TableError(line, "a clone target has at least four arguments")
    features, rest = counted(line, words[4:])
    core_words, rest = counted(line, rest)
    if rest or len(core_words) % 2:
        raise TableError(line, "the arguments of a clone target do not add up")
    core = {key: number(line, value) for key, value in zip(core_words[::2], core_words[1::2])}
    return Clone(
        start,
        length,
        metadata=words[0],
        destination=words[1],
        source=words[2],
        region=number(line, words[3]),
        hydrate="no_hydration" not in features,
        discard_passdown="no_discard_passdown" not in features,
        threshold=core.get("hydration_threshold"),
        batch=core.get("hydration_batch_size"),
    )


def counted(line: str, words: list[str]) -> tuple[list[str], list[str]]:
    """Split a list that starts with the number of its first words. Raises ``TableError``."""
    if not words:
        return [], []
    count = number(line, words[0])
    if count > len(words) - 1:
        raise TableError(line, "it announces more arguments than it has")
    return words[1 : 1 + count], words[1 + count :]


def number(line: str, word: str) -> int:
    """Return a decimal number of a line. Raises ``TableError``."""
    if not re.fullmatch(r"\d{1,20}", word):
        raise TableError(line, f"{word!r} is not a number")
    return int(word)
