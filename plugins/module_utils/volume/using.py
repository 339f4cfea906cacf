# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps with a volume that there is: checks that nobody else uses it, opening, mounting, closing."""

from __future__ import annotations

from typing import Iterator, Optional

from ..errors import FdeError
from .device import Device
from .found import Found, MappingFound
from .mount_options import differing
from .pin import Pin, PinState
from .steps import Action, Step
from .wanted import State, Wanted


def check_use(found: Found, device: Device) -> None:
    """Raise ``FdeError`` when anything but the volume itself uses the device."""
    explained = (found.mapping is not None and found.mapping.on_device) or bool(found.strays)
    if device.use is not None and not explained:
        raise FdeError(device.path, f"it is in use: {device.use}", "Name another device, or end its use")


def _may_be_pinned(device: Device, pin: Pin) -> bool:
    """Whether nothing that stays with a device, whatever is written to it, says that it is another one."""
    return device.size == pin.size and pin.identity in ((), device.identity)


def erasure_ended(found: Found, device: Device, pin: Pin) -> bool:
    """Return whether an erasure was cut short between its last write to the device and the forgetting of its pin."""
    return pin.state is PinState.ERASING and found.zeroed and not device.signatures and _may_be_pinned(device, pin)


def own_leftovers(found: Found, device: Device, pin: Pin) -> bool:
    """Return whether a device holds what an unfinished volume leaves: its mark, or a header of its own.

    A disk of the same size is no proof, nor is a serial number: somebody may have used the disk since. Only where an
    erasure was about to end, and has removed its mark already, the device itself must do.
    """
    if not _may_be_pinned(device, pin):
        return False
    if any(one.type != "crypto_LUKS" or one.uuid not in (pin.uuid, None) for one in device.signatures):
        return False
    proof = found.marked == pin.uuid or any(one.uuid == pin.uuid for one in device.signatures)
    return proof or (pin.state is PinState.ERASING and bool(pin.identity))


def tidy(found: Found) -> Iterator[Step]:
    """Yield the closing of what a killed program left behind."""
    for stray in found.strays:
        yield Step(Action.CLOSE, stray)


def nothing_opens(wanted: Wanted) -> FdeError:
    """Return the failure of opening a volume whose key nobody has given."""
    return FdeError(
        wanted.device,
        f"nothing at hand opens volume '{wanted.name}': the TPM does not give its key",
        "Give unlock_with the recovery key, and the TPM is enrolled anew",
    )


def open_it(found: Found, wanted: Wanted) -> Iterator[Step]:
    """Yield the opening, before its keyslots change: what opens it now may be what has to go."""
    if found.mapping is not None:
        return
    if not found.credentials.authority:
        raise nothing_opens(wanted)
    yield Step(Action.OPEN, wanted.name)


def use(found: Found, wanted: Wanted, *, configuring: bool) -> Iterator[Step]:
    """Yield what makes an open volume usable; ``configuring`` where its boot is to be told something in any case."""
    yield from configure(found, configuring)
    if wanted.state is State.MOUNTED and wanted.mount is not None:
        for mounted in found.mounts:
            if mounted.path != wanted.mount.path:
                yield Step(Action.UNMOUNT, mounted.path)
        mounted_there = [mounted for mounted in found.mounts if mounted.path == wanted.mount.path]
        if not mounted_there:
            yield Step(Action.MOUNT, wanted.mount.path)
        elif changes := differing(mounted_there[-1].options, wanted.mount.options):
            yield Step(Action.REMOUNT, f"{wanted.mount.path} ({','.join(changes)})")
    elif wanted.state is State.OPEN:
        for mounted in found.mounts:
            yield Step(Action.UNMOUNT, mounted.path)


def configure(found: Found, always: bool = False) -> Iterator[Step]:
    if found.differing_files or always:
        yield Step(Action.CONFIGURE, ", ".join(found.differing_files or ("/etc/crypttab",)))


def _check_own(mapping: MappingFound, pin: Optional[Pin], name: str) -> None:
    """Raise ``FdeError`` where what is open under the volume's name may be somebody else's."""
    if pin is None:
        raise FdeError(f"/dev/mapper/{name}", "it is open, and nothing is known about it", "Close it by hand")
    if mapping.uuid != pin.uuid and not mapping.on_device:
        raise FdeError(
            f"/dev/mapper/{name}",
            "something else is open under this name, and not on the volume's device",
            "Close it by hand, or rename it",
        )


def close(found: Found, wanted: Wanted) -> Iterator[Step]:
    if found.mapping is not None:
        _check_own(found.mapping, found.pin, wanted.name)
    for mounted in reversed(found.mounts):
        yield Step(Action.UNMOUNT, mounted.path)
    if found.pin is not None:
        yield from tidy(found)
    if found.mapping is not None:
        yield Step(Action.CLOSE, wanted.name)
