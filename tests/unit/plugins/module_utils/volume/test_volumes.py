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
from ansible_collections.cvm.fde.plugins.module_utils.volume.plan import plan
from ansible_collections.cvm.fde.plugins.module_utils.volume.volumes import Planned, check_unchanged
from ansible_collections.cvm.fde.plugins.module_utils.volume.wanted import Mount, Wanted

DEVICE = Device("/dev/disk/by-id/virtio-DATA1", "/dev/vdb", 10 << 30, 512, identity=("DATA1",))
WANTED = Wanted("data", DEVICE.path, mount=Mount("/srv/data"), unlock=(Tpm2((7,)),))
UNIT = "/etc/systemd/system/cvm-fde-header@.service"


def planned(found: Found) -> Planned:
    return Planned(WANTED, found, plan(found, WANTED))


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
