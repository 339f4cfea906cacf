# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attacks on what the machine is made of: its disks, its partitions, its TPM, what it is started with."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
import tpm2_pytss as tss
from ansible_collections.cvm.fde.plugins.module_utils.agent.boot import boot
from ansible_collections.cvm.fde.plugins.module_utils.disk import gpt
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError, Refusal
from ansible_collections.cvm.fde.plugins.module_utils.tpm import anchor as anchors
from ansible_collections.cvm.fde.plugins.module_utils.tpm.anchor import State
from ansible_collections.cvm.fde.plugins.module_utils.tpm.esys import opened
from ansible_collections.cvm.fde.plugins.module_utils.tpm.policy import PolicyKey
from ansible_collections.cvm.fde.tests.attacks.catalogue import Kind, attack
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from host import make_volume
from instance import Lab, add_partition, extend, refused, run, widen


@attack(
    kind=Kind.PRE_CREATED,
    does="Puts a volume with our partition type on the disk before the first boot, sealed to the machine's own TPM",
    promise="The first boot takes nothing that it did not make",
    stops="No anchor in the TPM, but a LUKS2 header: refused, `volume-without-anchor`",
)
def test_a_volume_that_waits_for_the_first_boot_is_refused(lab: Lab) -> None:
    add_partition(lab, gpt.FDE)
    make_volume(lab)
    assert refused(lab) == "volume-without-anchor"
    assert lab.anchor_exists() is False


@attack(
    kind=Kind.PRE_CREATED,
    does="Puts an empty partition of our type on the disk before the first boot",
    promise="The first boot takes nothing that it did not make",
    stops="A partition beside those of the image, and no anchor: refused, `partition-foreign`",
)
def test_an_empty_partition_that_waits_for_the_first_boot_is_refused(lab: Lab) -> None:
    add_partition(lab, gpt.FDE)
    assert refused(lab) == "partition-foreign"


@attack(
    kind=Kind.DISKS,
    does="Replaces the volume by an empty partition of any type, our own among them",
    promise="Only the anchored volume is opened, and nothing else is on the root disk",
    stops="`volume-missing`, `partition-foreign` or `header-mismatch`",
)
@pytest.mark.parametrize("kind", [gpt.LINUX_GENERIC, gpt.FDE, gpt.ROOT_X86_64, gpt.ESP])
def test_a_partition_that_nobody_made_is_refused_later(installed: Lab, kind: uuid.UUID) -> None:
    with installed.booting():
        run("sfdisk", "--no-reread", "--force", "--delete", installed.device, "4")
    assert refused(installed) == "volume-missing"
    add_partition(installed, kind)
    assert refused(installed) == ("header-mismatch" if kind == gpt.FDE else "partition-foreign")


@attack(
    kind=Kind.DISKS,
    does="Adds an empty partition of any type beside the volume, our own among them",
    promise="Only the anchored volume is opened, and nothing else is on the root disk",
    stops="`partition-foreign`, or `volume-duplicate` for one of our type",
)
@pytest.mark.parametrize("kind", [gpt.LINUX_GENERIC, gpt.FDE, gpt.ROOT_X86_64, gpt.ROOT_VERITY_X86_64, gpt.ESP])
def test_a_partition_beside_the_volume_is_refused(installed: Lab, kind: uuid.UUID) -> None:
    widen(installed)
    add_partition(installed, kind)
    assert refused(installed) == ("volume-duplicate" if kind == gpt.FDE else "partition-foreign")


@attack(
    kind=Kind.DISKS,
    does="Takes the volume away and presents the image as it was delivered",
    promise="The machine does not fall back to a first boot",
    stops="The anchor says that there is a volume: refused, `volume-missing`",
)
def test_a_missing_volume_is_refused(installed: Lab, sealed: tuple[Path, str]) -> None:
    run("cp", "--sparse=always", str(sealed[0]), str(installed.image))
    assert refused(installed) == "volume-missing"


@attack(
    kind=Kind.DISKS,
    does="Attaches a copy of the root disk as a second disk",
    promise="It is never the host's choice which of two disks is used",
    stops="Refused, `disk-ambiguous`",
)
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


@attack(
    kind=Kind.CONFIGURATION,
    does="Adds words to the command line, a credential, an add-on or an extension, measured into PCR 12 or 13",
    promise="Nothing but the signed image configures the boot",
    stops="PCR 12 and 13 are not as without any addition: refused, `configuration-added`",
)
@pytest.mark.parametrize(
    ("state", "pcr", "words"),
    [
        ("first boot", 12, "init=/bin/sh"),
        ("first boot", 12, "fde.strategy=ephemeral"),
        ("first boot", 13, ""),
        ("later boot", 12, f"roothash={'0' * 64}"),
    ],
)
def test_what_the_host_adds_to_the_configuration_is_refused(
    lab: Lab, state: str, pcr: int, words: str, request: pytest.FixtureRequest
) -> None:
    instance = lab if state == "first boot" else request.getfixturevalue("installed")
    line = instance.directory / "cmdline"
    line.write_text(f"{line.read_text().strip()} {words}\n")
    with instance.booting() as machine:
        with opened(instance.tcti) as esys:
            extend(esys, words.encode(), pcr)
        with pytest.raises(Refusal) as caught:
            boot(machine)
    assert caught.value.code == "configuration-added"


@attack(
    kind=Kind.CONFIGURATION,
    does="Turns Secure Boot off",
    promise="No volume is made or opened that any system could open",
    stops="The firmware's variable: refused, `secure-boot-off`; of a volume that exists, PCR 7 differs",
)
@pytest.mark.parametrize("content", [b"\x06\0\0\0\0", b"", b"\x06\0\0\0\x01\x01"])
def test_without_secure_boot_nothing_is_made(lab: Lab, content: bytes) -> None:
    (lab.directory / "SecureBoot").write_bytes(content)
    assert refused(lab) == "secure-boot-off"
    assert lab.anchor_exists() is False


@attack(
    kind=Kind.ANCHOR,
    does="Starts another system on the TPM, brings PCR 11 to a signed value, and anchors a volume of its own",
    promise="Only the signed image, started as at the first boot, writes the anchor",
    stops="The anchor's policy also names PCR 7 and 12; an index made anew has another Name: `anchor-foreign`",
)
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


@attack(
    kind=Kind.ANCHOR,
    does="Deletes the anchor",
    promise="A volume without an anchor is not opened",
    stops="Refused, `volume-without-anchor`",
)
def test_a_deleted_anchor_is_refused(installed: Lab) -> None:
    with installed.booting(), opened(installed.tcti) as esys:
        esys.nv_undefine_space(esys.tr_from_tpmpublic(anchors.INDEX))
    assert refused(installed) == "volume-without-anchor"


@attack(
    kind=Kind.ANCHOR,
    does="Defines an index in the anchor's place, under a policy key of its own",
    promise="Only an index with our policy is believed",
    stops="The TPM's Name of the index covers its policy: refused, `anchor-foreign`",
)
def test_an_anchor_of_another_key_is_refused(installed: Lab) -> None:
    other = rsa.generate_private_key(65537, 2048).public_key()
    pem = other.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    with installed.booting(), opened(installed.tcti) as esys:
        anchors.define(esys, PolicyKey.from_pem(pem))
    assert refused(installed) == "anchor-foreign"


@attack(
    kind=Kind.OTHER_TPM,
    does="Takes over a later phase of the boot and asks the TPM for the key and for a new anchor",
    promise="Key and anchor are only to be had in the initrd of the signed image",
    stops="PCR 11 was extended when the initrd ended, and no signature covers that value: `key-unavailable`",
)
def test_a_later_phase_gets_neither_key_nor_anchor(installed: Lab) -> None:
    with installed.booting() as machine:
        with opened(installed.tcti) as esys:
            extend(esys, b"leave-initrd")
        with pytest.raises(Refusal) as caught:
            boot(machine)
        assert caught.value.code == "key-unavailable"
        with pytest.raises(FdeError), opened(installed.tcti) as esys:
            anchors.write(esys, machine.key, machine.policies, anchors.Anchor(State.INITIALIZING))


@attack(
    kind=Kind.VERITY,
    does="Has another root hash on the command line than the verified root was set up with",
    promise="The root is the one of the signed command line",
    stops="The agent compares the kernel's verity table: refused, `verity-missing`",
)
def test_another_root_hash_is_refused(installed: Lab) -> None:
    line = (installed.directory / "cmdline").read_text().replace(installed.root_hash, "0" * 64)
    with installed.booting() as machine:
        (installed.directory / "cmdline").write_text(line)
        with pytest.raises(Refusal) as caught:
            boot(installed.machine)
        assert caught.value.code == "verity-missing"
        assert machine.mapper.find("fde-crypt") is None
