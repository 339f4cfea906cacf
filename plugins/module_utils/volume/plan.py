# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decision: from what is wanted and what was found to the steps that lead from one to the other.

A pure function, and nothing else decides. It refuses rather than destroys: whatever is on a device that is not known to
be this volume's own unfinished work stays, unless ``force`` names the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Iterator, Optional

from ..errors import FdeError, Refusal
from ..luks2 import enrolment
from ..luks2.method import Method, Passphrase, Recovery, Tpm2
from .device import Device
from .found import Found
from .pin import Pin, PinState
from .wanted import LEAST, FileSystemType, State, Wanted


class Action(str, Enum):
    """What a step does. Their order in a plan is the order of their doing."""

    UNMOUNT = "unmount"
    CLOSE = "close"
    PIN = "pin"
    CLEAR = "clear"
    FORMAT = "format"
    CHANGE_KEYSLOTS = "change-keyslots"
    OPEN = "open"
    MAKE_FILE_SYSTEM = "make-file-system"
    STORE = "store"
    READY = "ready"
    ADOPT = "adopt"
    REDO = "redo"
    SETTLE = "settle"
    CONFIGURE = "configure"
    MOUNT = "mount"
    DESTROY = "destroy"
    DISCARD = "discard"
    FORGET = "forget"


@dataclass(frozen=True)
class Step:
    """One thing to do. ``subject`` says to people what it is done to; ``keyslots`` is what changes of them."""

    action: Action
    subject: str
    keyslots: Optional[enrolment.Plan] = None


@dataclass(frozen=True)
class Plan:
    """The steps in order, and what the owner should know although nothing is wrong with it."""

    steps: tuple[Step, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def creates(self) -> bool:
        """Whether the volume is made anew."""
        return any(step.action is Action.FORMAT for step in self.steps)

    def with_warnings(self, *warnings: Optional[str]) -> Plan:
        return Plan(self.steps, (*self.warnings, *(one for one in warnings if one)))


def plan(found: Found, wanted: Wanted) -> Plan:
    """Return what has to be done. Raises ``FdeError``, or ``Refusal`` where only tampering or damage explains it."""
    pinned = None if found.pin is None else found.pin.state
    if wanted.state is State.ERASED:
        return Plan(tuple(_erase(found, wanted)))
    if pinned is PinState.ERASING:
        raise FdeError(
            wanted.device, f"the erasure of volume '{wanted.name}' was interrupted", "Finish it with state 'erased'"
        )
    if wanted.state is State.CLOSED and (pinned is not PinState.READY or found.device is None):
        return Plan(tuple(_close(found, wanted)))
    device = _usable(found, wanted)
    warnings = () if device.stable else (f"{wanted.device} may name another device after the next boot",)
    if pinned is PinState.READY or wanted.adopt:
        return Plan(tuple(_reconcile(found, wanted, device)), warnings).with_warnings(_grown(found, device))
    return Plan(tuple(_create(found, wanted, device)), warnings)


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
    if wanted.state is State.MOUNTED and wanted.mount is not None and found.at_mount_point is not None:
        ours = {mounted.path for mounted in found.mounts}
        if wanted.mount.path not in ours:
            raise FdeError(
                wanted.mount.path, f"{found.at_mount_point} is mounted there", "Unmount it, or choose another place"
            )
    return found.device


def _check_use(found: Found, device: Device) -> None:
    """Raise ``FdeError`` when anything but the volume itself uses the device."""
    if device.use is not None and not (found.mapping is not None and found.mapping.on_device):
        raise FdeError(device.path, f"it is in use: {device.use}", "Name another device, or end its use")


def _grown(found: Found, device: Device) -> Optional[str]:
    if found.pin is not None and device.size > found.pin.size:
        return f"{device.path} has grown to {device.size} bytes: an authenticated volume keeps its size, make a new one"
    return None


# Making a volume


def _create(found: Found, wanted: Wanted, device: Device) -> Iterator[Step]:
    _check_blank(found, wanted, device)
    least = LEAST[wanted.file_system]
    if device.size < least:
        raise FdeError(device.path, f"it is smaller than {least >> 20} MiB", "Take a larger device")
    if found.mapping is not None:
        yield Step(Action.CLOSE, wanted.name)
    yield Step(Action.PIN, "initializing")
    yield Step(Action.CLEAR, device.path)
    yield Step(Action.FORMAT, f"{wanted.profile.name}, {'journal' if wanted.journal else 'no journal'}")
    yield _keyslot_step(enrolment.plan((), wanted.unlock))
    yield Step(Action.OPEN, wanted.name)
    if wanted.file_system is not FileSystemType.NONE:
        yield Step(Action.MAKE_FILE_SYSTEM, wanted.file_system.value)
    yield Step(Action.STORE, device.path)
    yield Step(Action.READY, wanted.name)
    yield from _configure(found)
    if wanted.state is State.MOUNTED and wanted.mount is not None:
        yield Step(Action.MOUNT, wanted.mount.path)
    if wanted.state is State.CLOSED:
        yield Step(Action.CLOSE, wanted.name)


def _check_blank(found: Found, wanted: Wanted, device: Device) -> None:
    """Raise unless the device is blank, or holds this volume's own unfinished work, or is named by ``force``."""
    unfinished = found.pin is not None and found.pin.state is PinState.INITIALIZING
    if found.mapping is not None and not (unfinished and found.pin and found.mapping.uuid == found.pin.uuid):
        raise FdeError(
            f"/dev/mapper/{wanted.name}", "something else is open under this name", "Close it, or rename the volume"
        )
    if found.mounts:
        raise FdeError(device.path, f"it is mounted at {found.mounts[0].path}", "Unmount it")
    _check_use(found, device)
    if device.read_only:
        raise FdeError(device.path, "it is read-only", "Name another device")
    if unfinished and found.pin is not None and _own_leftovers(found, device, found.pin):
        return
    contents = device.contents()
    if contents and (wanted.force is None or wanted.force not in device.all_ids()):
        names = device.all_ids()
        remedy = f"Set force to one of {', '.join(names)}" if names else "Overwrite its beginning by hand"
        raise Refusal(
            "volume-has-data",
            device.path,
            f"it holds {' and '.join(contents)}, and nothing is made over that",
            f"Check that it is the right device. {remedy} if everything on it may be lost",
        )


def _own_leftovers(found: Found, device: Device, pin: Pin) -> bool:
    """An unfinished volume leaves bytes without a name, or a header of its own, whole or torn, on the same device."""
    if device.size != pin.size:
        return False
    return all(one.type == "crypto_LUKS" and one.uuid in (pin.uuid, None) for one in device.signatures)


# Using and changing one


def _reconcile(found: Found, wanted: Wanted, device: Device) -> Iterator[Step]:
    adopting = found.pin is None or _unknown_header(found)
    if adopting:
        _check_adoptable(found, wanted, device)
    else:
        _check_same(found, wanted)
    if found.header is None or found.header.violations:
        where = (
            "" if found.header is None else ", ".join(f"{v.reason.value} at {v.where}" for v in found.header.violations)
        )
        raise Refusal(
            "luks2-policy", device.path, f"its LUKS2 header is not one this collection makes: {where or 'none'}",
            "Somebody changed it; do not open it",
        )  # fmt: skip
    if found.mapping is not None and found.mapping.problems is not None:
        raise Refusal("active-table", f"/dev/mapper/{wanted.name}", found.mapping.problems, "Close it")
    _check_use(found, device)
    yield from _settle(found, wanted, adopting)
    yield from _keyslots(found, wanted, device)
    yield from _use(found, wanted)


def _unknown_header(found: Found) -> bool:
    """Whether the header is none of the pinned ones."""
    if found.pin is None or found.header is None:
        return True
    return found.header.digest not in found.pin.digests


def _torn(found: Found) -> bool:
    """Whether the copy of a header is there that was about to be written; ``found.header`` is that copy then."""
    return found.pin is not None and found.saved is not None and found.saved == found.pin.next


def _check_adoptable(found: Found, wanted: Wanted, device: Device) -> None:
    changed = found.pin is not None
    if not wanted.adopt:
        raise Refusal(
            "header-changed",
            device.path,
            f"its LUKS2 header is not the one that is pinned for volume '{wanted.name}'",
            "Another program changed it, or somebody put another disk in its place. If it is yours, set adopt and give "
            "unlock_with a recovery key or passphrase that only you know",
        )
    if found.header is None or found.header.defect is not None:
        raise FdeError(device.path, "it has no sound LUKS2 header to adopt", "Restore it from a backup of the header")
    if changed and found.pin is not None and found.header.uuid != found.pin.uuid:
        raise Refusal(
            "header-changed", device.path, "it is another volume than the pinned one", "Attach the right disk"
        )
    given = wanted.unlock_with
    if given is None or not found.credentials.by_unlock_with:
        raise FdeError(
            device.path,
            "nothing proves that the volume is yours" if given is None else "what unlock_with names does not open it",
            "Give unlock_with a recovery key, passphrase or key file that only you know and that opens it",
        )


def _check_same(found: Found, wanted: Wanted) -> None:
    """Raise ``FdeError`` where something is wanted that only a new volume can have."""
    assert found.pin is not None and found.device is not None
    if found.device.size < found.pin.size:
        raise Refusal(
            "device-shrunk", wanted.device, f"it had {found.pin.size} bytes and has {found.device.size}",
            "Attach the right disk",
        )  # fmt: skip
    for what, is_now, is_wanted in (
        ("profile", found.pin.profile, wanted.profile.name),
        ("journal", found.pin.journal, wanted.journal),
        ("file system", found.pin.file_system, wanted.file_system.value),
    ):
        if is_now != is_wanted:
            raise FdeError(
                wanted.device,
                f"volume '{wanted.name}' was made with {what} '{is_now}', and '{is_wanted}' is wanted",
                "Make a new volume and copy the data; this one keeps what it was made with",
            )


def _settle(found: Found, wanted: Wanted, adopting: bool) -> Iterator[Step]:
    """Finish what an interrupted change left behind, before anything else."""
    if adopting:
        yield Step(Action.ADOPT, wanted.device)
    elif _torn(found):
        yield Step(Action.REDO, wanted.device)
    elif found.saved is not None or (found.pin is not None and found.pin.next is not None):
        yield Step(Action.SETTLE, wanted.device)


def _keyslots(found: Found, wanted: Wanted, device: Device) -> Iterator[Step]:
    assert found.header is not None
    dead = [one.keyslot for one in found.header.enrolled if stale(found, wanted, one)]
    planned = enrolment.plan(found.header.enrolled, wanted.unlock, dead)
    if not planned.changes:
        return
    if not found.credentials.authority:
        raise FdeError(
            wanted.device,
            f"the unlock methods of volume '{wanted.name}' are to change, and nothing at hand opens it",
            "Give unlock_with a recovery key, passphrase or key file",
        )
    yield _keyslot_step(planned)
    yield Step(Action.STORE, device.path)
    yield Step(Action.READY, wanted.name)


def _keyslot_step(planned: enrolment.Plan) -> Step:
    words = [f"add {described(method)}" for method in planned.adds]
    words += [f"remove keyslot {one.keyslot} ({described(one.method)})" for one in planned.removes]
    return Step(Action.CHANGE_KEYSLOTS, ", ".join(words), planned)


def stale(found: Found, wanted: Wanted, one: enrolment.Enrolled) -> bool:
    """Return whether a keyslot looks like a wanted one but must be replaced.

    A recovery key that never reached the control node is lost. A passphrase is stale when none of the wanted ones opens
    its keyslot. A TPM keyslot is so only when ``unlock_with`` is given: that the TPM does not open it now may be the
    state of the machine, and whoever gives another key says that it is not.
    """
    if isinstance(one.method, Recovery):
        escrow = None if found.pin is None else found.pin.escrow
        return wanted.has(Recovery) and bool(wanted.certificates) and not (escrow is not None and escrow.confirmed)
    if one.keyslot in found.credentials.proven:
        return False
    if isinstance(one.method, Passphrase):
        return True
    return isinstance(one.method, Tpm2) and wanted.unlock_with is not None and found.credentials.authority


def _use(found: Found, wanted: Wanted) -> Iterator[Step]:
    yield from _configure(found)
    if wanted.state is State.CLOSED:
        yield from _close(found, wanted)
        return
    if found.mapping is None:
        if not found.credentials.authority:
            raise FdeError(
                wanted.device,
                f"nothing at hand opens volume '{wanted.name}': the TPM does not give its key",
                "Give unlock_with the recovery key, and the TPM is enrolled anew",
            )
        yield Step(Action.OPEN, wanted.name)
    if wanted.state is State.MOUNTED and wanted.mount is not None:
        for mounted in found.mounts:
            if mounted.path != wanted.mount.path:
                yield Step(Action.UNMOUNT, mounted.path)
        if wanted.mount.path not in {mounted.path for mounted in found.mounts}:
            yield Step(Action.MOUNT, wanted.mount.path)
    elif wanted.state is State.OPEN:
        for mounted in found.mounts:
            yield Step(Action.UNMOUNT, mounted.path)


def _configure(found: Found) -> Iterator[Step]:
    if found.differing_files:
        yield Step(Action.CONFIGURE, ", ".join(found.differing_files))


def _close(found: Found, wanted: Wanted) -> Iterator[Step]:
    if found.mapping is not None and found.pin is None:
        raise FdeError(f"/dev/mapper/{wanted.name}", "it is open, and nothing is known about it", "Close it by hand")
    for mounted in reversed(found.mounts):
        yield Step(Action.UNMOUNT, mounted.path)
    if found.mapping is not None:
        yield Step(Action.CLOSE, wanted.name)


# Erasing one


def _erase(found: Found, wanted: Wanted) -> Iterator[Step]:
    device = found.device
    if device is None:
        if found.pin is not None:
            raise FdeError(wanted.device, "there is no such device, so nothing can be erased", "Attach it")
        return
    if found.pin is None and (found.header is None or not device.contents()):
        # Nothing here was ever a volume, or it was erased before.
        if found.differing_files:
            yield Step(Action.CONFIGURE, ", ".join(found.differing_files))
        return
    known = found.pin is not None and found.header is not None and _is_pinned(found, found.pin)
    if not known and (wanted.force is None or wanted.force not in device.all_ids()):
        raise Refusal(
            "volume-has-data",
            device.path,
            f"it holds {' and '.join(device.contents()) or 'nothing'}, which is not known as volume '{wanted.name}'",
            f"Set force to one of {', '.join(device.all_ids()) or 'its ids'} if it may be destroyed",
        )
    _check_use(found, device)
    yield from _close(found, wanted) if found.pin is not None else ()
    yield Step(Action.PIN, "erasing")
    yield Step(Action.DESTROY, device.path)
    yield Step(Action.DISCARD, device.path)
    if found.differing_files:
        yield Step(Action.CONFIGURE, ", ".join(found.differing_files))
    yield Step(Action.FORGET, wanted.name)


def _is_pinned(found: Found, pin: Pin) -> bool:
    """Whether the device holds what the pin is about; an unfinished or half-erased volume has no good header."""
    assert found.header is not None
    if pin.state is not PinState.READY:
        return found.device is not None and _own_leftovers(found, found.device, pin)
    return found.header.uuid == pin.uuid or found.header.digest in pin.digests


def described(method: Optional[Method]) -> str:
    """Return an unlock method for people."""
    if method is None:
        return "temporary key"
    if isinstance(method, Tpm2):
        parts = [f"PCR {'+'.join(map(str, method.pcrs))}"] if method.pcrs else []
        parts += [f"signed PCR {'+'.join(map(str, method.public_key_pcrs))}"] if method.public_key else []
        parts += ["pcrlock"] if method.pcrlock else []
        return f"tpm2 ({', '.join(parts) or 'no policy'})"
    return "recovery" if isinstance(method, Recovery) else "passphrase"
