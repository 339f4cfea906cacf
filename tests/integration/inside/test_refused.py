# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Boots that are refused: each by its own name, and of many reasons by the first one of the table."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import anchoring, evidence, upkeep
from ansible_collections.cvm.fde.plugins.module_utils.agent.boot import boot
from ansible_collections.cvm.fde.plugins.module_utils.agent.configuration import Strategy
from ansible_collections.cvm.fde.plugins.module_utils.agent.decision import Action
from ansible_collections.cvm.fde.plugins.module_utils.agent.hydration import Ears
from ansible_collections.cvm.fde.plugins.module_utils.agent.machine import VOLUME, Machine
from ansible_collections.cvm.fde.plugins.module_utils.codes import Code
from ansible_collections.cvm.fde.plugins.module_utils.disk import gpt
from ansible_collections.cvm.fde.plugins.module_utils.dm import integrity
from ansible_collections.cvm.fde.plugins.module_utils.dm.clone import NAMES as CLONE
from ansible_collections.cvm.fde.plugins.module_utils.dm.device import DeviceMapper
from ansible_collections.cvm.fde.plugins.module_utils.dm.table import Linear
from ansible_collections.cvm.fde.plugins.module_utils.errors import Refusal
from ansible_collections.cvm.fde.plugins.module_utils.luks2 import volume as volumes
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import HeaderArea, read_area
from ansible_collections.cvm.fde.plugins.module_utils.luks2.change import draft, store
from ansible_collections.cvm.fde.plugins.module_utils.luks2.profile import LAYOUT
from ansible_collections.cvm.fde.plugins.module_utils.runner import Completed, Runner
from ansible_collections.cvm.fde.plugins.module_utils.tpm.anchor import Standing
from ansible_collections.cvm.fde.plugins.module_utils.tpm.esys import opened
from cryptography.hazmat.primitives.asymmetric import rsa
from instance import (
    MIB,
    SIGNATURES,
    Content,
    Lab,
    PoorRunner,
    add_partition,
    change,
    extend,
    make_lab,
    make_sealed,
    mounted,
    refused,
    run,
    seal_with,
    widen,
)
from test_anchor import fill, own
from test_commit import restate
from test_recovery import whole_volume
from tpm2_pytss import ESYS_TR


@pytest.fixture(autouse=True)
def signatures(lab: Lab) -> Any:
    """Have the signatures where systemd-stub leaves them."""
    SIGNATURES.write_text(Path(lab.machine.paths.signatures).read_text())
    yield
    SIGNATURES.unlink()
    (lab.directory / "spare").unlink(missing_ok=True)


def copied(lab: Lab) -> None:
    lab.spare = lab.directory / "spare"
    run("cp", "--sparse=always", str(lab.image), str(lab.spare))


def shrink(lab: Lab, file: Path | None = None, by: int = MIB) -> None:
    """Make the entry of the volume's partition smaller, from the host's side."""
    path = file or lab.image
    with path.open("r+b") as disk:
        table = gpt.read_table(disk, path.stat().st_size, "disk")
        parts = [replace(one, size=one.size - by) if one.type == gpt.FDE else one for one in table.partitions]
        for offset, block in gpt.encode_table(replace(table, partitions=tuple(parts))):
            disk.seek(offset)
            disk.write(block)


def spoil_integrity(lab: Lab) -> None:
    """Give dm-integrity's superblock a version that no kernel knows."""
    with lab.image.open("r+b") as disk:
        volume = gpt.read_table(disk, lab.image.stat().st_size, "disk").of_type(gpt.FDE)[0]
        disk.seek(volume.offset + LAYOUT.offset + 8)
        disk.write(b"\x63")


def provide(lab: Lab, sectors: Callable[[int], int]) -> None:
    """Change how many sectors dm-integrity's superblock says that it provides."""
    with lab.image.open("r+b") as disk:
        volume = gpt.read_table(disk, lab.image.stat().st_size, "disk").of_type(gpt.FDE)[0]
        disk.seek(volume.offset + LAYOUT.offset + 16)
        provided = sectors(int.from_bytes(disk.read(8), "little"))
        disk.seek(-8, os.SEEK_CUR)
        disk.write(provided.to_bytes(8, "little"))


def extended(pcr: int) -> Callable[[Lab, Machine], Machine]:
    def extend_it(lab: Lab, machine: Machine) -> Machine:
        with opened(lab.tcti) as esys:
            extend(esys, b"something else", pcr)
        return machine

    return extend_it


def cut_records(lab: Lab) -> None:
    """Keep copies of a disk whose volume has lost dm-clone's record of what was copied, and then its own record too.

    Only who holds the volume's key can do that; what the host can do to either makes them unreadable.
    """
    for lost, name in ((CLONE.metadata, "no-copied"), (VOLUME, "no-written")):
        with lab.booting() as machine:
            if lost == VOLUME:
                with pytest.raises(Refusal):
                    boot(machine)
            else:
                assert boot(machine) is Action.OPEN
            # The clone would write its record once more at its end.
            machine.mapper.remove_all(CLONE.root)
            with open(machine.mapper.get(lost).path, "r+b", buffering=0) as device:
                device.write(bytes(4096))
                os.fsync(device.fileno())
        run("cp", "--sparse=always", str(lab.image), str(lab.directory / name))


def without(record: str) -> Callable[[Lab], object]:
    return lambda lab: run("cp", "--sparse=always", str(lab.directory / record), str(lab.image))


def pin_foreign_header(lab: Lab) -> None:
    """Let the anchor pin a header too that the allow-list refuses, as no agent does, and keep it."""
    with lab.booting() as machine:
        area = read_area(lab.partition)
        with draft(area, "/run") as copy:
            volumes.import_token(machine.runner, copy.path, {"type": "foreign", "keyslots": []})
            new = copy.area()
        anchoring.update(machine, lambda anchor: anchor.changing(new.digest))
    (lab.directory / "foreign-header").write_bytes(new.content)


def put_foreign_header(lab: Lab) -> None:
    with lab.image.open("r+b") as disk:
        volume = gpt.read_table(disk, lab.image.stat().st_size, "disk").of_type(gpt.FDE)[0]
        disk.seek(volume.offset)
        disk.write((lab.directory / "foreign-header").read_bytes())


@dataclass(frozen=True)
class Meddler:
    """Stands between the agent and what it runs: opens volumes with other settings, lets nothing be measured, or does
    something before a volume is opened.
    """

    runner: Runner
    unmeasured: bool = False
    mapper: DeviceMapper | None = None
    before: Callable[[], object] = lambda: None

    def find(self, name: str) -> str | None:
        return self.runner.find(name)

    def run(self, argv: Any, **options: Any) -> Completed:
        if self.unmeasured:
            options["env"] = {**(options.get("env") or {}), "SYSTEMD_FORCE_MEASURE": "0"}
        if "attach" in argv:
            self.before()
        done = self.runner.run(argv, **options)
        if self.mapper is not None and "attach" in argv:
            lower = self.mapper.get(f"{VOLUME}_dif")
            self.mapper.load(VOLUME, [Linear(0, lower.size, lower.number, 0)])
            self.mapper.resume(VOLUME)
        return done


def opened_otherwise(_lab: Lab, machine: Machine) -> Machine:
    return replace(machine, runner=Meddler(machine.runner, mapper=machine.mapper))


def unmeasured(_lab: Lab, machine: Machine) -> Machine:
    return replace(machine, runner=Meddler(machine.runner, unmeasured=True))


def without_verity(_lab: Lab, machine: Machine) -> Machine:
    machine.mapper.remove("root")
    return machine


def without_dm_crypt(_lab: Lab, machine: Machine) -> Machine:
    return replace(machine, runner=PoorRunner("dm-crypt"))


def sealed_before(_lab: Lab, machine: Machine) -> Machine:
    return replace(machine, configuration=replace(machine.configuration, svn=0))


def sealed_for_copy(_lab: Lab, machine: Machine) -> Machine:
    return replace(machine, configuration=replace(machine.configuration, strategy=Strategy.COPY))


@dataclass(frozen=True)
class Wrong:
    """A thing that is wrong: what it does to the machine that is off, and to the one that boots."""

    code: Code
    off: Callable[[Lab], object] = lambda _lab: None
    booting: Callable[[Lab, Machine], Machine] = lambda _lab, machine: machine


#: All of it can be wrong at once.
WRONG = (
    Wrong(Code.SECURE_BOOT_OFF, off=lambda lab: (lab.directory / "SecureBoot").write_bytes(b"\x06\0\0\0\0")),
    Wrong(Code.CONFIGURATION_ADDED, booting=extended(12)),
    Wrong(Code.STRATEGY_UNSUPPORTED, booting=without_dm_crypt),
    Wrong(Code.VERITY_MISSING, booting=without_verity),
    Wrong(Code.IMAGE_OUTDATED, booting=sealed_before),
    Wrong(Code.DISK_AMBIGUOUS, off=copied),
    Wrong(Code.PARTITION_FOREIGN, off=lambda lab: add_partition(lab, gpt.LINUX_GENERIC)),
    Wrong(Code.VOLUME_DUPLICATE, off=lambda lab: add_partition(lab, gpt.FDE)),
    Wrong(Code.HEADER_MISMATCH, off=lambda lab: change(lab, LAYOUT.offset - 1)),
    Wrong(Code.LUKS2_POLICY, off=put_foreign_header),
    Wrong(Code.DEVICE_SHRUNK, off=shrink),
    Wrong(Code.KEY_UNAVAILABLE, booting=extended(11)),
    Wrong(Code.NOT_ACTIVATED, off=spoil_integrity),
    Wrong(Code.ACTIVE_TABLE, booting=opened_otherwise),
    Wrong(Code.NOT_MEASURED, booting=unmeasured),
    Wrong(Code.IMAGE_CHANGED, booting=sealed_for_copy),
    Wrong(Code.WRITTEN_RECORD, off=without("no-written")),
    Wrong(Code.CLONE_METADATA, off=without("no-copied")),
)


def test_of_all_that_is_wrong_the_first_of_the_table_is_named(installed: Lab) -> None:
    widen(installed)
    seal_with(installed, svn=1)
    with installed.booting() as machine:
        anchoring.mark_image(machine)
    pristine = installed.directory / "pristine"
    run("cp", "--sparse=always", str(installed.image), str(pristine))
    cut_records(installed)
    run("cp", "--sparse=always", str(pristine), str(installed.image))
    pin_foreign_header(installed)
    found = []
    for number in range(len(WRONG) + 1):
        run("cp", "--sparse=always", str(pristine), str(installed.image))
        (installed.directory / "SecureBoot").write_bytes(b"\x06\0\0\0\x01")
        installed.spare = None
        # The volume's own partition is changed before another one of its type is added.
        for wrong in reversed(WRONG[number:]):
            wrong.off(installed)
        with installed.booting() as machine:
            for wrong in WRONG[number:]:
                machine = wrong.booting(installed, machine)
            if number == len(WRONG):
                assert boot(machine) is Action.OPEN
                break
            with pytest.raises(Refusal) as caught:
                boot(machine)
            found.append(caught.value.code)
    for path in (pristine, *(installed.directory / name for name in ("no-copied", "no-written"))):
        path.unlink()
    assert found == [wrong.code.value for wrong in WRONG]
    assert found == [code.value for code in Code if code.value in found], "and that is the order of the table"


def test_a_pinned_header_without_evidence_of_its_creation_is_of_no_image(installed: Lab) -> None:
    """No agent pins one: there is no telling which image the volume was made from."""
    with installed.booting() as machine:
        area = read_area(installed.partition)
        with draft(area, "/run") as copy:
            restate(machine, copy.path, purpose=evidence.RECOVERY)
            new = copy.area()
        anchoring.update(machine, lambda anchor: anchor.changing(new.digest))
        store(installed.partition, area, HeaderArea(installed.partition, new.content))
    with installed.booting() as machine:
        with pytest.raises(Refusal, match="no evidence of its creation") as caught:
            boot(machine)
        assert caught.value.code == "image-changed"
        assert machine.mapper.find(CLONE.root) is None


def test_a_device_needs_all_but_the_last_few_blocks_of_its_length(installed: Lab) -> None:
    with installed.booting(), open(installed.partition, "rb") as device:
        length = device.seek(0, 2) - LAYOUT.offset
        device.seek(LAYOUT.offset)
        needed = integrity.needed(device.read(integrity.SUPERBLOCK_SIZE))
    assert needed is not None
    assert 0 <= length - needed * 512 < MIB // 2


#: An instance of every kind whose root lies in a volume, and whether its clone is brought to its end.
KINDS = {
    "hydrating": ("clone", False),
    "complete": ("clone", True),
    "copy": ("copy", False),
    "overlay": ("overlay", False),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sectors", [lambda _: 16 * MIB // 512, lambda provided: 2 * provided], ids=["less", "more"])
def test_a_volume_that_dm_integrity_provides_less_or_more_of_was_cut_off(
    tmp_path: Path, sealed: tuple[Path, str], signer: rsa.RSAPrivateKey, kind: str, sectors: Callable[[int], int]
) -> None:
    """Nobody authenticates its superblock. Once that is as it was the volume opens: nothing was written."""
    strategy, complete = KINDS[kind]
    lab = make_lab(tmp_path, sealed, signer, strategy)
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT
        if complete:
            with mounted() as root:
                upkeep.finish(machine, Ears(lambda _: None, lambda _: None), str(root))
    genuine: list[int] = []
    provide(lab, lambda provided: genuine.append(provided) or provided)
    before = whole_volume(lab)
    provide(lab, sectors)
    assert refused(lab) == "device-shrunk"
    provide(lab, lambda _provided: genuine[0])
    assert whole_volume(lab) == before
    with lab.booting() as machine:
        assert boot(machine) is Action.OPEN


@pytest.mark.parametrize("strategy", ["clone", "copy"])
def test_a_new_volume_that_becomes_too_small_while_it_is_made_was_cut_off(
    tmp_path: Path, sealed: tuple[Path, str], signer: rsa.RSAPrivateKey, strategy: str
) -> None:
    """The disk had room for it, so a larger one would not help; the next boot makes it anew."""
    lab = make_lab(tmp_path, sealed, signer, strategy)
    with lab.booting() as machine:
        meddler = Meddler(machine.runner, before=lambda: provide(lab, lambda _: 16 * MIB // 512))
        with pytest.raises(Refusal) as caught:
            boot(replace(machine, runner=meddler))
        assert caught.value.code == "device-shrunk"
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT


def on_a_second_disk(tmp_path: Path, sealed: tuple[Path, str], signer: rsa.RSAPrivateKey) -> tuple[Lab, Path]:
    """Return an instance whose volume goes to another disk, and that disk, which is blank."""
    lab, spare = make_lab(tmp_path, sealed, signer, "overlay"), tmp_path / "spare"
    line = lab.directory / "cmdline"
    line.write_text(f"{line.read_text().strip()} fde.disk=other\n")
    with spare.open("wb") as file:
        file.truncate(640 * MIB)
    lab.spare = spare
    return lab, spare


def test_a_volume_on_a_second_disk_that_was_cut_off_is_refused_by_name(
    tmp_path: Path, sealed: tuple[Path, str], signer: rsa.RSAPrivateKey
) -> None:
    lab, spare = on_a_second_disk(tmp_path, sealed, signer)
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT
    whole = tmp_path / "whole"
    run("cp", "--sparse=always", str(spare), str(whole))
    with spare.open("r+b") as file:
        file.truncate(600 * MIB)
    assert refused(lab) == "disk-damaged"
    run("cp", "--sparse=always", str(whole), str(spare))
    shrink(lab, spare, 40 * MIB)
    assert refused(lab) == "device-shrunk"
    run("cp", "--sparse=always", str(whole), str(spare))
    with lab.booting() as machine:
        assert boot(machine) is Action.OPEN
    for path in (whole, lab.image):
        path.unlink()


def test_a_second_disk_with_a_partition_table_that_is_not_ours_is_not_blank(
    tmp_path: Path, sealed: tuple[Path, str], signer: rsa.RSAPrivateKey
) -> None:
    """Somebody may have removed its partitions by mistake, and want them back."""
    lab, spare = on_a_second_disk(tmp_path, sealed, signer)
    with spare.open("r+b") as file:
        for offset, block in gpt.encode_table(gpt.new_table(uuid.uuid4(), 640 * MIB, ())):
            file.seek(offset)
            file.write(block)
    assert refused(lab) == "disk-foreign"
    with lab.booting():
        assert lab.anchor().standing is Standing.ABSENT
    lab.image.unlink()


def test_a_disk_without_room_for_the_volume_is_refused_before_anything_is_made(
    tmp_path: Path, signer: rsa.RSAPrivateKey
) -> None:
    (tmp_path / "small").mkdir()
    lab = make_lab(tmp_path, make_sealed(tmp_path / "small", Content(disk=192 * MIB)), signer)
    with lab.booting() as machine:
        with pytest.raises(Refusal) as caught:
            boot(machine)
        assert caught.value.code == "disk-too-small" and "MiB are free in one piece" in caught.value.cause
        assert lab.anchor().standing is Standing.ABSENT
        assert not Path(lab.partition).exists()
    # The table of the image is that of the smaller disk still; there is room behind what it speaks of.
    with lab.image.open("r+b") as file:
        file.truncate(640 * MIB)
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT


def test_a_read_only_copy_of_the_root_disk_is_a_copy(installed: Lab) -> None:
    copied(installed)
    twin, installed.spare = installed.spare, None
    with installed.booting() as machine:
        loop = run("losetup", "--find", "--show", "--partscan", "--read-only", str(twin)).decode().strip()
        try:
            with pytest.raises(Refusal) as caught:
                boot(machine)
            assert caught.value.code == "disk-ambiguous" and loop in caught.value.subject
        finally:
            run("losetup", "--detach", loop)


def test_of_what_ends_a_first_boot_the_first_of_the_table_is_named(tmp_path: Path, signer: rsa.RSAPrivateKey) -> None:
    """The disk is looked at before the TPM is asked for room, and that says who owns it before it looks for any."""
    (tmp_path / "small").mkdir()
    lab = make_lab(tmp_path, make_sealed(tmp_path / "small", Content(disk=192 * MIB)), signer)
    found = []
    with lab.booting(), opened(lab.tcti) as esys:
        fill(esys)
        own(esys)
    found.append(refused(lab))
    with lab.image.open("r+b") as file:
        file.truncate(640 * MIB)
    found.append(refused(lab))
    with lab.booting(), opened(lab.tcti) as esys:
        esys.tr_set_auth(ESYS_TR.OWNER, b"password")
        esys.hierarchy_change_auth(ESYS_TR.OWNER, b"")
    found.append(refused(lab))
    lab.image.unlink()
    assert found == ["disk-too-small", "tpm-owned", "anchor-no-room"]
    assert found == [code.value for code in Code if code.value in found], "and that is the order of the table"
