# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exchange of a table under a file system that the running program itself comes from.

Between "suspend" and "resume" nothing can be read from a suspended root: not the next program, and not the next page
of this one. So no program is started between the two. The kernel does suspend, exchange and resume in one call when a
device with a loaded table is resumed (``do_resume`` in drivers/md/dm-ioctl.c). Only where the exchange itself fails it
leaves the device suspended; then this process, all of whose pages are locked into memory, drops the new table and
resumes the old one.

Source: Linux include/uapi/linux/dm-ioctl.h, interface version 4.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from contextlib import contextmanager
from typing import Callable, Iterator

from ..errors import FdeError

CONTROL = "/dev/mapper/control"

#: struct dm_ioctl: version, data_size, data_start, target_count, open_count, flags, event_nr, padding, dev, name, uuid.
_HEADER = struct.Struct("=3I2IIiIIIQ128s129s7x")
_VERSION = (4, 0, 0)


def _number(command: int) -> int:
    """Return _IOWR(0xfd, command, struct dm_ioctl)."""
    return 3 << 30 | _HEADER.size << 16 | 0xFD << 8 | command


DEVICE_SUSPEND = _number(6)
TABLE_CLEAR = _number(10)
#: In the upper half of ``event_nr``: udev shall take the event as one of a device that is ready. Nobody waits for it.
_READY = 0x0040 << 16

_LOCK_ALL = 3


class Control:
    """The kernel's control node of device-mapper, for what must not be done by another program."""

    def __init__(self, path: str = CONTROL, call: Callable[[int, int, bytearray], int] = fcntl.ioctl) -> None:
        self._path = path
        self._call = call

    def exchange(self, name: str) -> None:
        """Put the loaded table of a device in the place of the active one while the device is in use.

        Raises ``FdeError`` when the kernel refuses; the old table is in use then.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            with _locked_memory():
                try:
                    self._call(descriptor, DEVICE_SUSPEND, request(name, event=_READY))
                except OSError as error:
                    self._call(descriptor, TABLE_CLEAR, request(name))
                    self._call(descriptor, DEVICE_SUSPEND, request(name, event=_READY))
                    raise FdeError(
                        name,
                        f"the kernel did not take the new table: {error.strerror}",
                        "Nothing is lost; it is tried again at the next boot",
                    ) from error
        finally:
            os.close(descriptor)


def request(name: str, *, event: int = 0) -> bytearray:
    """Return a struct dm_ioctl for the device of that name; with no flags a suspend request is one to resume."""
    encoded = name.encode()
    if not 0 < len(encoded) < 128:
        raise ValueError(f"no such name: {name!r}")
    return bytearray(_HEADER.pack(*_VERSION, _HEADER.size, _HEADER.size, 0, 0, 0, event, 0, 0, encoded, b""))


@contextmanager
def _locked_memory() -> Iterator[None]:
    """Keep all pages of this process in memory. Raises ``FdeError`` when the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_LOCK_ALL) != 0:
        raise FdeError("the memory of this program", os.strerror(ctypes.get_errno()), "Run it as root")
    try:
        yield
    finally:
        libc.munlockall()
