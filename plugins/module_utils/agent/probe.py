# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent finds before it decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Mapping, Optional, Sequence

from ..disk.gpt import FDE
from ..luks2.area import HeaderArea, read_area
from ..tpm.anchor import Found
from .configuration import Configuration
from .decision import Probed, Volume
from .disks import Disk, partition_device


@dataclass(frozen=True)
class Look:
    """One look at the machine: what the decision is made of, and what carrying it out needs.

    ``areas`` are the header areas by device, read once: what is opened later are these bytes. ``saved`` is the copy of
    a header whose change was cut short, where there is one.
    """

    probed: Probed
    disks: tuple[Disk, ...]
    areas: Mapping[str, HeaderArea]
    saved: Optional[HeaderArea] = None


def look(
    configuration: Configuration,
    anchor: Found,
    found: Sequence[Disk],
    saved_header: Callable[[str], Optional[HeaderArea]] = lambda _device: None,
) -> Look:
    """Look at the disks ``found``, of which one should carry the sealed image. Changes nothing.

    ``saved_header`` returns the saved copy of the header of a device; it is asked only while the anchor says that the
    header is being changed.
    """
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
    changing = anchor.anchor is not None and any(anchor.anchor.header_next)
    saved = saved_header(volumes[0].device) if changing and len(volumes) == 1 else None
    probed = Probed(anchor, names, tuple(volumes), tuple(foreign), saved.digest if saved else None)
    return Look(probed, carriers, areas, saved)
