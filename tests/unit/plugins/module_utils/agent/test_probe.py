# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a look at a disk of the volume's own makes of it before the first boot; real disks: tests/integration."""

from __future__ import annotations

import uuid

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import probe
from ansible_collections.cvm.fde.plugins.module_utils.agent.configuration import Configuration, Strategy, VolumeDisk
from ansible_collections.cvm.fde.plugins.module_utils.agent.decision import decide
from ansible_collections.cvm.fde.plugins.module_utils.agent.disks import Disk, Survey
from ansible_collections.cvm.fde.plugins.module_utils.codes import Code
from ansible_collections.cvm.fde.plugins.module_utils.disk import gpt
from ansible_collections.cvm.fde.plugins.module_utils.errors import Refusal
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import HeaderArea
from ansible_collections.cvm.fde.plugins.module_utils.tpm.anchor import Found, Standing

HASH = bytes(range(32))
CONFIGURATION = Configuration(HASH, Strategy.CLONE, VolumeDisk.parse("other"))
EMPTY, LUKS = bytes(4096), b"LUKS\xba\xbe" + bytes(4090)


def disk(name: str, *partitions: tuple[uuid.UUID, uuid.UUID]) -> Disk:
    """Return a disk with partitions of these types and ids."""
    found = [gpt.Partition(n, *both, n * gpt.MIB, gpt.MIB) for n, both in enumerate(partitions, 1)]
    return Disk(name, gpt.new_table(uuid.uuid4(), 64 * gpt.MIB, found))


IMAGE = disk(
    "vda",
    (gpt.ESP, uuid.UUID(int=1)),
    (gpt.LINUX_GENERIC, CONFIGURATION.data_partition),
    (gpt.LINUX_GENERIC, CONFIGURATION.hash_partition),
)


@pytest.mark.parametrize(
    ("partitions", "content", "code"),
    [
        ([], EMPTY, Code.DISK_FOREIGN),
        ([gpt.LINUX_GENERIC], EMPTY, Code.PARTITION_FOREIGN),
        ([gpt.LINUX_GENERIC], LUKS, Code.PARTITION_FOREIGN),
        ([gpt.FDE], EMPTY, Code.PARTITION_FOREIGN),
        ([gpt.FDE], LUKS, Code.VOLUME_WITHOUT_ANCHOR),
        ([gpt.FDE, gpt.FDE], LUKS, Code.VOLUME_DUPLICATE),
    ],
)
def test_what_is_on_the_other_disk_before_the_first_boot_is_refused(
    monkeypatch: pytest.MonkeyPatch, partitions: list[uuid.UUID], content: bytes, code: Code
) -> None:
    monkeypatch.setattr(probe, "require_known", lambda _disk: None)
    monkeypatch.setattr(probe, "partition_device", lambda disk, partition: f"{disk.device}{partition.number}")
    monkeypatch.setattr(probe, "read_area", lambda device: HeaderArea(device, content))
    other = disk("vdb", *((kind, uuid.UUID(int=n)) for n, kind in enumerate(partitions, 8)))
    try:
        decided = decide(probe.look(CONFIGURATION, Found(Standing.ABSENT), Survey((IMAGE, other))).probed)
    except Refusal as refusal:
        decided = refusal
    assert isinstance(decided, Refusal) and decided.code == code
    assert decided.subject.startswith("/dev/vdb")
