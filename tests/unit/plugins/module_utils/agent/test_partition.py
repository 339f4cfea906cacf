# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much room a disk has for the partition of the volume."""

from __future__ import annotations

import uuid

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import partition
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
    monkeypatch.setattr(partition, "size_of", lambda _name: SIZE)
    assert room(found, replace=replace) == expected


def test_what_the_disk_has_beyond_the_image_s_table_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "size_of", lambda _name: 3 * SIZE)
    assert room(disk((1, 10), (11, 88)), replace=False) == 201 * MIB - 5 * 4096


def test_a_blank_disk_gets_a_partition_table_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "size_of", lambda _name: SIZE)
    assert room(Bare("vdb", True), replace=False) == 99 * MIB - 4096 * 5
    monkeypatch.setattr(partition, "size_of", lambda _name: 4096)
    assert room(Bare("vdb", True), replace=False) == 0


def test_what_does_not_fit_is_refused_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "size_of", lambda _name: SIZE)
    found = disk((1, 10), (61, 20))
    require_room(found, 50 * MIB, replace=False)
    with pytest.raises(Refusal, match="50 MiB are free in one piece, 51 are needed") as caught:
        require_room(found, 50 * MIB + 1, replace=False)
    assert (caught.value.code, caught.value.subject) == ("disk-too-small", "/dev/vda")
