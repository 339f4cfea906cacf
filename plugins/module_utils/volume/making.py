# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps that make a volume, on a device that is blank, or its own unfinished work, or given up by name."""

from __future__ import annotations

from typing import Iterator, Optional

from ..errors import FdeError, Refusal
from ..luks2 import enrolment
from .device import Device
from .found import Found
from .pin import Pin, PinState
from .steps import Action, Step, keyslot_step
from .using import check_use, configure, own_leftovers, tidy
from .wanted import LEAST, FileSystemType, State, Wanted


def create(found: Found, wanted: Wanted, device: Device) -> Iterator[Step]:
    unfinished = found.pin if found.pin is not None and found.pin.state is PinState.INITIALIZING else None
    _check_free(found, wanted, device, unfinished)
    own = unfinished if unfinished is not None and own_leftovers(found, device, unfinished) else None
    if own is None:
        _check_blank(wanted, device)
    least = LEAST[wanted.file_system]
    if device.size < least:
        raise FdeError(device.path, f"it is smaller than {least >> 20} MiB", "Take a larger device")
    yield from tidy(found)
    if found.mapping is not None:
        yield Step(Action.CLOSE, wanted.name)
    # Until the new mark is written, the pin must name what the last attempt has left there. That was never ready, so no
    # recovery key was handed over for its UUID.
    yield Step(Action.PIN, "initializing", uuid=None if own is None else own.uuid)
    yield Step(Action.CLEAR, device.path)
    yield Step(Action.FORMAT, f"{wanted.profile.name}, {'journal' if wanted.journal else 'no journal'}")
    yield keyslot_step(enrolment.plan((), wanted.unlock))
    yield Step(Action.OPEN, wanted.name)
    if wanted.file_system is not FileSystemType.NONE:
        yield Step(Action.MAKE_FILE_SYSTEM, wanted.file_system.value)
    yield Step(Action.STORE, device.path)
    yield Step(Action.READY, wanted.name)
    yield from configure(found)
    if wanted.state is State.MOUNTED and wanted.mount is not None:
        yield Step(Action.MOUNT, wanted.mount.path)


def _check_free(found: Found, wanted: Wanted, device: Device, unfinished: Optional[Pin]) -> None:
    """Raise ``FdeError`` where device or name are in use by anything but this volume's own unfinished work."""
    if found.mapping is not None and not (unfinished is not None and found.mapping.uuid == unfinished.uuid):
        raise FdeError(
            f"/dev/mapper/{wanted.name}", "something else is open under this name", "Close it, or rename the volume"
        )
    if found.mounts:
        raise FdeError(device.path, f"it is mounted at {found.mounts[0].path}", "Unmount it")
    check_use(found, device)
    if device.read_only:
        raise FdeError(device.path, "it is read-only", "Name another device")


def _check_blank(wanted: Wanted, device: Device) -> None:
    """Raise ``Refusal`` unless the device is blank, or is named by ``force``."""
    contents, names = device.contents(), device.names_to_give_up()
    if contents and (wanted.force is None or wanted.force not in names):
        remedy = f"Set force to one of {', '.join(names)}" if names else "Overwrite its beginning by hand"
        raise Refusal(
            "volume-has-data",
            device.path,
            f"it holds {' and '.join(contents)}, and nothing is made over that",
            f"Check that it is the right device. {remedy} if everything on it may be lost",
        )
