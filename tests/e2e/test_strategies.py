# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every strategy in whole boots of both suites, on every kind of disk.

trixie's kernel has no dm-clone, so that it has overlay and copy only. Interface, size of sectors and place of the
volume are spread over the strategies so that each pair of them is booted; `clone` on a virtio disk is the fleet's.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.reference import PHASE_READY
from ansible_collections.cvm.fde.tests.attacks.catalogue import Kind as Attack
from ansible_collections.cvm.fde.tests.attacks.catalogue import attack
from ansible_collections.cvm.fde.tests.e2e.disk import HASHES, Partition, partitions
from ansible_collections.cvm.fde.tests.e2e.refused import is_refused
from ansible_collections.cvm.fde.tests.lab.disks import DataDisk
from ansible_collections.cvm.fde.tests.lab.guest import GIB, Guest, boot, together
from ansible_collections.cvm.fde.tests.lab.sealed import Sealed, sealed_image
from ansible_collections.cvm.fde.tests.lab.upkeep import settle


@dataclass(frozen=True)
class Kind:
    """One kind of instance: what was sealed, and the disks that it runs on.

    The volume goes to ``spare`` where there is one.
    """

    suite: str
    strategy: str
    interface: str
    sector: int
    spare: tuple[DataDisk, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.suite}-{self.strategy}"

    @property
    def image(self) -> Sealed:
        place = f"serial:{self.spare[0].serial}" if self.spare else None
        return sealed_image(self.suite, self.strategy, sector=self.sector, volume_disk=place)


KINDS = (
    Kind("forky", "clone", "nvme", 4096),
    Kind("forky", "overlay", "scsi", 512, (DataDisk(2 * GIB, interface="virtio", serial="upper-1"),)),
    Kind("forky", "copy", "virtio", 4096, (DataDisk(3 * GIB, interface="scsi", serial="copy-1"),)),
    Kind("forky", "ephemeral", "virtio", 512),
    Kind("trixie", "overlay", "nvme", 512, (DataDisk(2 * GIB, interface="nvme", sector=4096, serial="upper-1"),)),
    Kind("trixie", "copy", "scsi", 4096),
)
EVERY = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def those(*strategies: str) -> pytest.MarkDecorator:
    """Return the mark of a test of some strategies only."""
    chosen = [kind for kind in KINDS if kind.strategy in strategies]
    return pytest.mark.parametrize("kind", chosen, ids=lambda kind: kind.name)


@dataclass(frozen=True)
class Instances:
    """A guest of each kind after its second boot; in the first one ``secret`` was written to /srv/secret."""

    guests: dict[Kind, Guest]
    secret: bytes


def wanted(request: pytest.FixtureRequest) -> list[Kind]:
    """Return the kinds that the chosen tests ask after; all of them for a test that names none."""
    here = [item for item in request.session.items if item.path == request.path]
    named = [getattr(item, "callspec", None) for item in here]
    asked = {call.params["kind"] for call in named if call is not None}
    return [kind for kind in KINDS if kind in asked or asked == set()]


@pytest.fixture(scope="module")
def instances(request: pytest.FixtureRequest) -> Iterator[Instances]:
    guests = {kind: Guest(f"e2e-{kind.name}") for kind in wanted(request)}
    kinds = {guest.name: kind for kind, guest in guests.items()}
    secret = secrets.token_hex(32).encode()

    def live(guest: Guest) -> None:
        kind = kinds[guest.name]
        shape: dict[str, Any] = {"interface": kind.interface, "sector": kind.sector, "disks": kind.spare}
        Guest.create(guest.name, kind.image.image, size=5 * GIB, **shape)
        boot(guest)
        guest.ssh("cat > /srv/secret && for n in $(seq 256); do cat /srv/secret; done > /srv/secrets", stdin=secret)
        guest.ssh("echo changed > /etc/issue.net && sync")
        guest.reboot()

    try:
        together(live, guests.values(), at_once=2)
        yield Instances(guests, secret)
    finally:
        for guest in guests.values():
            guest.power_off()


def status(guest: Guest) -> dict[str, object]:
    """Return what the agent knows of the guest's root."""
    known = json.loads(guest.ssh("/usr/lib/cvm-fde/agent.pyz status").stdout)
    assert isinstance(known, dict)
    return known


def disks_below(guest: Guest, device: str) -> set[str]:
    """Return the whole disks that a device lies on."""
    listed = guest.ssh(f"lsblk --noheadings --list --inverse --output NAME,TYPE {device}").stdout.splitlines()
    return {name for name, kind in map(str.split, listed) if kind == "disk"}


def disk_of(guest: Guest, path: str) -> str:
    return guest.ssh(f"basename $(readlink -f {path})").stdout.strip()


@EVERY
def test_every_kind_boots_to_a_system_without_failed_units(instances: Instances, kind: Kind) -> None:
    guest = instances.guests[kind]
    assert guest.ssh("systemctl --failed --no-legend --plain").stdout == ""
    assert status(guest)["strategy"] == kind.strategy


@EVERY
def test_the_root_disk_is_of_the_kind_that_was_asked_for(instances: Instances, kind: Kind) -> None:
    guest = instances.guests[kind]
    root = disk_of(guest, guest.hardware.root.by_id)
    assert guest.ssh(f"cat /sys/block/{root}/queue/logical_block_size").stdout.strip() == str(kind.sector)
    assert root.startswith({"virtio": "vd", "nvme": "nvme", "scsi": "sd"}[kind.interface])


@EVERY
def test_what_is_written_is_kept_or_gone(instances: Instances, kind: Kind) -> None:
    found = instances.guests[kind].ssh("cat /srv/secret", check=False).stdout.encode()
    assert (found == instances.secret) is (kind.strategy != "ephemeral")


@EVERY
def test_the_root_is_of_its_kind(instances: Instances, kind: Kind) -> None:
    layered = kind.strategy in ("overlay", "ephemeral")
    found = instances.guests[kind].ssh("findmnt --noheadings --output FSTYPE /").stdout.strip()
    assert found == ("overlay" if layered else "ext4")


@EVERY
def test_the_tpm_holds_what_the_manifest_says(instances: Instances, kind: Kind) -> None:
    script = "for p in 4 7 11 12 13 14; do echo $p $(cat /sys/class/tpm/tpm0/pcr-sha256/$p); done"
    held = dict(line.lower().split() for line in instances.guests[kind].ssh(script).stdout.splitlines())
    expected = json.loads(kind.image.manifest.read_text())["pcrs"]["sha256"]
    assert held.pop("11") == expected["11"][PHASE_READY]
    assert {pcr: value in expected[pcr] for pcr, value in held.items()} == dict.fromkeys(held, True)


@those("clone", "overlay", "copy")
def test_the_volume_is_on_the_disk_that_was_sealed_in(instances: Instances, kind: Kind) -> None:
    guest = instances.guests[kind]
    where = kind.spare[0] if kind.spare else guest.hardware.root
    assert disks_below(guest, "/dev/mapper/fde-crypt") == {disk_of(guest, where.by_id)}


@those("overlay")
def test_the_upper_layer_is_btrfs(instances: Instances, kind: Kind) -> None:
    guest = instances.guests[kind]
    assert guest.ssh("findmnt --noheadings --output FSTYPE /run/cvm-fde/upper").stdout.strip() == "btrfs"
    masks = status(guest)["overlay"]
    assert isinstance(masks, dict) and masks["masked"] >= 1 and masks["outdated"] == {}


@those("copy")
def test_a_copied_root_fills_the_disk(instances: Instances, kind: Kind) -> None:
    guest = instances.guests[kind]
    settle(guest)
    assert [line.split()[2] for line in guest.ssh("dmsetup table fde-root").stdout.splitlines()] == ["linear"]
    assert int(guest.ssh("df --block-size=1 --output=size / | tail -1").stdout) > 2 * GIB


@those("clone", "overlay", "copy")
def test_every_sector_of_the_volume_can_be_read_and_its_file_system_is_sound(instances: Instances, kind: Kind) -> None:
    """Also through the page cache, which reads ahead and, on forky, in large folios."""
    guest = instances.guests[kind]
    settle(guest)
    device = "/dev/mapper/fde-upper" if kind.strategy == "overlay" else "/dev/mapper/fde-root"
    guest.ssh(f"sync && echo 3 > /proc/sys/vm/drop_caches && cat {device} > /dev/null", timeout=1200)
    if kind.strategy == "overlay":
        scrubbed = guest.ssh("btrfs scrub start -B /run/cvm-fde/upper", timeout=1200).stdout
        assert "no errors found" in scrubbed
        size = int(guest.ssh("df --block-size=1 --output=size /run/cvm-fde/upper | tail -1").stdout)
        assert size > GIB
    else:
        # It is mounted and in use, so that counts may be behind; but nothing may be unreadable.
        checked = guest.ssh(f"e2fsck -fn {device}", check=False, timeout=1200).stdout
        assert "Pass 5" in checked and "Input/output error" not in checked, checked
    assert "AEAD ERROR" not in guest.ssh("dmesg").stdout


@those("ephemeral")
def test_an_ephemeral_instance_has_no_volume(instances: Instances, kind: Kind) -> None:
    guest = instances.guests[kind]
    assert guest.ssh("dmsetup ls").stdout.split()[::2] == ["root"]
    anchor = status(guest)["anchor"]
    assert isinstance(anchor, dict) and anchor["standing"] == "absent"
    assert len(partitions(guest.disk)) == 3


@attack(
    kind=Attack.VERITY,
    does="Flips one bit in the super block of the hash tree of an image without a volume",
    promise="What is read from the root is what was sealed, or nothing is started",
    stops="The verity device cannot be made: the guest says `verity-missing` and goes off",
)
@those("ephemeral")
def test_an_ephemeral_instance_without_its_verified_root_is_refused(kind: Kind) -> None:
    guest = Guest("e2e-without-root")
    Guest.create(guest.name, kind.image.image)
    partitions(guest.disk)[HASHES].flip(0)
    try:
        guest.start(once=True)
        guest.wait_off()
        assert is_refused(guest.serial.boot(), "verity-missing")
    finally:
        guest.power_off()


def test_nothing_that_was_written_is_readable_on_any_disk(instances: Instances) -> None:
    guests = list(instances.guests.values())
    together(Guest.shut_down, guests)
    for guest in guests:
        files = [guest.disk, *(guest.data_disk(disk.serial) for disk in guest.hardware.disks)]
        for file in files:
            assert Partition(file, 0, file.stat().st_size).find(instances.secret) == [], guest.name
