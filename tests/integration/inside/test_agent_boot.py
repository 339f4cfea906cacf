# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The boot agent on a real disk image, a real device-mapper and a software TPM (see instance.py)."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tpm2_pytss as tss
from ansible_collections.cvm.fde.plugins.module_utils.agent import console, disks, first_boot, volume_key
from ansible_collections.cvm.fde.plugins.module_utils.agent.boot import boot
from ansible_collections.cvm.fde.plugins.module_utils.agent.decision import Action
from ansible_collections.cvm.fde.plugins.module_utils.agent.hydration import Ears, hydrate
from ansible_collections.cvm.fde.plugins.module_utils.agent.status import status
from ansible_collections.cvm.fde.plugins.module_utils.disk import gpt
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError, Refusal
from ansible_collections.cvm.fde.plugins.module_utils.luks2 import volume as volumes
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import read_area
from ansible_collections.cvm.fde.plugins.module_utils.tpm import anchor as anchors
from ansible_collections.cvm.fde.plugins.module_utils.tpm.anchor import Standing, State
from ansible_collections.cvm.fde.plugins.module_utils.tpm.esys import opened
from ansible_collections.cvm.fde.plugins.module_utils.tpm.policy import BOUND_PCRS, PolicyKey
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from instance import (
    PLAINTEXT,
    CutRunner,
    Lab,
    PcrRunner,
    PowerCut,
    add_partition,
    change,
    extend,
    mounted,
    refused,
    run,
    write_file,
)


def test_agent_first_boot_then_later_boots(lab: Lab) -> None:
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT
        write_file("written", b"first boot")
        ready = lab.anchor()
        assert ready.standing is Standing.OURS and ready.anchor is not None
        assert ready.anchor.state is State.READY
        known = status(machine.runner, machine.paths, lab.tcti)
        assert known["problems"] == []
        assert known["anchor"]["header_current"] == read_area(lab.partition).digest.hex()
    with lab.booting() as machine:
        assert boot(machine) is Action.OPEN
        with mounted() as root:
            assert (root / "written").read_bytes() == b"first boot"
            assert (root / "plaintext").read_bytes() == PLAINTEXT
        assert lab.anchor() == ready
        assert status(machine.runner, machine.paths, lab.tcti)["luks_uuid"] == known["luks_uuid"]


def test_hydration_ends_and_leaves_no_plaintext_on_the_partition(installed: Lab) -> None:
    told: list[str] = []
    with installed.booting() as machine:
        assert boot(machine) is Action.OPEN
        with mounted() as root:
            ears = Ears(told.append, lambda _: None)
            state = hydrate(machine.mapper, machine.runner, ears, mount_point=str(root), interval=0.1)
            assert state is not None and state.complete
            assert (root / "plaintext").read_bytes() == PLAINTEXT
        assert status(machine.runner, machine.paths, installed.tcti)["hydration"]["percent"] == 100.0
        assert PLAINTEXT[:64] not in Path(installed.partition).read_bytes()
        assert PLAINTEXT[:64] in Path(f"{installed.device}p2").read_bytes()
    assert told[-1].startswith("100.0 %")
    with installed.booting() as machine:
        assert boot(machine) is Action.OPEN
        with mounted() as root:
            assert (root / "plaintext").read_bytes() == PLAINTEXT


CUTS = (
    ("systemd-repart",),
    ("cryptsetup", "luksFormat"),
    ("systemd-cryptenroll",),
    ("cryptsetup", "token"),
    ("systemd-cryptsetup", "attach"),
    ("dmsetup", "create", "fde-clone-dest"),
    ("dmsetup", "create", "fde-root"),
)


def test_a_power_cut_between_any_two_steps_of_the_first_boot_starts_it_over(lab: Lab) -> None:
    partitions = set()
    for before in CUTS:
        with lab.booting() as machine:
            cut = CutRunner(before, {"DM_DISABLE_UDEV": "1", "SYSTEMD_FORCE_MEASURE": "1"})
            with pytest.raises(PowerCut):
                boot(replace(machine, runner=cut))
            found = lab.anchor()
            assert found.anchor is not None and found.anchor.state is State.INITIALIZING, before
    with lab.booting() as machine, pytest.MonkeyPatch.context() as patch:
        # The last step: everything is there, only the anchor does not say so yet.
        patch.setattr(first_boot.anchoring, "ready", lambda *_: (_ for _ in ()).throw(PowerCut("anchor")))
        with pytest.raises(PowerCut):
            boot(machine)
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT
        [disk] = [disk for disk in disks.disks() if disk.device == lab.device]
        partitions = {one.id for one in disk.table.of_type(gpt.FDE)}
        assert len(partitions) == 1
        with mounted() as root:
            assert (root / "plaintext").read_bytes() == PLAINTEXT


def test_a_power_cut_before_the_anchor_exists_starts_over(lab: Lab) -> None:
    with lab.booting() as machine:
        with opened(lab.tcti) as esys:
            anchors.define(esys, machine.key)
        assert lab.anchor().standing is Standing.UNWRITTEN
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT


def test_a_second_power_cut_finds_the_anchor_still_there(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with lab.booting() as machine:
        cut = CutRunner(("systemd-cryptenroll",), {"DM_DISABLE_UDEV": "1", "SYSTEMD_FORCE_MEASURE": "1"})
        with pytest.raises(PowerCut):
            boot(replace(machine, runner=cut))

    def deleted(*_: Any) -> None:
        raise AssertionError("the anchor was taken away while a volume stood on the disk")

    monkeypatch.setattr(anchors, "define", deleted)
    with lab.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT


def test_another_system_on_the_same_tpm_cannot_anchor_a_volume_of_its_own(installed: Lab) -> None:
    """It can bring PCR 11 to a signed value, since that is public; PCR 7 says that firmware started something else."""
    with installed.booting() as machine, opened(installed.tcti) as esys:
        extend(esys, b"another boot loader", 7)
        forged = anchors.Anchor(State.READY, header_current=b"h" * 32, volume_key_id=b"k" * 32)
        with pytest.raises(tss.TSS2_Exception):
            anchors.write(esys, machine.key, machine.policies, forged)
        anchors.define(esys, machine.key)
        anchors.write(esys, machine.key, machine.policies, forged)
    assert refused(installed) == "anchor-foreign"


@pytest.mark.parametrize(("state", "pcr"), [("first boot", 12), ("first boot", 13), ("later boot", 12)])
def test_what_the_host_adds_to_the_configuration_is_refused(
    lab: Lab, state: str, pcr: int, request: pytest.FixtureRequest
) -> None:
    instance = lab if state == "first boot" else request.getfixturevalue("installed")
    with instance.booting() as machine:
        with opened(instance.tcti) as esys:
            extend(esys, b"init=/bin/sh", pcr)
        with pytest.raises(Refusal) as caught:
            boot(machine)
    assert caught.value.code == "configuration-added"


@pytest.mark.parametrize("content", [b"\x06\0\0\0\0", b"", b"\x06\0\0\0\x01\x01"])
def test_without_secure_boot_nothing_is_made(lab: Lab, content: bytes) -> None:
    (lab.directory / "SecureBoot").write_bytes(content)
    assert refused(lab) == "secure-boot-off"
    assert lab.anchor_exists() is False


@pytest.mark.parametrize("offset", [0, 4096, 256 << 10, (256 << 10) + 4096 + 100, 1 << 20, (8 << 20) - 1])
def test_a_changed_byte_of_the_header_area_is_refused(installed: Lab, offset: int) -> None:
    change(installed, offset)
    assert refused(installed) == "header-mismatch"


def test_a_volume_of_somebody_else_sealed_to_the_same_tpm_is_refused(installed: Lab) -> None:
    with installed.booting() as machine:
        mine, temporary = bytearray(os.urandom(96)), volume_key.temporary()
        identifier = str(uuid.uuid4())
        volumes.format_volume(
            machine.runner, installed.partition, volume_key=mine, temporary_key=temporary, uuid=identifier
        )
        volumes.enrol_tpm2(
            machine.runner,
            installed.partition,
            unlock_key=temporary,
            tpm2_device=installed.tcti,
            public_key=machine.paths.public_key,
            pcrs=BOUND_PCRS,
        )
    assert refused(installed) == "header-mismatch"


def test_a_volume_that_waits_for_the_first_boot_is_refused(installed: Lab, lab: Lab) -> None:
    for state in lab.directory.glob("tpm2-*"):
        state.unlink()
    assert refused(installed) == "volume-without-anchor"


def test_an_empty_partition_that_waits_for_the_first_boot_is_refused(lab: Lab) -> None:
    add_partition(lab, gpt.FDE)
    assert refused(lab) == "partition-foreign"


@pytest.mark.parametrize("kind", [gpt.LINUX_GENERIC, gpt.FDE, gpt.ROOT_X86_64, gpt.ESP])
def test_a_partition_that_nobody_made_is_refused_later(installed: Lab, kind: uuid.UUID) -> None:
    with installed.booting():
        run("sfdisk", "--no-reread", "--force", "--delete", installed.device, "4")
    assert refused(installed) == "volume-missing"
    add_partition(installed, kind)
    assert refused(installed) == ("header-mismatch" if kind == gpt.FDE else "partition-foreign")


def test_a_missing_volume_is_refused(installed: Lab, sealed: tuple[Path, str]) -> None:
    run("cp", "--sparse=always", str(sealed[0]), str(installed.image))
    assert refused(installed) == "volume-missing"


def test_a_second_disk_with_the_same_ids_is_refused(installed: Lab) -> None:
    copy = installed.directory / "copy"
    run("cp", "--sparse=always", str(installed.image), str(copy))
    with installed.booting() as machine:
        twin = run("losetup", "--find", "--show", "--partscan", str(copy)).decode().strip()
        try:
            with pytest.raises(Refusal) as caught:
                boot(machine)
        finally:
            run("losetup", "--detach", twin)
    assert caught.value.code == "disk-ambiguous"


def test_a_deleted_anchor_is_refused(installed: Lab) -> None:
    with installed.booting(), opened(installed.tcti) as esys:
        esys.nv_undefine_space(esys.tr_from_tpmpublic(anchors.INDEX))
    assert refused(installed) == "volume-without-anchor"


def test_an_anchor_of_another_key_is_refused(installed: Lab) -> None:
    other = rsa.generate_private_key(65537, 2048).public_key()
    pem = other.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    with installed.booting(), opened(installed.tcti) as esys:
        anchors.define(esys, PolicyKey.from_pem(pem))
    assert refused(installed) == "anchor-foreign"


def test_a_later_phase_gets_neither_key_nor_anchor(installed: Lab) -> None:
    with installed.booting() as machine:
        with opened(installed.tcti) as esys:
            extend(esys, b"leave-initrd")
        with pytest.raises(Refusal) as caught:
            boot(machine)
        assert caught.value.code == "key-unavailable"
        with pytest.raises(FdeError), opened(installed.tcti) as esys:
            anchors.write(esys, machine.key, machine.policies, anchors.Anchor(State.INITIALIZING))


def test_a_refusal_closes_the_tpm_until_the_next_reset(installed: Lab) -> None:
    with installed.booting() as machine:
        console.refuse(
            Refusal("header-mismatch", "/dev/x", "it differs", "stop"), PcrRunner(installed), machine.paths.state
        )
        assert json.loads((machine.paths.state / console.REFUSAL_FILE).read_text())["code"] == "header-mismatch"
        with pytest.raises(Refusal) as caught:
            boot(machine)
        assert caught.value.code == "key-unavailable"
    with installed.booting() as machine:
        assert boot(machine) is Action.OPEN


def test_another_root_hash_is_refused(installed: Lab) -> None:
    line = (installed.directory / "cmdline").read_text().replace(installed.root_hash, "0" * 64)
    with installed.booting() as machine:
        (installed.directory / "cmdline").write_text(line)
        with pytest.raises(Refusal) as caught:
            boot(installed.machine)
        assert caught.value.code == "verity-missing"
        assert machine.mapper.find("fde-crypt") is None
