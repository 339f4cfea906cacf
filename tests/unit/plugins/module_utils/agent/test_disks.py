# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which disks a boot is about: one with the image, one with the volume, and no other that looks like either."""

from __future__ import annotations

import errno
import itertools
import os
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import disks
from ansible_collections.cvm.fde.plugins.module_utils.agent.configuration import Configuration, Strategy, VolumeDisk
from ansible_collections.cvm.fde.plugins.module_utils.agent.disks import Bare, Choice, Disk, Survey, choose, survey
from ansible_collections.cvm.fde.plugins.module_utils.codes import Code
from ansible_collections.cvm.fde.plugins.module_utils.disk import gpt
from ansible_collections.cvm.fde.plugins.module_utils.errors import Refusal

MIB = gpt.MIB
SIZE = 64 * MIB
HASH = bytes(range(32))
DATA, HASHES = uuid.UUID(bytes=HASH[:16]), uuid.UUID(bytes=HASH[16:])
ESP, VOLUME = uuid.UUID(int=1), uuid.UUID(int=2)


def disk(name: str, *ids: uuid.UUID, kind: uuid.UUID = gpt.LINUX_GENERIC, read_only: bool = False) -> Disk:
    partitions = [gpt.Partition(n, kind, one, n * MIB, MIB) for n, one in enumerate(ids, 1)]
    return Disk(name, gpt.new_table(uuid.uuid4(), SIZE, partitions), read_only)


IMAGE = disk("vda", ESP, DATA, HASHES)
WITH_VOLUME = disk("vda", ESP, DATA, HASHES, VOLUME)
OTHER = disk("vdb", uuid.UUID(int=9))
APART = disk("vdb", VOLUME, kind=gpt.FDE)
BLANK, FULL = Bare("vdb", True), Bare("vdb", False)
BEGUN = Bare("vdb", False, "a partition table header is not one", begun=True)
DAMAGED = Bare("vdb", False, "the checksum of the partition entries is wrong")


def outcome(where: str, *found: object, serials: Optional[dict[str, str]] = None) -> object:
    configuration = Configuration(HASH, Strategy.CLONE, VolumeDisk.parse(where))
    tables = tuple(one for one in found if isinstance(one, Disk))
    bare = tuple(one for one in found if isinstance(one, Bare))
    chosen = choose(configuration, Survey(tables, bare, serials or {}))
    return chosen.code if isinstance(chosen, Refusal) else (chosen.image.name, chosen.volume.name)


@pytest.mark.parametrize(
    ("where", "found", "expected"),
    [
        ("root", (IMAGE,), ("vda", "vda")),
        ("root", (WITH_VOLUME,), ("vda", "vda")),
        ("root", (IMAGE, OTHER, BLANK), ("vda", "vda")),
        ("root", (IMAGE, DAMAGED), ("vda", "vda")),
        ("root", (), Code.DISK_AMBIGUOUS),
        ("root", (OTHER,), Code.DISK_AMBIGUOUS),
        ("root", (OTHER, BLANK, FULL), Code.DISK_AMBIGUOUS),
        # A disk that was cut off, or whose table was written over.
        ("root", (OTHER, DAMAGED), Code.DISK_DAMAGED),
        ("root", (IMAGE, disk("vdb", ESP, DATA, HASHES)), Code.DISK_AMBIGUOUS),
        # One id of the image, or that of the volume, is enough: by-partuuid links would be the host's choice.
        ("root", (IMAGE, disk("vdb", DATA)), Code.DISK_AMBIGUOUS),
        ("root", (WITH_VOLUME, disk("vdb", VOLUME)), Code.DISK_AMBIGUOUS),
        ("root", (WITH_VOLUME, disk("vdb", ESP)), Code.DISK_AMBIGUOUS),
        ("other", (IMAGE, BLANK), ("vda", "vdb")),
        ("other", (IMAGE, APART), ("vda", "vdb")),
        ("other", (IMAGE, OTHER), ("vda", "vdb")),
        ("other", (IMAGE,), Code.VOLUME_DISK),
        ("other", (IMAGE, BLANK, Bare("vdc", True)), Code.VOLUME_DISK),
        ("other", (IMAGE, BLANK, disk("vdc")), Code.VOLUME_DISK),
        ("other", (IMAGE, FULL), Code.DISK_FOREIGN),
        ("other", (IMAGE, DAMAGED), Code.DISK_DAMAGED),
        ("other", (IMAGE, BEGUN), Code.DISK_DAMAGED),
        ("other", (IMAGE, replace(BEGUN, damage="")), Code.DISK_FOREIGN),
        ("other", (IMAGE, disk("vdb", DATA)), Code.DISK_AMBIGUOUS),
        ("other", (BLANK,), Code.DISK_AMBIGUOUS),
        # The host says which disk is read-only: it is looked at like any other, and never chosen.
        ("root", (IMAGE, disk("vdb", ESP, DATA, HASHES, read_only=True)), Code.DISK_AMBIGUOUS),
        ("root", (disk("vda", ESP, DATA, HASHES, read_only=True),), Code.DISK_AMBIGUOUS),
        ("root", (IMAGE, disk("vdb", HASHES, read_only=True)), Code.DISK_AMBIGUOUS),
        ("root", (WITH_VOLUME, disk("vdb", VOLUME, read_only=True)), Code.DISK_AMBIGUOUS),
        ("root", (IMAGE, disk("vdb", uuid.UUID(int=9), read_only=True)), ("vda", "vda")),
        ("root", (Bare("vda", False, "damage", read_only=True),), Code.DISK_DAMAGED),
        ("other", (disk("vda", ESP, DATA, HASHES, read_only=True), BLANK), Code.DISK_AMBIGUOUS),
        ("other", (IMAGE, Bare("vdb", True, read_only=True)), Code.VOLUME_DISK),
        ("other", (IMAGE, BLANK, Bare("vdc", False, read_only=True)), ("vda", "vdb")),
        ("other", (IMAGE, APART, disk("vdc", uuid.UUID(int=9), read_only=True)), ("vda", "vdb")),
        ("other", (IMAGE, APART, disk("vdc", VOLUME, read_only=True)), Code.DISK_AMBIGUOUS),
    ],
)
def test_the_disks_are_chosen_or_refused_by_name(where: str, found: tuple[object, ...], expected: object) -> None:
    assert outcome(where, *found) == expected


def test_pieces_of_our_own_table_are_taken_for_a_blank_disk_while_a_first_boot_is_unfinished() -> None:
    configuration = Configuration(HASH, Strategy.CLONE, VolumeDisk.parse("other"))

    def outcome(*bare: Bare) -> object:
        chosen = choose(configuration, Survey((IMAGE,), bare), unfinished=True)
        return chosen.code if isinstance(chosen, Refusal) else chosen.volume.name

    assert outcome(BEGUN) == outcome(replace(BEGUN, damage="")) == "vdb"
    assert (outcome(DAMAGED), outcome(FULL)) == (Code.DISK_DAMAGED, Code.DISK_FOREIGN)


#: What can be wrong with the disks of a machine whose volume is on a disk of its own, by the part it is wrong with.
WRONG: dict[str, tuple[str, Code, dict[str, object]]] = {
    "no image": ("image", Code.DISK_AMBIGUOUS, {"image": replace(OTHER, name="vda")}),
    "a damaged image": ("image", Code.DISK_DAMAGED, {"image": replace(DAMAGED, name="vda")}),
    "a read-only image": ("image", Code.DISK_AMBIGUOUS, {"image": replace(IMAGE, read_only=True)}),
    "a copy of the image": ("copy", Code.DISK_AMBIGUOUS, {"copy": replace(IMAGE, name="vdc")}),
    "a read-only copy": ("copy", Code.DISK_AMBIGUOUS, {"copy": replace(IMAGE, name="vdc", read_only=True)}),
    "a disk with one id of the image": ("copy", Code.DISK_AMBIGUOUS, {"copy": disk("vdc", DATA)}),
    "a disk with the volume's id": ("copy", Code.DISK_AMBIGUOUS, {"copy": disk("vdc", VOLUME)}),
    "no second disk": ("volume", Code.VOLUME_DISK, {"volume": None}),
    "a read-only second disk": ("volume", Code.VOLUME_DISK, {"volume": replace(APART, read_only=True)}),
    "a damaged second disk": ("volume", Code.DISK_DAMAGED, {"volume": DAMAGED}),
    "a second disk in use": ("volume", Code.DISK_FOREIGN, {"volume": FULL}),
    "two second disks": ("number", Code.VOLUME_DISK, {"serials": {"vdb": "mine", "vdd": "mine"}}),
}
PAIRS = [pair for pair in itertools.combinations(WRONG, 2) if WRONG[pair[0]][0] != WRONG[pair[1]][0]]


def chosen(*changes: dict[str, object]) -> object:
    """Choose among the disks of a machine that is as it should be, but for these changes."""
    told: dict[str, Any] = {"image": IMAGE, "volume": APART, "copy": None, "serials": {"vdb": "mine"}}
    for one in changes:
        told |= one
    spare = Bare("vdd", True)
    found = [one for one in (told["image"], told["volume"], told["copy"], spare) if one is not None]
    return outcome("serial:mine", *found, serials=told["serials"])


def expected_of(one: str, other: str) -> object:
    """Return the code that the documentation promises: the first of the table, but for what cannot be told at all."""
    pair = {one, other}
    image = pair & {name for name, (part, _code, _change) in WRONG.items() if part == "image"}
    if "a copy of the image" in pair and image & {"no image", "a damaged image"}:
        # The copy is the image then, and nothing is wrong with it.
        return ("vdc", "vdb")
    if pair == {"no image", "a damaged second disk"}:
        # It may have been the image.
        return Code.DISK_DAMAGED
    if image:
        # As long as the image is not found, nothing can be said of the other disks.
        return WRONG[image.pop()][1] if "a read-only copy" not in pair else Code.DISK_AMBIGUOUS
    if "a disk with the volume's id" in pair and WRONG[one][0] in ("volume", "number"):
        return WRONG[one][1]
    if "a disk with the volume's id" in pair and WRONG[other][0] in ("volume", "number"):
        # There is no volume that it could be a copy of, or it is not clear which one it is.
        return WRONG[other][1]
    if "two second disks" in pair and pair & {"no second disk", "a read-only second disk"}:
        # The spare one is the only one of that number.
        return ("vda", "vdd")
    return min((WRONG[name][1] for name in pair), key=list(Code).index)


def test_nothing_is_wrong_with_the_disks_as_they_should_be() -> None:
    assert chosen() == ("vda", "vdb")


@pytest.mark.parametrize("name", WRONG)
def test_each_anomaly_of_the_disks_is_named(name: str) -> None:
    _part, code, change = WRONG[name]
    assert chosen(change) == code


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_of_each_pair_of_anomalies_the_first_of_the_table_is_named(one: str, other: str) -> None:
    assert chosen(WRONG[one][2], WRONG[other][2]) == expected_of(one, other)


def test_a_disk_is_chosen_by_its_serial_number() -> None:
    spare = Bare("vdc", True)
    serials = {"vdb": "data-1", "vdc": "data-2"}
    assert outcome("serial:data-2", IMAGE, FULL, spare, serials=serials) == ("vda", "vdc")
    assert outcome("serial:data-3", IMAGE, FULL, spare, serials=serials) == Code.VOLUME_DISK
    assert outcome("serial:data-1", IMAGE, FULL, spare, serials={"vdb": "data-1", "vdc": "data-1"}) == Code.VOLUME_DISK
    assert outcome("serial:data-1", IMAGE, serials={"vda": "data-1"}) == Code.VOLUME_DISK, "not that of the image"


class Machine:
    """Block devices as sysfs shows them, with files in the place of their nodes."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sysfs, self.devices = top / "sys", top / "dev"
        (self.sysfs / "block").mkdir(parents=True)
        self.devices.mkdir()
        monkeypatch.setattr(disks, "DEVICES", self.devices)

    def add(self, name: str, *, sector: int = 512, content: bytes = b"", under: str = "pci", **files: str) -> None:
        device = self.sysfs / "devices" / under / name
        device.mkdir(parents=True)
        known = {"size": str(SIZE // 512), "queue/logical_block_size": str(sector), **files}
        for path, text in known.items():
            (device / path).parent.mkdir(parents=True, exist_ok=True)
            (device / path).write_bytes(text.encode("latin-1"))
        os.symlink(device, self.sysfs / "block" / name)
        with (self.devices / name).open("wb") as file:
            file.write(content)
            file.truncate(SIZE)

    def add_image(self, name: str, table_sector: int, **options: object) -> None:
        partitions = [gpt.Partition(n, gpt.LINUX_GENERIC, one, n * MIB, MIB) for n, one in enumerate((DATA, HASHES), 1)]
        self.add(name, **options)  # type: ignore[arg-type]
        with (self.devices / name).open("r+b") as file:
            for offset, block in gpt.encode_table(gpt.new_table(ESP, SIZE, partitions, table_sector)):
                file.seek(offset)
                file.write(block)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["vda", "nvme0n1", "sda", "xvda"])
@pytest.mark.parametrize("sector", [512, 4096])
def test_disks_of_every_kind_and_both_sector_sizes_are_found(machine: Machine, name: str, sector: int) -> None:
    machine.add_image(name, sector, sector=sector)
    found = choose(Configuration(HASH, Strategy.CLONE), survey(machine.sysfs))
    assert isinstance(found, Choice) and found.image.device.endswith(name)
    assert found.image.table.sector_size == sector


@pytest.mark.parametrize(("table", "sector"), [(512, 4096), (4096, 512)])
def test_a_table_that_the_firmware_would_not_find_is_none(machine: Machine, table: int, sector: int) -> None:
    machine.add_image("vda", table, sector=sector)
    assert survey(machine.sysfs).disks == ()


def test_what_is_no_disk_is_left_out(machine: Machine) -> None:
    machine.add_image("dm-0", 512, under="virtual")
    machine.add_image("zram0", 512, under="virtual")
    machine.add_image("nvme1n1", 512, under="virtual/block")
    machine.add_image("sr0", 512)
    machine.add_image("vdc", 512, size="0")
    found = survey(machine.sysfs)
    assert (found.disks, found.bare) == ((), ())


def test_a_read_only_disk_is_looked_at_and_told_apart(machine: Machine) -> None:
    machine.add_image("vda", 512, ro="0")
    machine.add_image("vdb", 512, ro="1")
    machine.add("vdc", ro="1")
    found = survey(machine.sysfs)
    assert [(one.name, one.read_only) for one in found.disks] == [("vda", False), ("vdb", True)]
    assert found.bare == (Bare("vdc", True, read_only=True),)
    assert outcome("root", *found.disks) == Code.DISK_AMBIGUOUS


NVME_HEAD, NVME_PATH = "virtual/nvme-subsystem/nvme-subsys0", "pci0000:00/0000:00:04.0/nvme/nvme0"


@pytest.mark.parametrize("where", ["root", "other"])
def test_an_nvme_disk_of_several_paths_is_one_disk(machine: Machine, where: str) -> None:
    # Native multipath (nvme_core.multipath): the head is a virtual device, its paths are hidden and have no node.
    machine.add_image("nvme0n1", 512, under=NVME_HEAD, hidden="0", **{"device/serial": "image"})
    for path in ("nvme0c0n1", "nvme0c1n1"):
        machine.add(path, under=NVME_PATH, hidden="1")
        (machine.devices / path).unlink()
    machine.add("nvme1n1", under=NVME_HEAD.replace("0", "1"), hidden="0")
    machine.add("nvme1c2n1", under=NVME_PATH, hidden="1")
    (machine.devices / "nvme1c2n1").unlink()
    found = survey(machine.sysfs)
    assert [one.name for one in (*found.disks, *found.bare)] == ["nvme0n1", "nvme1n1"]
    assert found.serials == {"nvme0n1": "image"}
    expected = {"root": ("nvme0n1", "nvme0n1"), "other": ("nvme0n1", "nvme1n1")}
    assert outcome(where, *found.disks, *found.bare) == expected[where]


def test_blank_full_and_damaged_disks_are_told_apart(machine: Machine) -> None:
    machine.add("vda")
    machine.add("vdb", content=bytes(SIZE - 5) + b"x")
    machine.add("vdc", content=b"\xeb" * 512)
    machine.add_image("vdd", 512)
    with (machine.devices / "vdd").open("r+b") as file:
        for place in (2 * 512, SIZE - 33 * 512):
            file.seek(place)
            file.write(b"damage")
    found = {one.name: one for one in survey(machine.sysfs).bare}
    assert found["vda"] == Bare("vda", True)
    assert found["vdb"] == Bare("vdb", False)
    assert found["vdc"] == Bare("vdc", False)
    assert found["vdd"].damage and not found["vdd"].blank


@pytest.mark.parametrize("sector", [512, 4096])
def test_pieces_of_a_table_are_ours_only_where_they_name_no_partition_of_others(machine: Machine, sector: int) -> None:
    for name, kind in (("vda", gpt.FDE), ("vdb", gpt.LINUX_GENERIC)):
        table = gpt.new_table(ESP, SIZE, (gpt.Partition(1, kind, VOLUME, MIB, MIB),), sector)
        machine.add(name, sector=sector)
        with (machine.devices / name).open("r+b") as file:
            file.seek(table.end_usable)
            file.write(gpt.encode_table(table)[1][1])
    machine.add("vdc", sector=sector, content=bytes(MIB - 1) + b"x")
    with (machine.devices / "vdc").open("r+b") as file:
        file.write((machine.devices / "vda").read_bytes()[: 2 * sector])
    found = {one.name: one for one in survey(machine.sysfs).bare}
    assert {name: (one.blank, one.begun) for name, one in found.items()} == {
        "vda": (False, True),
        "vdb": (False, False),
        "vdc": (False, False),
    }


def test_a_table_that_the_kernel_reads_otherwise_is_refused(machine: Machine) -> None:
    machine.add_image("vda", 512, **{"vda1/partition": "1", "vda2/partition": "2"})
    (found,) = survey(machine.sysfs).disks
    disks.require_known(found, machine.sysfs)
    (machine.sysfs / "block/vda/vda3").mkdir()
    (machine.sysfs / "block/vda/vda3/partition").write_text("3")
    with pytest.raises(Refusal, match="the kernel reads its table otherwise: partitions 1, 2, 3") as caught:
        disks.require_known(found, machine.sysfs)
    assert caught.value.code == Code.DISK_DAMAGED


def test_a_disk_that_stops_to_answer_is_damaged_and_ends_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.add("vda", content=b"\xeb" * 512)

    def gone(*_: object) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(disks, "has_signature", gone)
    assert survey(machine.sysfs).bare == (Bare("vda", False, "Input/output error"),)


def test_a_disk_that_shrank_is_damaged(machine: Machine) -> None:
    machine.add("vda", size=str(SIZE // 1024))
    partitions = [gpt.Partition(n, gpt.FDE, one, n * MIB, 20 * n * MIB) for n, one in enumerate((DATA,), 1)]
    wide = gpt.Partition(2, gpt.FDE, HASHES, 30 * MIB, 30 * MIB)
    with (machine.devices / "vda").open("r+b") as file:
        for offset, block in gpt.encode_table(gpt.new_table(ESP, SIZE, (*partitions, wide))):
            file.seek(offset)
            file.write(block)
    assert outcome("root", *survey(machine.sysfs).bare) == Code.DISK_DAMAGED


@pytest.mark.parametrize(
    ("where", "image", "second"),
    [
        ("root", (DATA, HASHES, DATA), ()),
        ("root", (DATA, HASHES, VOLUME, VOLUME), ()),
        ("other", (DATA, HASHES, HASHES), (VOLUME,)),
        ("other", (DATA, HASHES), (VOLUME, VOLUME)),
    ],
)
def test_a_disk_that_shows_an_id_twice_is_damaged(
    machine: Machine, where: str, image: tuple[uuid.UUID, ...], second: tuple[uuid.UUID, ...]
) -> None:
    add_table(machine, "vda", *image)
    add_table(machine, "vdb", *second)
    found = survey(machine.sysfs)
    assert [one.damage for one in found.bare] == ["two partitions have the same unique id"]
    assert outcome(where, *found.disks, *found.bare) == Code.DISK_DAMAGED


def add_table(machine: Machine, name: str, *ids: uuid.UUID) -> None:
    """Add a disk with partitions of these ids, which ``new_table`` would refuse when one is there twice."""
    partitions = tuple(gpt.Partition(n, gpt.FDE, one, n * MIB, MIB) for n, one in enumerate(ids, 1))
    table = replace(gpt.new_table(ESP, SIZE, ()), partitions=partitions)
    machine.add(name)
    with (machine.devices / name).open("r+b") as file:
        for offset, block in gpt.encode_table(table):
            file.seek(offset)
            file.write(block)


def test_serial_numbers_are_read_wherever_a_driver_puts_them(machine: Machine) -> None:
    machine.add("vda", serial="data-1\n")
    machine.add("nvme0n1", **{"device/serial": "data-2         \n"})
    machine.add("sda", **{"device/vpd_pg80": "\0\x80\0\x08data-3  "})
    machine.add("sdb")
    assert survey(machine.sysfs).serials == {"vda": "data-1", "nvme0n1": "data-2", "sda": "data-3"}
