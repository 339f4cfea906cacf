# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which keyslot has the recovery key that is in escrow, and which has one that is still on its way there.

A recovery key takes two rounds. In the first its keyslot is added, its envelope is kept beside the pin, and nothing
that opens the volume goes; in the second, when the control node has stored the envelope and read it back, the keyslots
that it replaces go. A run that is cut short in between hands over the same envelope again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Optional, Sequence

from ..luks2.area import HeaderArea
from ..luks2.enrolment import Enrolled, Plan, enrolled
from ..luks2.method import Recovery, Tpm2
from .found import Found, HeaderFound
from .machine import Machine
from .pin import Escrow, Pin, PinState
from .sealing import Handover
from .wanted import Wanted


def fingerprints(area: HeaderArea) -> dict[int, str]:
    """Return a fingerprint of every keyslot of a judged header: how its key is stretched, and its very bytes.

    Another program that replaces a keyslot, or a host that spoils one, changes it.
    """
    found = {}
    for name, keyslot in area.header().metadata["keyslots"].items():
        place = keyslot["area"]
        start = int(place["offset"])
        told = {key: value for key, value in keyslot.items() if key != "priority"}
        content = area.content[start : start + int(place["size"])]
        found[int(name)] = hashlib.sha256(json.dumps(told, sort_keys=True).encode() + b"\0" + content).hexdigest()
    return found


def recipients(certificates: Sequence[bytes]) -> str:
    """Return the digest of the certificates that an envelope is for; their order is nobody's concern."""
    return hashlib.sha256(b"\0".join(sorted(set(certificates)))).hexdigest()


def escrowed(found: Found, wanted: Wanted) -> Optional[int]:
    """Return the keyslot whose recovery key is in escrow for certain, in an envelope for the wanted certificates."""
    kept = None if found.pin is None else found.pin.escrow
    if kept is None or kept.recipients != recipients(wanted.certificates):
        return None
    return _keyslot(found.header, kept)


def awaited(found: Found, wanted: Wanted) -> Optional[int]:
    """Return the keyslot whose recovery key waits to be handed over, in an envelope for the wanted certificates."""
    pending = None if found.pin is None else found.pin.pending
    if pending is None or pending.digest != found.envelope or pending.recipients != recipients(wanted.certificates):
        return None
    return _keyslot(found.header, pending)


def _keyslot(header: Optional[HeaderFound], escrow: Optional[Escrow]) -> Optional[int]:
    if header is None or escrow is None:
        return None
    slots = [one.keyslot for one in header.enrolled if isinstance(one.method, Recovery)]
    return next((slot for slot in slots if header.fingerprints.get(slot) == escrow.keyslot), None)


def deferred(planned: Plan) -> tuple[Plan, tuple[Enrolled, ...]]:
    """Split a plan: what is done in the first round, and which keyslots go in the second.

    Only a TPM keyslot that no longer opens goes at once, because systemd makes no second one for the same policy.
    """
    now = tuple(one for one in planned.removes if isinstance(one.method, Tpm2) and one.method in planned.adds)
    return Plan(planned.adds, now), tuple(one for one in planned.removes if one not in now)


def pending_key(
    pin: Pin,
    before: Optional[HeaderArea],
    new: HeaderArea,
    wanted: Wanted,
    sealed: Optional[Handover],
    retiring: Sequence[int],
) -> Optional[Escrow]:
    """Return what is recorded of the recovery key that waits for its escrow when ``new`` takes the place of a header.

    ``sealed`` is the envelope of a key that was added, ``retiring`` are the keyslots that go when it has arrived.
    """
    slots = fingerprints(new)
    going = tuple(slots[one] for one in retiring)
    if sealed is None:
        return None if pin.pending is None else replace(pin.pending, retiring=going)
    old = set() if before is None else set(fingerprints(before).values())
    recovery = [one.keyslot for one in enrolled(new.header()) if isinstance(one.method, Recovery)]
    [added] = [slots[one] for one in recovery if slots[one] not in old]
    return Escrow(sealed.digest, added, recipients(wanted.certificates), going)


def known(pin: Pin, area: HeaderArea) -> Pin:
    """Return the pin without the recovery keys whose keyslot the header does not have."""
    there = set(fingerprints(area).values())
    return pin.having(
        escrow=pin.escrow if pin.escrow is not None and pin.escrow.keyslot in there else None,
        pending=pin.pending if pin.pending is not None and pin.pending.keyslot in there else None,
    )


def handover(machine: Machine, pin: Optional[Pin]) -> Optional[Handover]:
    """Return the envelope that the control node must store; None where there is none, or its header is not written."""
    if pin is None or pin.pending is None or pin.state is not PinState.READY or pin.next is not None:
        return None
    content = kept_envelope(machine.places.envelope(pin.name))
    if content is None or hashlib.sha256(content).hexdigest() != pin.pending.digest:
        return None
    return Handover(content, pin.pending.digest)


def kept_envelope(path: Path) -> Optional[bytes]:
    """Return the content of an envelope's file."""
    return path.read_bytes() if path.exists() else None
