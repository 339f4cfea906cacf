# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent finds before it decides."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Callable, Iterator, Mapping, Optional, Sequence

from ..codes import Code, refuse
from ..disk.gpt import FDE, Partition
from ..errors import Refusal
from ..luks2.area import HeaderArea, read_area
from ..tpm.anchor import Found, Standing, State
from .configuration import Configuration
from .decision import Probed, Volume
from .disks import Choice, Disk, Survey, choose, partition_device, require_known


@dataclass(frozen=True)
class Look:
    """One look at the machine: what the decision is made of, and what carrying it out needs.

    ``areas`` are the header areas by device, read once: what is opened later are these bytes. ``saved`` is the copy of
    a header whose change was cut short, where there is one.
    """

    probed: Probed
    choice: Choice
    areas: Mapping[str, HeaderArea]
    saved: Optional[HeaderArea] = None


def look(
    configuration: Configuration,
    anchor: Found,
    found: Survey,
    saved_header: Callable[[str], Optional[HeaderArea]] = lambda _device: None,
) -> Look:
    """Look at the disks ``found``. Changes nothing. Raises ``Refusal`` when it is not clear which disks count.

    ``saved_header`` returns the saved copy of the header of a device; it is asked only while the anchor says that the
    header is being changed.
    """
    choice = choose(configuration, found, unfinished=_is_unfinished(anchor))
    if isinstance(choice, Refusal):
        raise choice
    for disk in (choice.image, choice.volume):
        if isinstance(disk, Disk):
            require_known(disk)
    unused = choice.apart and isinstance(choice.volume, Disk) and not choice.volume.table.partitions
    if unused and anchor.standing is not Standing.OURS:
        # Our own table is written after the anchor. Below any other may lie what somebody wants back.
        raise refuse(Code.DISK_FOREIGN, choice.volume.device, "it has a partition table without partitions")
    sealed = (configuration.data_partition, configuration.hash_partition)
    volumes: list[Volume] = []
    foreign, areas = [], {}
    for disk, partition in _further(choice, sealed):
        device = partition_device(disk, partition)
        area = read_area(device)
        ours = partition.type == FDE and disk.name == choice.volume.name
        if ours or area.present:
            if not volumes:
                # A second one is refused: however many a host makes, their headers take no memory.
                areas[device] = area
            volumes.append(Volume(device, ours, area.digest if area.present else None))
        else:
            foreign.append(device)
    changing = anchor.anchor is not None and any(anchor.anchor.header_next)
    saved = saved_header(volumes[0].device) if changing and len(volumes) == 1 else None
    names = (choice.image.device,)
    probed = Probed(anchor, names, tuple(volumes), tuple(foreign), saved.digest if saved else None)
    return Look(probed, choice, areas, saved)


def _further(choice: Choice, sealed: Sequence[uuid.UUID]) -> Iterator[tuple[Disk, Partition]]:
    """Yield the partitions that are not the image's: of its disk, and all of the volume's own disk."""
    for partition in choice.image.beyond(sealed):
        yield choice.image, partition
    if choice.apart and isinstance(choice.volume, Disk):
        for partition in choice.volume.table.partitions:
            yield choice.volume, partition


def _is_unfinished(anchor: Found) -> bool:
    """Whether a first boot was begun and not ended: what it left on the disk is to be made anew."""
    return anchor.standing is Standing.OURS and anchor.anchor is not None and anchor.anchor.state is State.INITIALIZING
