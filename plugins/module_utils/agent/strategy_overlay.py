# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Strategy ``overlay``: what is written goes to btrfs in the encrypted volume, laid over the verity root.

dm-integrity keeps its journal although btrfs never overwrites what it still needs, because its superblock is the
exception: a power cut between that sector and its tag would leave it unreadable. Its mirrors are no way out, they are
written in the same moment, and not at all by ``fsync``. systemd mounts the overlay itself (``rootflags=`` on the signed
command line); here both layers are mounted for it. Hard links and renames of directories of the lower layer behave as
overlayfs does by default: no feature is on that would tie the upper layer to one image (``index``, ``metacopy``,
``redirect_dir``).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

from ..dm import edges, written
from ..dm.table import SECTOR
from ..luks2.profile import LAYOUT
from .machine import IMAGE, VOLUME, Machine
from .strategy import OVERHEAD, Assembled

#: Below the agent's state directory: the layers, and in the upper file system what overlayfs is given.
LOWER, UPPER, DATA, WORK = "lower", "upper", "data", "work"
LABEL = "fde"
#: The device of the upper file system.
UPPER_DEVICE = "fde-upper"
#: btrfs needs 110 MiB to begin with; a root that is written to needs more. It is what a first boot waits for.
_LEAST = 256 << 20


class Overlaid:
    """Two mounts for an overlay."""

    has_volume = True
    any_image = True
    device: Optional[str] = None
    mapping: Optional[str] = UPPER_DEVICE

    def mount_point(self, machine: Machine) -> Optional[str]:
        """Return where the upper file system is mounted."""
        return str(machine.paths.state / UPPER)

    def minimum(self, machine: Machine) -> int:
        """Return the least size of the partition in bytes; the image stays where it is."""
        del machine
        return LAYOUT.offset + _LEAST + OVERHEAD

    def first(self, machine: Machine) -> bool:
        """Make the upper file system and mount both layers."""
        volume = machine.mapper.get(VOLUME)
        length = min(_LEAST // SECTOR, written.room(volume))
        edges.zero(volume.path, [(written.SLICE, length)])
        written.store(volume, length)
        upper = written.map_root(machine.mapper, UPPER_DEVICE, volume).path
        machine.runner.run(
            ["mkfs.btrfs", "--quiet", "--force", "--nodiscard", "--csum", "sha256", "--label", LABEL, upper]
        )
        self._mount(machine)
        for name in (DATA, WORK):
            (machine.paths.state / UPPER / name).mkdir(mode=0o755)
        # Before the anchor relies on them: a volume without them can never be mounted.
        os.sync()
        return True

    def later(self, machine: Machine, complete: bool) -> Assembled:
        """Mount both layers."""
        del complete
        written.map_root(machine.mapper, UPPER_DEVICE, machine.mapper.get(VOLUME))
        self._mount(machine)
        return Assembled(True, "the volume lies over the verified image")

    def mountable(self, machine: Machine, complete: bool) -> Optional[str]:
        """Return the upper file system's device, made read-only."""
        del complete
        volume = machine.mapper.get(VOLUME)
        return written.map_root(machine.mapper, UPPER_DEVICE, volume, read_only=True).path

    def _mount(self, machine: Machine) -> None:
        state, mapper = machine.paths.state, machine.mapper
        _mounted(machine, mapper.get(IMAGE).path, state / LOWER, "ro")
        _mounted(machine, mapper.get(UPPER_DEVICE).path, state / UPPER, "rw,noatime", "btrfs")


def _mounted(machine: Machine, device: str, directory: Path, options: str, kind: str = "") -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    machine.runner.run(["mount", *(("-t", kind) if kind else ()), "-o", options, device, str(directory)])
