# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The strategies beside ``clone`` in whole boots: overlay and copy on trixie, whose kernel has no dm-clone, and
ephemeral on forky.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from ansible_collections.cvm.fde.tests.e2e.disk import Partition, partitions
from ansible_collections.cvm.fde.tests.lab.disks import DataDisk
from ansible_collections.cvm.fde.tests.lab.guest import GIB, Guest, boot, together
from ansible_collections.cvm.fde.tests.lab.sealed import sealed_image

#: Strategy: suite, where the volume goes, further disks.
KINDS: dict[str, tuple[str, str, tuple[DataDisk, ...]]] = {
    "overlay": ("trixie", "serial:upper-1", (DataDisk(2 * GIB, interface="nvme", sector=4096, serial="upper-1"),)),
    "copy": ("trixie", "root", ()),
    "ephemeral": ("forky", "root", ()),
}


@dataclass(frozen=True)
class Instances:
    """A guest of each strategy after its second boot; in the first one ``secret`` was written to /srv/secret."""

    guests: dict[str, Guest]
    secret: bytes


@pytest.fixture(scope="module")
def instances() -> Iterator[Instances]:
    guests = {strategy: Guest(f"e2e-{strategy}") for strategy in KINDS}
    secret = secrets.token_hex(32).encode()

    def live(guest: Guest) -> None:
        strategy = guest.name.removeprefix("e2e-")
        suite, place, further = KINDS[strategy]
        image = sealed_image(suite, strategy, volume_disk=None if place == "root" else place).image
        Guest.create(guest.name, image, size=6 * GIB, disks=further)
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


@pytest.mark.parametrize("strategy", KINDS)
def test_every_strategy_boots_to_a_system_without_failed_units(instances: Instances, strategy: str) -> None:
    guest = instances.guests[strategy]
    assert guest.ssh("systemctl --failed --no-legend --plain").stdout == ""
    assert status(guest)["strategy"] == strategy


@pytest.mark.parametrize(("strategy", "kept"), [("overlay", True), ("copy", True), ("ephemeral", False)])
def test_what_is_written_is_kept_or_gone(instances: Instances, strategy: str, kept: bool) -> None:
    found = instances.guests[strategy].ssh("cat /srv/secret", check=False).stdout.encode()
    assert (found == instances.secret) is kept


@pytest.mark.parametrize(("strategy", "kind"), [("overlay", "overlay"), ("copy", "ext4"), ("ephemeral", "overlay")])
def test_the_root_is_of_its_kind(instances: Instances, strategy: str, kind: str) -> None:
    assert instances.guests[strategy].ssh("findmnt --noheadings --output FSTYPE /").stdout.strip() == kind


def test_the_upper_layer_is_btrfs_on_the_second_disk(instances: Instances) -> None:
    guest = instances.guests["overlay"]
    assert guest.ssh("findmnt --noheadings --output FSTYPE /run/cvm-fde/upper").stdout.strip() == "btrfs"
    below = guest.ssh("lsblk --noheadings --list --inverse --output NAME /dev/mapper/fde-crypt").stdout.split()
    assert "nvme0n1" in below and "vda" not in below
    assert guest.ssh("cat /sys/block/nvme0n1/queue/logical_block_size").stdout.strip() == "4096"
    masks = status(guest)["overlay"]
    assert isinstance(masks, dict) and masks["masked"] >= 1 and masks["outdated"] == {}


def test_a_copied_root_fills_the_disk(instances: Instances) -> None:
    guest = instances.guests["copy"]
    assert [line.split()[2] for line in guest.ssh("dmsetup table fde-root").stdout.splitlines()] == ["linear"]
    assert int(guest.ssh("df --block-size=1 --output=size / | tail -1").stdout) > 3 * GIB


def test_an_ephemeral_instance_has_no_volume(instances: Instances) -> None:
    guest = instances.guests["ephemeral"]
    assert guest.ssh("dmsetup ls").stdout.split()[::2] == ["root"]
    anchor = status(guest)["anchor"]
    assert isinstance(anchor, dict) and anchor["standing"] == "absent"
    assert len(partitions(guest.disk)) == 3


def test_nothing_that_was_written_is_readable_on_any_disk(instances: Instances) -> None:
    together(Guest.shut_down, instances.guests.values())
    for guest in instances.guests.values():
        files = [guest.disk, *(guest.data_disk(disk.serial) for disk in guest.hardware.disks)]
        for file in files:
            assert Partition(file, 0, file.stat().st_size).find(instances.secret) == [], guest.name
