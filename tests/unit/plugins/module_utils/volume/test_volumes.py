# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A list of volumes: what was decided of one must still hold when its turn comes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.luks2.method import Tpm2
from ansible_collections.cvm.fde.plugins.module_utils.volume.device import Device
from ansible_collections.cvm.fde.plugins.module_utils.volume.found import Found
from ansible_collections.cvm.fde.plugins.module_utils.volume.installation import needs_agent
from ansible_collections.cvm.fde.plugins.module_utils.volume.pin import Pin, PinState
from ansible_collections.cvm.fde.plugins.module_utils.volume.plan import plan
from ansible_collections.cvm.fde.plugins.module_utils.volume.volumes import Planned, check_unchanged
from ansible_collections.cvm.fde.plugins.module_utils.volume.wanted import Mount, State, Wanted

UUID = "6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a001"
DEVICE = Device("/dev/disk/by-id/virtio-DATA1", "/dev/vdb", 10 << 30, 512, identity=("DATA1",))
WANTED = Wanted("data", DEVICE.path, mount=Mount("/srv/data"), unlock=(Tpm2((7,)),))
UNIT = "/etc/systemd/system/cvm-fde-header@.service"


def planned(found: Found, wanted: Wanted = WANTED) -> Planned:
    return Planned(wanted, found, plan(found, wanted))


DECIDED = planned(Found(DEVICE, differing_files=("/etc/crypttab", UNIT)))


@pytest.mark.parametrize("files", [("/etc/crypttab", UNIT), ("/etc/crypttab",), ()])
def test_what_an_earlier_volume_has_configured_already_is_no_change(files: tuple[str, ...]) -> None:
    check_unchanged(DECIDED, planned(Found(DEVICE, differing_files=files)))


@pytest.mark.parametrize(
    ("found", "cause"),
    [
        (Found(replace(DEVICE, node="/dev/vdc")), "another device is in its place"),
        (Found(replace(DEVICE, identity=("DATA2",))), "another device is in its place"),
        (Found(replace(DEVICE, size=11 << 30)), "another device is in its place"),
        (Found(DEVICE, strays=("data_dif",)), "and is now 'close, pin, clear"),
    ],
)
def test_another_device_or_another_plan_is_not_what_was_decided(found: Found, cause: str) -> None:
    with pytest.raises(FdeError, match=cause) as caught:
        check_unchanged(DECIDED, planned(found))
    assert caught.value.subject == DEVICE.path and "Nothing was done to volume 'data'" in caught.value.remedy


PIN = Pin("data", UUID, DEVICE.path, PinState.READY, "authenticated", True, "ext4", DEVICE.size)


@pytest.mark.parametrize(
    ("found", "state", "boot", "needed"),
    [
        (Found(DEVICE), State.MOUNTED, True, True),
        (Found(DEVICE), State.MOUNTED, False, False),
        (Found(DEVICE), State.CLOSED, True, False),
        (Found(None), State.CLOSED, True, False),
        (Found(DEVICE, PIN), State.CLOSED, True, True),
        (Found(DEVICE), State.ERASED, True, False),
    ],
)
def test_the_boots_program_is_there_where_a_volume_is_opened_at_boot(
    found: Found, state: State, boot: bool, needed: bool
) -> None:
    assert needs_agent([planned(found, replace(WANTED, state=state, boot=boot))]) is needed
