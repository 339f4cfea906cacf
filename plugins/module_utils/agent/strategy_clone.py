# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Strategy ``clone``: the root is usable at once and copied into the volume while it is used."""

from __future__ import annotations

import os
from typing import Optional

from ..dm import clone, edges
from ..dm.table import SECTOR
from .machine import IMAGE, VOLUME, Machine
from .strategy import ROOT, Assembled, room_for_image, unreadable_image


class Cloned:
    """A dm-clone device over the volume; a linear one when everything is copied."""

    has_volume = True
    any_image = False
    device: Optional[str] = ROOT
    mapping: Optional[str] = clone.NAMES.root

    def mount_point(self, machine: Machine) -> Optional[str]:
        """Return the root: it is the volume's file system."""
        del machine
        return "/"

    def minimum(self, machine: Machine) -> int:
        """Return the least size of the partition in bytes."""
        return room_for_image(machine)

    def first(self, machine: Machine) -> bool:
        """Clone the image into the new volume.

        Some of the image is read before anything relies on the volume: where its hash tree or its content is not the
        sealed one, all starts over once it is.
        """
        _read_ends(machine.mapper.get(IMAGE).path)
        return clone.assemble(machine.mapper, VOLUME, IMAGE, fresh=True).complete

    def later(self, machine: Machine, complete: bool) -> Assembled:
        """Go on where the clone was; one that is known to be complete is never asked again."""
        if complete:
            clone.map_complete(machine.mapper, VOLUME, IMAGE)
            return Assembled(True, "a plain encrypted volume")
        state = clone.assemble(machine.mapper, VOLUME, IMAGE, fresh=False)
        return Assembled(state.complete, f"{state.hydrated} of {state.total} regions copied")

    def mountable(self, machine: Machine, complete: bool) -> Optional[str]:
        """Return the root when it is complete; before that the image is part of it."""
        if not complete:
            return None
        clone.map_complete(machine.mapper, VOLUME, IMAGE, read_only=True)
        return machine.mapper.get(clone.NAMES.root).path


def _read_ends(path: str) -> None:
    """Read both ends of the image. Raises ``FdeError``."""
    try:
        with open(path, "rb") as device:
            device.read(edges.FRONT * SECTOR)
            device.seek(-edges.BACK * SECTOR, os.SEEK_END)
            device.read()
    except OSError as error:
        raise unreadable_image(path, error) from error
