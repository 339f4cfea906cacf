# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Putting a changed header on the disk, so that the boot and the next run finish what a power cut tears.

Before the first byte of it is written, the new header is pinned as the next one, and copies of it and of the old one
lie beside the pin. What is torn consists of blocks of the two. Anything else on the disk is not this volume any more,
and nothing is written over it.
"""

from __future__ import annotations

from typing import Any, Optional

from ..errors import Refusal
from ..luks2.area import HeaderArea
from ..luks2.change import is_mixture, on_disk, store
from ..luks2.policy import judge
from ..luks2.profile import LAYOUT
from . import opening
from . import pin as pins
from .machine import Machine
from .pin import Pin, PinState
from .places import Places
from .recovery import known

_REMEDY = "Check the disk, then run again, which finishes what was begun"


def write(machine: Machine, pin: Pin, node: str, new: HeaderArea, **changes: Any) -> Pin:
    """Pin a header as the next one, with other ``changes`` of the pin, and write it. Raises ``FdeError``."""
    places = machine.places
    judge(new.header(), opening.expectation(pin)).require(node)
    old = HeaderArea(node, on_disk(node, LAYOUT.offset))
    if pin.state is PinState.READY:
        if old.digest.hex() not in pin.digests:
            raise changed(node, pin)
        pins.write(places.replaced(pin.name), old.content, 0o600)
        pins.write(places.saved(pin.name), new.content, 0o600)
    pin = pin.having(next=new.digest.hex(), **changes)
    pins.save(places.pin(pin.name), pin)
    store(node, old, new, _REMEDY)
    return pin


def finish(machine: Machine, pin: Pin, area: HeaderArea) -> Pin:
    """Pin the header that is on the disk now as the only one, and let an open volume's copy follow it."""
    places = machine.places
    pin = known(pin.having(state=PinState.READY, current=area.digest.hex(), next=None), area)
    pins.save(places.pin(pin.name), pin)
    forget_copies(places, pin.name)
    if pin.pending is None:
        pins.forget(places.envelope(pin.name))
    if machine.mapper.find(pin.name) is not None:
        opening.put_header(places, pin.name, area)
    return pin


def forget_copies(places: Places, name: str) -> None:
    """Remove what was kept for the case of a power cut."""
    pins.forget(places.saved(name))
    pins.forget(places.replaced(name))


def redo(machine: Machine, pin: Pin, node: str) -> HeaderArea:
    """Write the pinned next header again whose writing was interrupted, and return it.

    Raises ``Refusal`` with the code ``header-changed`` when the disk holds anything but the torn header.
    """
    # Past the page cache, which after a write that failed holds what never reached the disk. What is judged here must
    # still be there when it is written over.
    found = HeaderArea(node, on_disk(node, LAYOUT.offset))
    saved = torn(machine.places, pin, found)
    if saved is None:
        raise changed(node, pin)
    store(node, found, saved, _REMEDY)
    return saved


def torn(places: Places, pin: Pin, found: HeaderArea) -> Optional[HeaderArea]:
    """Return the pinned next header when its copy is there and the disk holds it, the old one, or blocks of both."""
    path = places.saved(pin.name)
    if pin.next is None or not path.exists():
        return None
    new = HeaderArea(found.device, path.read_bytes())
    if new.digest.hex() != pin.next:
        return None
    if found.digest.hex() in pin.digests:
        return new
    old = places.replaced(pin.name)
    before = HeaderArea(found.device, old.read_bytes() if old.exists() else b"")
    if before.digest.hex() != pin.current or not is_mixture(found.content, before.content, new.content):
        return None
    return new


def changed(node: str, pin: Pin) -> Refusal:
    """Return the refusal of a disk whose header is none of the pinned ones."""
    return Refusal(
        "header-changed",
        node,
        f"its LUKS2 header is not the one that is pinned for volume '{pin.name}'",
        "Another program changed it, or it is another disk; adopt it with cvm.fde.luks2_volume if it is yours",
    )
