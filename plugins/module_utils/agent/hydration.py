# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a running system does for its root: copy the rest, need the image no more, fill the volume.

Every step may be cut off and is done again at the next start: what is copied is remembered by dm-clone inside the
encrypted volume, and that all of it is copied by the anchor.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import dataclass
from typing import Callable, Optional

from ..disk import growth
from ..dm import clone
from ..dm.device import DeviceMapper
from ..dm.queue import queue_of
from ..dm.table import SECTOR
from ..errors import FdeError
from ..runner import CommandError, Runner
from .pace import Pace, Pacer, load_of

#: Seconds between two looks at users and progress. The kernel has an event for the end of hydration, none for either.
INTERVAL = 1.0
#: Percent of progress between two lines of the journal.
_STRIDE = 10


@dataclass(frozen=True)
class Ears:
    """Who is told: ``status`` at every look, ``log`` at steps worth keeping."""

    status: Callable[[str], None]
    log: Callable[[str], None]


def hydrate(
    mapper: DeviceMapper,
    runner: Runner,
    ears: Ears,
    *,
    mount_point: str = "/",
    interval: float = INTERVAL,
) -> Optional[clone.Status]:
    """Copy the root, mounted at ``mount_point``, into the volume until all of it is there.

    Returns the clone's last status, None when the root is no clone any more.

    First the unused blocks of the file system are discarded: dm-clone takes them as copied. Then the rest is copied in
    the background, but not while users read and write (``pace``). Raises ``FdeError`` when the clone fails.
    """
    if not clone.is_clone(mapper):
        return None
    try:
        runner.run(["fstrim", mount_point])
    except CommandError as error:
        # A file system without discard costs time, not correctness.
        ears.log(f"unused blocks are copied too: {error.cause}")
    pacing = _Pacing(mapper)
    told = -_STRIDE
    while True:
        status = clone.status(mapper)
        if status.mode is not clone.Mode.READ_WRITE:
            raise FdeError(
                clone.NAMES.root,
                f"its record is in mode '{status.mode.value}'",
                "Look at the kernel's log, then reboot",
            )
        line = f"{percent(status)} % of the root is in the encrypted volume ({status.hydrated}/{status.total} regions)"
        ears.status(line + (", waiting for users" if pacing.pace is Pace.PAUSED else ""))
        if percent(status) >= told + _STRIDE or status.complete:
            told = int(percent(status))
            ears.log(line)
        if status.complete:
            return status
        time.sleep(interval)
        pacing.look()


class _Pacing:
    """Tells the kernel how fast to copy, whenever that changes."""

    def __init__(self, mapper: DeviceMapper) -> None:
        self._mapper = mapper
        self._minor = mapper.get(clone.NAMES.root).minor
        state = clone.status(mapper)
        self._tuning = clone.tuning(state.total * state.region, queue_of(mapper.get(clone.NAMES.destination).minor))
        self._pacer = Pacer()
        self._seen, self._at = load_of(self._minor), time.monotonic()
        self._tell()

    @property
    def pace(self) -> Pace:
        """The pace now."""
        return self._pacer.pace

    def look(self) -> None:
        """Look at what users did since the last look."""
        load, now = load_of(self._minor), time.monotonic()
        following = self._pacer.after(self._seen, load, now - self._at)
        changed = following.pace is not self._pacer.pace
        self._pacer, self._seen, self._at = following, load, now
        if changed:
            self._tell()

    def _tell(self) -> None:
        if self._pacer.pace is Pace.PAUSED:
            clone.pause(self._mapper)
            return
        full = self._pacer.pace is Pace.FULL
        threshold, batch = (self._tuning.threshold, self._tuning.batch) if full else clone.GENTLE
        clone.hydrate(self._mapper, threshold=threshold, batch=batch)


def settle(mapper: DeviceMapper, ears: Ears) -> None:
    """Map a complete clone linearly, under the mounted root. Raises ``FdeError``; the clone is in use then."""
    if clone.is_clone(mapper):
        clone.finish(mapper)
        ears.log("the root is a plain encrypted volume now; nothing is read from the image any more, which has to stay")
    # One that was killed in between left them behind.
    clone.tidy(mapper)


def fill(mapper: DeviceMapper, ears: Ears, *, mount_point: str = "/", mounts: str = "/proc/self/mounts") -> None:
    """Let the root's file system grow to the end of its device. Raises ``FdeError``."""
    root = mapper.get(clone.NAMES.root)
    grown = growth.grow(mount_point, growth.kind_of(mount_point, mounts), root.path, root.size * SECTOR)
    if grown > 0:
        ears.log(f"the root's file system has grown by {grown >> 20} MiB to fill the volume")


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
