# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Opening the volume: the same code on the first boot and on every later one.

What is opened is a copy of the header in RAM, whose digest was compared with the anchor's before. The volume key must
be the one the anchor names, it must have been measured, and the kernel must run the ciphers that the profile says.
"""

from __future__ import annotations

import os

from ..codes import Code, refuse
from ..dm import integrity
from ..dm.table import SECTOR
from ..errors import FdeError
from ..luks2.area import HeaderArea
from ..luks2.expectation import Expectation, root_volume
from ..luks2.policy import judge
from ..luks2.profile import LAYOUT
from ..luks2.volume import attach, check_active
from ..runner import CommandError
from .machine import VOLUME, Machine
from .measuring import digests

#: The PCR that volume keys are measured into.
VOLUME_KEY_PCR = 15


def expected(machine: Machine) -> Expectation:
    """Return what the header of the root volume may say."""
    return root_volume(public_key=machine.public_key)


def open_volume(machine: Machine, area: HeaderArea, volume_key_id: bytes) -> None:
    """Open the volume of ``area.device`` from the bytes in ``area``.

    Raises ``Refusal`` when the header asks for what is not allowed, the device has become too small, the TPM does not
    give the key, the volume does not open with it or with another one than ``volume_key_id`` names, the key was not
    measured, or the kernel's tables differ from the profile.
    """
    judge(area.header(), expected(machine)).require(area.device)
    check_length(area.device)
    machine.paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    machine.paths.header.unlink(missing_ok=True)
    area.store(str(machine.paths.header))
    try:
        attach(
            machine.runner,
            VOLUME,
            area.device,
            header=str(machine.paths.header),
            tpm2_device=machine.tcti,
            signature=machine.paths.signatures,
            volume_key_id=volume_key_id.hex(),
        )
    except CommandError as error:
        # One program gets the key and opens the volume, and its exit status does not tell which of them failed.
        code = Code.NOT_ACTIVATED if released(machine, area) else Code.KEY_UNAVAILABLE
        raise refuse(code, area.device, error.cause) from error
    check_active(machine.mapper, VOLUME)
    check_measured(machine, volume_key_id)


def check_length(device: str) -> None:
    """Raise ``Refusal`` when a device is too small for the volume on it: it was cut off.

    How long it must be is only known from a place that the host can write to; a host that lies gets another refusal.
    """
    with open(device, "rb", buffering=0) as opened:
        length = opened.seek(0, os.SEEK_END) - LAYOUT.offset
        opened.seek(LAYOUT.offset)
        needed = integrity.needed(opened.read(integrity.SUPERBLOCK_SIZE))
    if needed is not None and length < needed * SECTOR:
        raise refuse(
            Code.DEVICE_SHRUNK,
            device,
            f"the volume needs {LAYOUT.offset + needed * SECTOR} bytes, the device has {LAYOUT.offset + length}",
        )


def released(machine: Machine, area: HeaderArea) -> bool:
    """Tell whether the TPM gives the key of a keyslot of the header; what keeps it from being found out is a no."""
    from ..luks2.change import draft
    from ..luks2.keyslots import Means, Tpm2, enrolled, proves

    try:
        with draft(area, str(machine.paths.state)) as copy:
            slots = [slot for slot in enrolled(area.header()) if isinstance(slot.method, Tpm2)]
            return any(proves(machine.runner, copy.path, slot, Means(tpm2_device=machine.tcti)) for slot in slots)
    except FdeError:
        return False


def check_measured(machine: Machine, volume_key_id: bytes) -> None:
    """Raise ``Refusal`` unless systemd logged the volume key's measurement: it goes on without one when it fails."""
    try:
        with open(machine.paths.measurements, "rb") as file:
            content = file.read()
    except OSError as error:
        raise refuse(Code.NOT_MEASURED, machine.paths.measurements, error.strerror or "unreadable") from error
    if next(digests(content, VOLUME_KEY_PCR), None) != volume_key_id:
        raise refuse(Code.NOT_MEASURED, VOLUME, f"it is not the first measurement in PCR {VOLUME_KEY_PCR}")
