# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The partition of the volume: the room that a disk has for it, and the order in which it comes into the table."""

from __future__ import annotations

import io
import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import disks, partition
from ansible_collections.cvm.fde.plugins.module_utils.agent.disks import Bare, Disk
from ansible_collections.cvm.fde.plugins.module_utils.agent.partition import require_room, room
from ansible_collections.cvm.fde.plugins.module_utils.disk import gpt
from ansible_collections.cvm.fde.plugins.module_utils.errors import Refusal

MIB = gpt.MIB
SIZE = 100 * MIB


def disk(*pieces: tuple[int, int], kind: uuid.UUID = gpt.LINUX_GENERIC) -> Disk:
    """Return a disk with partitions of this start and size in MiB; the last one is of ``kind``."""
    kinds = [gpt.LINUX_GENERIC] * (len(pieces) - 1) + [kind]
    parts = [
        gpt.Partition(number, kinds[number - 1], uuid.uuid4(), start * MIB, size * MIB)
        for number, (start, size) in enumerate(pieces, 1)
    ]
    return Disk("vda", gpt.new_table(uuid.uuid4(), SIZE, parts))


def sized(monkeypatch: pytest.MonkeyPatch, size: int, sector: int = 512) -> None:
    """Let the disk be of that size."""
    monkeypatch.setattr(partition, "size_of", lambda _name: size)
    monkeypatch.setattr(partition, "sector_size_of", lambda _name: sector)


@pytest.mark.parametrize(
    ("found", "replace", "expected"),
    [
        (disk((1, 10), (11, 20)), False, (69 * MIB) - 5 * 4096),
        (disk((11, 20), (1, 10)), False, (69 * MIB) - 5 * 4096),
        (disk((1, 10), (61, 20)), False, 50 * MIB),
        (disk((1, 10), (11, 88)), False, MIB - 5 * 4096),
        (disk((1, 10), (11, 88), kind=gpt.FDE), False, MIB - 5 * 4096),
        (disk((1, 10), (11, 88), kind=gpt.FDE), True, 89 * MIB - 5 * 4096),
        (disk((1, 10), (11, 88)), True, MIB - 5 * 4096),
    ],
)
def test_the_largest_free_piece_counts(
    monkeypatch: pytest.MonkeyPatch, found: Disk, replace: bool, expected: int
) -> None:
    sized(monkeypatch, SIZE)
    assert room(found, replace=replace) == expected


def test_what_the_disk_has_beyond_the_image_s_table_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    sized(monkeypatch, 3 * SIZE)
    assert room(disk((1, 10), (11, 88)), replace=False) == 201 * MIB - 5 * 4096


def test_a_blank_disk_gets_a_partition_table_too(monkeypatch: pytest.MonkeyPatch) -> None:
    sized(monkeypatch, SIZE)
    assert room(Bare("vdb", True), replace=False) == 99 * MIB - 4096 * 5
    sized(monkeypatch, 8 * 4096)
    assert room(Bare("vdb", True), replace=False) == 0


def test_what_does_not_fit_is_refused_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    sized(monkeypatch, SIZE)
    found = disk((1, 10), (61, 20))
    require_room(found, 50 * MIB, replace=False)
    with pytest.raises(Refusal, match="50 MiB are free in one piece, 51 are needed") as caught:
        require_room(found, 50 * MIB + 1, replace=False)
    assert (caught.value.code, caught.value.subject) == ("disk-too-small", "/dev/vda")


class Recorded:
    """A disk in a file, as it was at each flush, and the kernel's partitions of it."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, sector: int) -> None:
        self._path, self._sector = path, sector
        self.flushed = [path.read_bytes()]
        self.calls: list[tuple[object, ...]] = []
        monkeypatch.setattr(disks, "DEVICES", path.parent)
        sized(monkeypatch, path.stat().st_size, sector)
        monkeypatch.setattr(partition.os, "fsync", lambda _descriptor: self.flushed.append(path.read_bytes()))
        monkeypatch.setattr(partition, "known_partitions", lambda _name: {1, 2, 3})
        monkeypatch.setattr(partition.blkpg, "delete", lambda _disk, number: self.calls.append(("delete", number)))
        monkeypatch.setattr(partition.blkpg, "add", lambda _disk, *made: self.calls.append(("add", *made)))

    def left_by_power_cuts(self) -> Iterator[bytes]:
        """Yield what may be on the disk: all that was flushed, and some of the sectors that were written after."""
        choice = random.Random(7)
        for before, after in zip(self.flushed, self.flushed[1:]):
            sectors = [at for at in range(0, len(before), 512) if before[at : at + 512] != after[at : at + 512]]
            yield before
            for _attempt in range(40):
                torn = bytearray(before)
                for at in choice.sample(sectors, choice.randint(0, len(sectors))):
                    torn[at : at + 512] = after[at : at + 512]
                yield bytes(torn)
        yield self.flushed[-1]


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("replaced", [False, True])
def test_no_power_cut_leaves_a_disk_without_a_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sector: int, replaced: bool
) -> None:
    kinds = [gpt.ESP, gpt.ROOT_X86_64, gpt.FDE if replaced else gpt.ROOT_VERITY_X86_64]
    parts = [gpt.Partition(n, kind, uuid.uuid4(), n * MIB, MIB) for n, kind in enumerate(kinds, 1)]
    table = gpt.new_table(uuid.uuid4(), 5 * MIB, parts, sector)
    path = tmp_path / "vda"
    # Larger than the image: where the kernel looks for the second copy of its table there is none.
    path.write_bytes(bytes(12 * MIB))
    write(path, table)
    recorded = Recorded(path, monkeypatch, sector)
    found = Disk("vda", table)
    kept = parts[:2] if replaced else parts
    made = gpt.Partition(3 if replaced else 4, gpt.FDE, uuid.uuid4(), 4 * MIB, 7 * MIB, name="fde")
    partition._write(found, partition._table(found, (*kept, made)), made, {one.number for one in kept})
    states = {read(left, sector) for left in recorded.left_by_power_cuts()}
    assert states == {tuple(parts), (*kept, made)}
    assert recorded.calls == ([("delete", 3)] if replaced else []) + [("add", made.number, 4 * MIB, 7 * MIB)]


@pytest.mark.parametrize("sector", [512, 4096])
def test_a_power_cut_leaves_of_a_blank_disk_what_the_next_boot_begins_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sector: int
) -> None:
    path = tmp_path / "vdb"
    path.write_bytes(bytes(12 * MIB))
    recorded = Recorded(path, monkeypatch, sector)
    made = gpt.Partition(1, gpt.FDE, uuid.uuid4(), MIB, 10 * MIB, name="fde")
    bare = Bare("vdb", True)
    partition._write(bare, partition._table(bare, (made,)), made, set())
    begun = 0
    for left in recorded.left_by_power_cuts():
        front, back = left[:MIB], left[-MIB:]
        try:
            assert read(left, sector) == (made,)
        except gpt.GptError:
            begun += any(front) or any(back)
            assert gpt.holds_only(front, back, sector, gpt.FDE)
    assert begun > 10


def read(content: bytes, sector: int) -> tuple[gpt.Partition, ...]:
    return gpt.read_live_table(io.BytesIO(content), len(content), "disk", sector).partitions


def write(path: Path, table: gpt.Table) -> None:
    with path.open("r+b") as file:
        for at, content in gpt.encode_table(table):
            file.seek(at)
            file.write(content)
