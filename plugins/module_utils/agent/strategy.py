# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the four ways have in common by which a verity root becomes a writable one.

A strategy begins where the encrypted volume is open, and ends where systemd can mount the root.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Protocol

from ..dm import clone
from ..dm.table import SECTOR
from ..errors import FdeError
from ..luks2.profile import LAYOUT
from .machine import IMAGE, Machine

ROOT = f"/dev/mapper/{clone.NAMES.root}"
#: Space of the volume that is not the file system's: tags (1/128), the integrity journal, the clone's record.
OVERHEAD = 192 << 20


@dataclass(frozen=True)
class Assembled:
    """How the root was put together at a later boot.

    ``complete`` says that nothing of the image's content is read from now on but what the strategy always needs.
    """

    complete: bool
    said: str


class Root(Protocol):
    """One strategy."""

    @property
    def has_volume(self) -> bool:
        """Whether there is an encrypted volume at all, and with it an anchor."""

    @property
    def any_image(self) -> bool:
        """Whether a volume outlives the image that it was made from, and may be used with another one."""

    @property
    def device(self) -> Optional[str]:
        """The device that systemd mounts, None where it mounts something else."""

    @property
    def mapping(self) -> Optional[str]:
        """The device-mapper name of the device over what is written of the volume, None where there is no volume."""

    def mount_point(self, machine: Machine) -> Optional[str]:
        """Return where the file system of the volume is mounted in a running system, None where there is none."""

    def minimum(self, machine: Machine) -> int:
        """Return the least size of the volume's partition in bytes."""

    def first(self, machine: Machine) -> bool:
        """Put the root together from a volume that was just made; return whether it is complete already.

        Raises ``FdeError``; then all is made anew at the next boot.
        """

    def later(self, machine: Machine, complete: bool) -> Assembled:
        """Put the root together again; ``complete`` is what the anchor says. Raises ``FdeError``."""

    def mountable(self, machine: Machine, complete: bool) -> Optional[str]:
        """Return the device with a file system of its own in an open volume, None where there is none.

        Nothing is written; a device that is needed for it is made read-only.
        """


def image_size(machine: Machine) -> int:
    """Return the size of the verity root in bytes."""
    return machine.mapper.get(IMAGE).size * SECTOR


def room_for_image(machine: Machine) -> int:
    """Return the least size in bytes of a partition whose volume is to hold the whole image."""
    size = image_size(machine)
    return LAYOUT.offset + size + size // 100 + OVERHEAD


def unreadable_image(path: str, error: OSError) -> FdeError:
    """Return what to say of the verified image where its content or its hash tree is not the sealed one."""
    cause = f"the verified image cannot be read: {error.strerror}"
    return FdeError(path, cause, "It is damaged or was changed: deploy it again")
