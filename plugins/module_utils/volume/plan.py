# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decision: from what is wanted and what was found to the steps that lead from one to the other.

A pure function, and nothing else decides. It refuses rather than destroys: whatever is on a device that is not known to
be this volume's own unfinished work stays, unless ``force`` names the device.
"""

from __future__ import annotations

from typing import Iterator, Optional

from ..errors import FdeError, Refusal
from ..luks2.method import Tpm2
from ..luks2.profile import PROFILES
from .changing import reconcile
from .device import Device
from .found import Found
from .making import create
from .pin import Pin, PinState
from .steps import Action, Plan, Step
from .using import check_use, close, configure, erasure_ended, own_leftovers
from .wanted import State, Wanted


def plan(found: Found, wanted: Wanted) -> Plan:
    """Return what has to be done. Raises ``FdeError``, or ``Refusal`` where only tampering or damage explains it."""
    made = _plan(found, wanted)
    adds = [method for step in made.steps if step.keyslots is not None for method in step.keyslots.adds]
    if found.no_tpm is not None and any(isinstance(method, Tpm2) for method in adds):
        raise FdeError(found.no_tpm, "there is no TPM that a keyslot could be bound to", "Give the machine a TPM 2.0")
    return made


def _plan(found: Found, wanted: Wanted) -> Plan:
    pinned = None if found.pin is None else found.pin.state
    if wanted.state is State.ERASED:
        return Plan(tuple(_erase(found, wanted)))
    if wanted.state is State.CLOSED:
        return Plan(tuple(close(found, wanted)))
    if pinned is PinState.ERASING:
        raise FdeError(
            wanted.device, f"the erasure of volume '{wanted.name}' was interrupted", "Finish it with state 'erased'"
        )
    device = _usable(found, wanted)
    warnings = () if device.stable else (f"{wanted.device} may name another device after the next boot",)
    if pinned is PinState.READY or wanted.adopt:
        return Plan(tuple(reconcile(found, wanted, device)), warnings).with_warnings(_grown(found, device))
    return Plan(tuple(create(found, wanted, device)), warnings)


def _usable(found: Found, wanted: Wanted) -> Device:
    """Return the device after the checks that hold for making a volume as well as for using it."""
    if found.device is None:
        raise FdeError(wanted.device, "there is no such device", "Attach it, or correct the path")
    if found.missing:
        raise FdeError(
            wanted.device, f"this system lacks {', '.join(found.missing)}", "Install it, or choose another profile"
        )
    if found.device.size < wanted.least_size:
        raise FdeError(
            wanted.device,
            f"it has {found.device.size} bytes, less than the {wanted.least_size} that are wanted",
            "Check that it is the right device",
        )
    if wanted.mount is not None and found.mount_leads_to not in (wanted.mount.path, None):
        raise FdeError(
            wanted.mount.path, f"it leads to {found.mount_leads_to} over a link", "Name that as the mount point instead"
        )
    if wanted.state is State.MOUNTED and wanted.mount is not None and found.at_mount_point is not None:
        ours = {mounted.path for mounted in found.mounts}
        if wanted.mount.path not in ours:
            raise FdeError(
                wanted.mount.path, f"{found.at_mount_point} is mounted there", "Unmount it, or choose another place"
            )
    return found.device


def _grown(found: Found, device: Device) -> Optional[str]:
    if found.pin is None or device.size <= found.pin.size:
        return None
    if PROFILES[found.pin.profile].integrity is None:
        follows = "the volume does so too when it is opened the next time, its file system by its own program"
    else:
        follows = "an authenticated volume keeps its size, make a new one"
    return f"{device.path} has grown to {device.size} bytes: {follows}"


def _erase(found: Found, wanted: Wanted) -> Iterator[Step]:
    device = found.device
    if device is None:
        if found.pin is not None:
            raise FdeError(wanted.device, "there is no such device, so nothing can be erased", "Attach it")
        return
    if found.pin is None and (found.header is None or not device.contents()):
        # Nothing here was ever a volume, or it was erased before.
        yield from configure(found)
        return
    if found.pin is not None and erasure_ended(found, device, found.pin):
        check_use(found, device)
        yield from _forgotten(found, wanted)
        return
    known = found.pin is not None and _is_pinned(found, found.pin)
    names = device.names_to_give_up()
    if not known and (wanted.force is None or wanted.force not in names):
        raise Refusal(
            "volume-has-data",
            device.path,
            f"it holds {' and '.join(device.contents()) or 'nothing'}, which is not known as volume '{wanted.name}'",
            f"Set force to one of {', '.join(names)} if it may be destroyed" if names else "Overwrite it by hand",
        )
    if found.pin is None and device.use is not None:
        # It is none of this volume's, whatever its name says.
        raise FdeError(device.path, f"it is in use: {device.use}", "End its use")
    check_use(found, device)
    yield from close(found, wanted) if found.pin is not None else ()
    yield Step(Action.PIN, "erasing")
    yield Step(Action.DESTROY, device.path)
    yield Step(Action.DISCARD, device.path)
    yield from _forgotten(found, wanted)


def _forgotten(found: Found, wanted: Wanted) -> Iterator[Step]:
    yield from configure(found)
    yield Step(Action.FORGET, wanted.name)


def _is_pinned(found: Found, pin: Pin) -> bool:
    """Whether the device holds what the pin is about; an unfinished or half-erased volume has no good header."""
    if pin.state is not PinState.READY:
        return found.device is not None and own_leftovers(found, found.device, pin)
    if found.header is None:
        return False
    return found.header.uuid == pin.uuid or found.header.digest in pin.digests
