# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a running system does for a cloned root: copy the rest, need the image no more.

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

from ..dm import clone
from ..dm.device import DeviceMapper
from ..dm.queue import queue_of
from ..errors import FdeError
from .machine import IMAGE
from .pace import Pace, Watch

#: Seconds between two looks at users and progress. The kernel has an event for the end of hydration, none for either.
INTERVAL = 1.0
#: Looks without any progress after which the copy is given up; the service starts it again.
_PATIENCE = 300
#: Percent of progress between two lines of the journal.
_STRIDE = 10


@dataclass(frozen=True)
class Ears:
    """Who is told: ``status`` at every look, ``log`` at steps worth keeping."""

    status: Callable[[str], None]
    log: Callable[[str], None]


def hydrate(mapper: DeviceMapper, ears: Ears, *, interval: float = INTERVAL) -> Optional[clone.Status]:
    """Copy the root into the volume until all of it is there, in the background, and not while users read and write.

    Returns the clone's last status, None when the root is no clone any more. Raises ``FdeError`` when the clone fails.
    """
    if not clone.is_clone(mapper):
        return None
    pacing, stall = _Pacing(mapper), _Stall()
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
        if stall.after(status, pacing.pace):
            raise FdeError(
                IMAGE,
                f"{status.total - status.hydrated} regions cannot be copied",
                "Look at the kernel's log for errors",
            )
        time.sleep(interval)
        pacing.look()


@dataclass
class _Stall:
    """Notices that nothing is copied although nobody is in the way: the kernel tries a region that fails for ever."""

    hydrated: int = -1
    looks: int = 0

    def after(self, status: clone.Status, pace: Pace) -> bool:
        """Tell whether it is so, after one more look."""
        still = status.hydrated == self.hydrated and pace is Pace.FULL
        self.hydrated, self.looks = status.hydrated, self.looks + 1 if still else 0
        return self.looks >= _PATIENCE


class _Pacing:
    """Tells the kernel how fast to copy, whenever that changes."""

    def __init__(self, mapper: DeviceMapper) -> None:
        self._mapper = mapper
        self._watch = Watch(mapper.get(clone.NAMES.root).minor)
        state = clone.status(mapper)
        self._tuning = clone.tuning(state.total * state.region, queue_of(mapper.get(clone.NAMES.destination).minor))
        self._tell()

    @property
    def pace(self) -> Pace:
        """The pace now."""
        return self._watch.pace

    def look(self) -> None:
        """Look at what users did since the last look."""
        if self._watch.look():
            self._tell()

    def _tell(self) -> None:
        if self.pace is Pace.PAUSED:
            clone.pause(self._mapper)
            return
        full = self.pace is Pace.FULL
        threshold, batch = (self._tuning.threshold, self._tuning.batch) if full else clone.GENTLE
        clone.hydrate(self._mapper, threshold=threshold, batch=batch)


def settle(mapper: DeviceMapper, ears: Ears) -> None:
    """Map a complete clone linearly, under the mounted root. Raises ``FdeError``; the clone is in use then."""
    if clone.is_clone(mapper):
        clone.finish(mapper)
        ears.log("the root is a plain encrypted volume now; nothing is read from the image any more, which has to stay")
    # One that was killed in between left them behind.
    clone.tidy(mapper)


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
