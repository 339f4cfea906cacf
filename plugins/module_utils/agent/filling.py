# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A running system's root grows to the end of its volume, which is written before anybody can read it.

A piece at a time: zeros to the disk, the record of them, a longer root device, a larger file system. Each may be cut
off. What lies behind the end of the root device belongs to nobody, so it is simply written again.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Callable

from ..disk import growth
from ..dm import clone, edges, written
from ..dm.device import Device, DeviceMapper
from ..dm.table import SECTOR, Linear
from ..errors import FdeError
from .hydration import INTERVAL, Ears
from .machine import VOLUME
from .pace import Pace, Watch

#: Sectors by which the root grows at once: a quarter of what it has, within these limits (64 MiB and 4 GiB). It is soon
#: of use that way, and the root, which is frozen for a moment each time, not frozen often.
_LEAST, _MOST = 1 << 17, 1 << 23
#: Bytes that users can count on: with less room than that nothing waits for them.
_SHORT = 1 << 30
#: Seconds of rest before each MiB where users never pause.
_REST = 0.1


def fill(
    mapper: DeviceMapper,
    ears: Ears,
    *,
    name: str = clone.NAMES.root,
    mount_point: str = "/",
    most: int = _MOST,
) -> None:
    """Let the root device ``name``, whose file system is mounted at ``mount_point``, grow to the end of its volume.

    Raises ``FdeError``; the root is as large then as it has become.
    """
    volume, kind = mapper.get(VOLUME), growth.kind_of(mount_point)
    courtesy, grown = _Courtesy(Watch(mapper.get(name).minor), lambda: _free(mount_point) < _SHORT), 0
    while True:
        root = _root(mapper, name, volume)
        # Also before the first piece: a root device that grew may have been the last thing before a power cut.
        grown += growth.grow(mount_point, kind, root.length * SECTOR)
        left = written.room(volume, root.offset) - root.length
        if left <= 0:
            break
        ears.status(f"{left * SECTOR >> 20} MiB of the volume are to be written before the root has them")
        piece = min(max(root.length // 4 // edges.BLOCK * edges.BLOCK, _LEAST), most, left)
        try:
            edges.zero(volume.path, [(root.offset + root.length, piece)], courtesy.wait)
            if _root(mapper, name, volume) != root:
                raise FdeError(name, "it was changed by somebody else meanwhile", "It is tried again")
            written.store(volume, root.length + piece)
        except OSError as error:
            raise FdeError(VOLUME, f"it cannot be written: {error.strerror}", "Check the disk") from error
        mapper.swap(name, (replace(root, length=root.length + piece),))
    if grown > 0:
        ears.log(f"the root's file system has grown by {grown >> 20} MiB to fill the volume")


def _root(mapper: DeviceMapper, name: str, volume: Device) -> Linear:
    targets = mapper.table(name)
    if len(targets) != 1 or not isinstance(targets[0], Linear) or targets[0].device != volume.number:
        raise FdeError(name, "it is not a slice of the encrypted device", "Reboot to assemble it again")
    return targets[0]


def _free(mount_point: str) -> int:
    known = os.statvfs(mount_point)
    return known.f_bavail * known.f_frsize


class _Courtesy:
    """Waits while users read and write, but not for ever, and not when ``short`` says that they need the room."""

    def __init__(self, watch: Watch, short: Callable[[], bool]) -> None:
        self._watch, self._short = watch, short
        self._look()

    def wait(self) -> None:
        """Return when the next MiB may be written."""
        if time.monotonic() - self._looked >= INTERVAL:
            self._look()
        while self._pace is Pace.PAUSED:
            time.sleep(INTERVAL)
            self._look()
        if self._pace is Pace.GENTLE:
            time.sleep(_REST)

    def _look(self) -> None:
        self._looked = time.monotonic()
        self._watch.look()
        self._pace = Pace.FULL if self._short() else self._watch.pace
