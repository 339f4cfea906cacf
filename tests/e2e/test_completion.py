# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cloned root comes to its end while the system runs on it: no reboot, no image, all of the disk."""

from __future__ import annotations

import json
import re
import time

import pytest
from ansible_collections.cvm.fde.tests.lab.guest import Guest
from ansible_collections.cvm.fde.tests.lab.upkeep import SERVICE, settle, settled


@pytest.fixture(scope="module")
def progress(fleet: list[Guest]) -> list[str]:
    """The words of the service's status while it works, if it still does."""
    seen: list[str] = []
    for _look in range(120):
        if settled(fleet[0]) or any(seen):
            break
        seen.append(fleet[0].ssh(f"systemctl show --value --property StatusText {SERVICE}").stdout.strip())
        time.sleep(1)
    return seen


@pytest.fixture(scope="module")
def complete(fleet: list[Guest], progress: list[str]) -> Guest:
    """The first guest of the fleet, when its service has nothing left to do."""
    del progress
    settle(fleet[0])
    return fleet[0]


def test_the_mounted_root_is_a_plain_encrypted_device_without_a_reboot(complete: Guest) -> None:
    assert complete.ssh("journalctl --list-boots -o json", check=False).stdout.count("boot_id") == 1
    assert complete.ssh("findmnt --noheadings --output SOURCE /").stdout.strip() == "/dev/mapper/fde-root"
    table = complete.ssh("dmsetup table fde-root").stdout.splitlines()
    assert [line.split()[2] for line in table] == ["linear"]
    names = complete.ssh("dmsetup ls").stdout
    assert "fde-crypt" in names and "fde-clone" not in names


def test_the_root_fills_the_disk(complete: Guest) -> None:
    size = int(complete.ssh("df --block-size=1 --output=size / | tail -1").stdout)
    assert size > 2 << 30, "the image's root has 1.5 GiB, the disk 5"
    complete.ssh("head -c 1200M /dev/zero > /srv/large && sync && rm /srv/large", timeout=900)


def test_the_tpm_remembers_that_the_image_is_not_needed(complete: Guest) -> None:
    known = json.loads(complete.ssh("/usr/lib/cvm-fde/agent.pyz status").stdout)
    assert known["anchor"]["complete"] is True
    assert known["hydration"]["percent"] == 100.0


def test_progress_is_in_the_journal(complete: Guest) -> None:
    lines = complete.ssh("journalctl --no-pager --output cat -u cvm-fde-hydrate.service").stdout
    assert "% of the root is in the encrypted volume" in lines
    assert "100.0 % of the root" in lines
    assert "has grown by" in lines


def test_progress_is_the_status_of_the_unit(progress: list[str]) -> None:
    """What `systemctl status` shows while the service works; it is gone with it."""
    if not progress:
        pytest.skip("the service had ended before it was looked at")
    assert any(re.search(r"% of the root|MiB of the volume", line) for line in progress), progress


def test_the_next_boot_opens_a_plain_encrypted_volume(complete: Guest) -> None:
    complete.reboot()
    table = complete.ssh("dmsetup table fde-root").stdout.splitlines()
    assert [line.split()[2] for line in table] == ["linear"]
    assert "fde-clone" not in complete.ssh("dmsetup ls").stdout
    assert complete.ssh("systemctl --failed --no-legend --plain").stdout == ""
