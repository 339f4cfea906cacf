# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps with a volume that there is: checks that nobody else uses it, opening, mounting, closing."""

from __future__ import annotations

from typing import Iterator

from ..errors import FdeError
from .device import Device
from .found import Found
from .pin import Pin
from .steps import Action, Step
from .wanted import State, Wanted


def check_use(found: Found, device: Device) -> None:
    """Raise ``FdeError`` when anything but the volume itself uses the device."""
    if device.use is not None and not (found.mapping is not None and found.mapping.on_device):
        raise FdeError(device.path, f"it is in use: {device.use}", "Name another device, or end its use")


def own_leftovers(found: Found, device: Device, pin: Pin) -> bool:
    """An unfinished volume leaves bytes without a name, or a header of its own, whole or torn, on the same device."""
    if device.size != pin.size:
        return False
    return all(one.type == "crypto_LUKS" and one.uuid in (pin.uuid, None) for one in device.signatures)


def open_it(found: Found, wanted: Wanted) -> Iterator[Step]:
    """Yield the opening, before its keyslots change: what opens it now may be what has to go."""
    if found.mapping is not None:
        return
    if not found.credentials.authority:
        raise FdeError(
            wanted.device,
            f"nothing at hand opens volume '{wanted.name}': the TPM does not give its key",
            "Give unlock_with the recovery key, and the TPM is enrolled anew",
        )
    yield Step(Action.OPEN, wanted.name)


def use(found: Found, wanted: Wanted) -> Iterator[Step]:
    yield from configure(found)
    if wanted.state is State.MOUNTED and wanted.mount is not None:
        for mounted in found.mounts:
            if mounted.path != wanted.mount.path:
                yield Step(Action.UNMOUNT, mounted.path)
        if wanted.mount.path not in {mounted.path for mounted in found.mounts}:
            yield Step(Action.MOUNT, wanted.mount.path)
    elif wanted.state is State.OPEN:
        for mounted in found.mounts:
            yield Step(Action.UNMOUNT, mounted.path)


def configure(found: Found) -> Iterator[Step]:
    if found.differing_files:
        yield Step(Action.CONFIGURE, ", ".join(found.differing_files))


def close(found: Found, wanted: Wanted) -> Iterator[Step]:
    if found.mapping is not None and found.pin is None:
        raise FdeError(f"/dev/mapper/{wanted.name}", "it is open, and nothing is known about it", "Close it by hand")
    for mounted in reversed(found.mounts):
        yield Step(Action.UNMOUNT, mounted.path)
    if found.mapping is not None:
        yield Step(Action.CLOSE, wanted.name)
