# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The second round of a recovery key: it is in escrow, and the keyslots that it replaces go."""

from __future__ import annotations

from ..errors import FdeError, Refusal
from ..luks2 import keyslots
from ..luks2.area import read_area
from ..luks2.change import draft
from ..luks2.enrolment import enrolled
from ..luks2.profile import LAYOUT
from . import opening, storing
from . import pin as pins
from .machine import Machine
from .pin import Pin
from .recovery import fingerprints


def confirm(machine: Machine, name: str, digest: str) -> Pin:
    """Record that a recovery key arrived at the control node, which read back bytes with this digest.

    Raises ``FdeError`` when that is not the recovery key that was handed over last.
    """
    pin = pins.load(machine.places.pin(name))
    if pin is not None and pin.pending is None and pin.escrow is not None and pin.escrow.digest == digest:
        return pin
    if pin is None or pin.pending is None or pin.pending.digest != digest:
        raise FdeError(name, "another recovery key was escrowed than the one of this volume", "Run again")
    # From here on the next run finishes the rest by itself.
    retiring = frozenset(pin.pending.retiring)
    pin = pin.having(escrow=pin.pending, pending=None)
    pins.save(machine.places.pin(name), pin)
    pins.forget(machine.places.envelope(name))
    return _retire(machine, pin, retiring) if retiring else pin


def _retire(machine: Machine, pin: Pin, retiring: frozenset[str]) -> Pin:
    """Remove keyslots by their fingerprints; it takes no key to do so."""
    node = opening.device_node(pin)
    area = read_area(node, LAYOUT.offset)
    if area.digest.hex() != pin.current:
        raise storing.changed(node, pin)
    machine.places.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = fingerprints(area)
    if pin.escrow is None or pin.escrow.keyslot not in found.values():
        raise Refusal("header-changed", node, "the keyslot of the escrowed recovery key is gone", "Run again")
    with draft(area, str(machine.places.run)) as copy:
        for slot in enrolled(area.header()):
            if found[slot.keyslot] in retiring - {pin.escrow.keyslot}:
                keyslots.remove(machine.runner, copy.path, slot)
        new = copy.area()
    if new.digest != area.digest:
        pin = storing.finish(machine, storing.write(machine, pin, node, new), new)
    return pin
