# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Strategy ``ephemeral``: the verity root, and memory for what is written. Nothing survives, nothing is to be kept.

systemd lays a tmpfs over the root (``systemd.volatile=overlay`` on the signed command line); the agent only makes sure
that the machine is one that may run the image at all.
"""

from __future__ import annotations

from typing import Optional

from .machine import Machine
from .strategy import Assembled


class Ephemeral:
    """No volume, no anchor, no key."""

    has_volume = False
    any_image = True
    device: Optional[str] = None
    mapping: Optional[str] = None

    def mount_point(self, machine: Machine) -> Optional[str]:
        """There is no volume."""
        del machine
        return None

    def minimum(self, machine: Machine) -> int:
        """There is no partition."""
        del machine
        return 0

    def first(self, machine: Machine) -> bool:
        """There is nothing to make."""
        del machine
        return False

    def later(self, machine: Machine, complete: bool) -> Assembled:
        """There is nothing to open."""
        del machine, complete
        return Assembled(False, "the verified image, and memory")

    def mountable(self, machine: Machine, complete: bool) -> Optional[str]:
        """There is no volume."""
        del machine, complete
        return None
