# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an attacker who holds the disk can do: find partitions and read and write their sectors."""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.cvm.fde.tests.lab.process import run

#: The partitions of a sealed disk by number; the volume is there after a boot.
ESP, DATA, HASHES, VOLUME = range(4)


@dataclass(frozen=True)
class Partition:
    """A partition of a raw disk; ``start`` and ``size`` in bytes."""

    disk: Path
    start: int
    size: int

    def read(self, offset: int, size: int) -> bytes:
        with open(self.disk, "rb") as file:
            file.seek(self.start + offset)
            return file.read(size)

    def write(self, offset: int, content: bytes) -> None:
        assert offset + len(content) <= self.size
        with open(self.disk, "r+b") as file:
            file.seek(self.start + offset)
            file.write(content)

    def flip(self, offset: int) -> None:
        """Flip one bit of one byte."""
        self.write(offset, bytes([self.read(offset, 1)[0] ^ 1]))

    def find(self, content: bytes) -> list[int]:
        """Return every offset at which the partition has this content."""
        found = []
        with open(self.disk, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            position = view.find(content, self.start, self.start + self.size)
            while position >= 0:
                found.append(position - self.start)
                position = view.find(content, position + 1, self.start + self.size)
        return found


def partitions(disk: Path) -> list[Partition]:
    """Return the partitions of a disk, in order."""
    table = json.loads(run(["sfdisk", "--json", disk]))["partitiontable"]
    return [Partition(disk, each["start"] * 512, each["size"] * 512) for each in table["partitions"]]
