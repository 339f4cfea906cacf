# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A volume at boot: what runs before systemd-cryptsetup opens it, and what runs after.

Before: the header on the disk is compared with the pin and with the allow-list, and a copy of the very bytes that were
compared is put into RAM; a change that a power cut tore is finished. After: what the kernel runs is compared with the
pin. When either refuses, the volume stays closed, and the boot goes on without it.
"""

from __future__ import annotations

import contextlib

from ..errors import FdeError
from ..luks2.area import read_area
from ..luks2.policy import judge
from ..luks2.profile import LAYOUT
from ..luks2.volume import detach
from . import opening, storing
from . import pin as pins
from .machine import Machine
from .pin import Pin, PinState


def header(machine: Machine, name: str) -> None:
    """Put the checked header of a volume into RAM. Raises ``FdeError``."""
    pin = _ready_pin(machine, name)
    node = opening.device_node(pin)
    area = read_area(node, LAYOUT.offset)
    if area.digest.hex() not in pin.digests:
        area = storing.redo(machine, pin, node)
    judge(area.header(), opening.expectation(pin)).require(node)
    opening.put_header(machine.places, name, area)


def check(machine: Machine, name: str) -> None:
    """Check what was opened, and close it when it is not the pinned volume. Raises ``FdeError``."""
    pin = _ready_pin(machine, name)
    try:
        opening.check(machine.mapper, pin, opening.device_node(pin))
    except FdeError:
        _close(machine, name)
        raise


def _close(machine: Machine, name: str) -> None:
    """Close what is open under a name, by device-mapper itself when it is nothing that systemd would close."""
    with contextlib.suppress(FdeError):
        detach(machine.runner, name)
    if machine.mapper.find(name) is not None:
        with contextlib.suppress(FdeError):
            machine.mapper.remove(name)


def _ready_pin(machine: Machine, name: str) -> Pin:
    pin = pins.load(machine.places.pin(name))
    if pin is None or pin.state is not PinState.READY:
        raise FdeError(name, "no such volume is ready on this system", "Finish its creation with cvm.fde.luks2_volume")
    return pin
