# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Opening a data volume from a copy of its header in RAM, by whatever unlocks it.

systemd-cryptsetup is given what /etc/crypttab gives it: what was tried is what the boot does.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Optional

from ..dm.device import Device as Mapping
from ..dm.device import DeviceMapper
from ..errors import FdeError, Refusal
from ..luks2.area import HeaderArea
from ..luks2.policy import Expectation, data_volume
from ..luks2.profile import PROFILES
from ..luks2.volume import attach as attach_by_tpm
from ..luks2.volume import check_active
from ..runner import Runner
from .pin import Pin
from .places import Places
from .wanted import Wanted


def device_node(pin: Pin) -> str:
    """Return the device as it was named, or where the disk turned up instead: the pin decides whether it is the right
    one. Raises ``FdeError`` when there is none.
    """
    for path in (pin.device, f"/dev/disk/by-uuid/{pin.uuid}"):
        if Path(path).exists():
            return str(Path(path).resolve())
    raise FdeError(pin.device, "there is no such device", "Attach the disk")


def expectation(pin: Pin) -> Expectation:
    """Return what the header of a pinned volume must say."""
    return data_volume(uuid=pin.uuid, profile=PROFILES[pin.profile], journal=pin.journal)


def put_header(places: Places, name: str, area: HeaderArea) -> Path:
    """Write the bytes of a header area to the volume's place in RAM and return it."""
    places.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = places.header(name)
    path.unlink(missing_ok=True)
    area.store(str(path))
    return path


def options(name: str, *, tpm2: bool, tpm2_device: str, key_id: Optional[str], nofail: bool = False) -> tuple[str, ...]:
    """Return the options of systemd-cryptsetup for a volume; nobody is asked where a TPM is to unlock it.

    A volume key with another id than ``key_id`` is refused by systemd 260 and newer, older versions ignore it.
    """
    return (
        "luks",
        f"header=/run/cvm-fde/volumes/{name}.header",
        *((f"tpm2-device={plain(tpm2_device)}", "headless=yes", "tries=1") if tpm2 else ()),
        *((f"fixate-volume-key={key_id}",) if key_id else ()),
        *(("nofail",) if nofail else ()),
    )


def attach(runner: Runner, wanted: Wanted, node: str, header: str, key_id: Optional[str]) -> None:
    """Open a volume by the TPM, with the same options as the boot does. Raises ``CommandError``."""
    attach_by_tpm(
        runner,
        wanted.name,
        node,
        header=header,
        tpm2_device=wanted.tpm2_device,
        # Where a policy is signed, systemd finds the signatures by itself, as it does at boot.
        signature=None,
        volume_key_id=key_id,
        measure=False,
    )


def plain(value: str) -> str:
    """Return a value that a list of options can hold, or raise ``FdeError``."""
    if not re.fullmatch(r"[^,\s\0\\\"']+", value):
        raise FdeError("the options of the volume", f"{value!r} cannot stand in /etc/crypttab", "Name it otherwise")
    return value


def mapping_uuid(mapping: Mapping) -> Optional[str]:
    """Return the LUKS UUID of an active mapping, None when it is not a LUKS2 volume."""
    match = re.fullmatch(r"CRYPT-LUKS2-([0-9a-f]{32})-.*", mapping.uuid)
    if match is None:
        return None
    digits = match[1]
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def check(mapper: DeviceMapper, pin: Pin, node: Optional[str] = None) -> None:
    """Check that what is open under the volume's name is this volume, with the ciphers of its profile.

    With ``node`` it must lie on that device. Raises ``Refusal`` with the code ``active-table``.
    """
    mapping = mapper.find(pin.name)
    found = None if mapping is None else mapping_uuid(mapping)
    if found != pin.uuid:
        raise Refusal(
            "active-table", pin.name, f"what is open under this name is {found or 'no LUKS2 volume'}, not {pin.uuid}",
            "Close it",
        )  # fmt: skip
    check_active(mapper, pin.name, profile=PROFILES[pin.profile], journal=pin.journal)
    if node is not None and not lies_on(mapper, pin.name, node):
        raise Refusal("active-table", pin.name, f"it does not lie on {node}", "Close it")


def lies_on(mapper: DeviceMapper, name: str, node: str) -> bool:
    """Return whether a mapping lies on a device, directly or on dm-integrity between them; names do not count."""
    number = os.stat(node).st_rdev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    level = [mapper.get(name).number]
    for _depth in range(2):
        level = [_number(slave) for one in level for slave in _names(f"/sys/dev/block/{one}/slaves")]
        if wanted in level:
            return True
    return False


def _number(name: str) -> str:
    with open(f"/sys/class/block/{name}/dev", encoding="ascii") as file:
        return file.read().strip()


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
