# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies the image's root into the encrypted volume while the system runs."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Callable, Optional

from ..dm import clone
from ..dm.device import DeviceMapper
from ..errors import FdeError
from ..runner import CommandError, Runner

#: Seconds between two looks at the progress. The kernel has an event for the end of hydration, but none for progress.
INTERVAL = 5.0


def hydrate(
    mapper: DeviceMapper,
    runner: Runner,
    tell: Callable[[str], None],
    *,
    mount_point: str = "/",
    interval: float = INTERVAL,
) -> Optional[clone.Status]:
    """Copy the root, mounted at ``mount_point``, into the volume.

    Returns the clone's last status, None when the root is no clone any more.

    First the unused blocks of the file system are discarded: dm-clone takes them as copied. Then the rest is copied in
    the background, yielding to the I/O of users. Raises ``FdeError`` when the clone fails.
    """
    if not clone.is_clone(mapper):
        return None
    try:
        runner.run(["fstrim", mount_point])
    except CommandError as error:
        # A file system without discard costs time, not correctness.
        tell(f"unused blocks are copied too: {error.cause}")
    clone.hydrate(mapper)
    while True:
        status = clone.status(mapper)
        if status.mode is not clone.Mode.READ_WRITE:
            raise FdeError(
                clone.NAMES.root,
                f"its record is in mode '{status.mode.value}'",
                "Look at the kernel's log, then reboot",
            )
        tell(f"{percent(status)} % of the root is in the encrypted volume ({status.hydrated}/{status.total} regions)")
        if status.complete:
            return status
        time.sleep(interval)


def percent(status: clone.Status) -> float:
    """Return the share of the regions that are in the volume, rounded down to a tenth."""
    return status.hydrated * 1000 // status.total / 10 if status.total else 100.0


def notify(text: str) -> None:
    """Show a line as the status of the systemd unit that we run in, if we do."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.send(f"STATUS={text}".encode())
