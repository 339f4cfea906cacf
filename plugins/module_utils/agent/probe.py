# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent finds before it decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

from ..disk.gpt import FDE
from ..luks2.area import HeaderArea, read_area
from ..tpm.anchor import Found
from .configuration import Configuration
from .decision import Probed, Volume
from .disks import Disk, partition_device


@dataclass(frozen=True)
class Look:
    """One look at the machine: what the decision is made of, and what carrying it out needs.

    ``areas`` are the header areas by device, read once: what is opened later are these bytes.
    """

    probed: Probed
    disks: tuple[Disk, ...]
    areas: Mapping[str, HeaderArea]


def look(configuration: Configuration, anchor: Found, found: Sequence[Disk]) -> Look:
    """Look at the disks ``found``, of which one should carry the sealed image. Changes nothing."""
    sealed = (configuration.data_partition, configuration.hash_partition)
    carriers = tuple(disk for disk in found if disk.holds(sealed))
    volumes, foreign, areas = [], [], {}
    for partition in carriers[0].beyond(sealed) if len(carriers) == 1 else ():
        device = partition_device(carriers[0], partition)
        area = read_area(device)
        ours = partition.type == FDE
        if ours or area.present:
            areas[device] = area
            volumes.append(Volume(device, ours, area.digest if area.present else None))
        else:
            foreign.append(device)
    names = tuple(disk.device for disk in carriers)
    return Look(Probed(anchor, names, tuple(volumes), tuple(foreign)), carriers, areas)
