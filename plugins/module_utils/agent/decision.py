# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the boot agent does about the state it finds: open the volume, make it, or refuse.

The table lives here and nowhere else; the documentation is tested against it. Nothing in this file looks at a disk or
a TPM. What its refusals say is in ``codes``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Iterator, Optional, Union

from ..codes import Code, refuse
from ..errors import Refusal
from ..tpm.anchor import Anchor, Found, Standing, State


class Action(str, Enum):
    """What to do with a state that is not refused."""

    #: Make the volume; whatever is there of an earlier attempt is made anew.
    FIRST_BOOT = "first-boot"
    #: Open the volume that the anchor describes.
    OPEN = "open"
    #: Write the saved copy of the header once more, because a change of it was cut short; then open the volume.
    REPAIR = "repair"
    #: Run the verified image without a volume; nothing is decided about disks.
    EPHEMERAL = "ephemeral"


@dataclass(frozen=True)
class Volume:
    """A partition that may be our encrypted volume: one of our partition type, or one with a LUKS2 header.

    ``header_digest`` is None where there is no LUKS2 header.
    """

    device: str
    ours_by_type: bool
    header_digest: Optional[bytes] = None


@dataclass(frozen=True)
class Probed:
    """All that the decision depends on.

    ``disks`` are the disks that carry the sealed partitions, ``volumes`` and ``foreign`` the further partitions of the
    first of them: those that may be the volume, and the rest. ``saved_header`` is the digest of the copy of a header
    that is kept on the EFI system partition while the header is changed.
    """

    anchor: Found
    disks: tuple[str, ...]
    volumes: tuple[Volume, ...] = ()
    foreign: tuple[str, ...] = ()
    saved_header: Optional[bytes] = None


@dataclass(frozen=True)
class Decision:
    """``volume`` is the partition to open, or on a first boot the one to replace."""

    action: Action
    volume: Optional[Volume] = None


def decide(probed: Probed) -> Union[Decision, Refusal]:
    """Return what to do about ``probed``. Where several things are wrong, the first of ``Code`` is named."""
    for refusal in _anomalies(probed):
        return refusal
    volume = probed.volumes[0] if probed.volumes else None
    if volume is None or not _ready(probed.anchor):
        return Decision(Action.FIRST_BOOT, volume)
    pinned = volume.header_digest in _content(probed.anchor).pinned
    return Decision(Action.OPEN if pinned else Action.REPAIR, volume)


def _anomalies(probed: Probed) -> Iterator[Refusal]:
    """Yield the reasons to refuse in the order of ``Code``."""
    if len(probed.disks) != 1:
        yield refuse(Code.DISK_AMBIGUOUS, ", ".join(probed.disks) or "no disk", f"{len(probed.disks)} found")
        return
    foreign = (*probed.foreign, *(volume.device for volume in probed.volumes if not volume.ours_by_type))
    if foreign:
        yield refuse(Code.PARTITION_FOREIGN, ", ".join(foreign))
    if len(probed.volumes) > 1:
        yield refuse(Code.VOLUME_DUPLICATE, ", ".join(volume.device for volume in probed.volumes))
    volume = probed.volumes[0] if probed.volumes else None
    if probed.anchor.standing is Standing.UNREADABLE:
        yield refuse(Code.ANCHOR_UNREADABLE, probed.disks[0])
    elif _ready(probed.anchor):
        yield from _anomalies_of_ready(probed, volume)
    elif volume is not None and probed.anchor.standing is not Standing.OURS:
        yield _anomaly_of_first_boot(probed.anchor.standing, volume)


def _anomaly_of_first_boot(standing: Standing, volume: Volume) -> Refusal:
    """What the TPM never heard of is not ours; only an anchor that says so tells that we were just making it."""
    if volume.header_digest is None:
        return refuse(Code.PARTITION_FOREIGN, volume.device, "it is empty, and was there before the first boot")
    if standing is Standing.FOREIGN:
        return refuse(Code.ANCHOR_FOREIGN, volume.device)
    return refuse(Code.VOLUME_WITHOUT_ANCHOR, volume.device)


def _anomalies_of_ready(probed: Probed, volume: Optional[Volume]) -> Iterator[Refusal]:
    anchor = _content(probed.anchor)
    if volume is None:
        yield refuse(Code.VOLUME_MISSING, probed.disks[0])
    elif volume.header_digest not in anchor.pinned and probed.saved_header not in anchor.pinned:
        if any(anchor.header_previous) and volume.header_digest == anchor.header_previous:
            yield refuse(Code.ROLLED_BACK, volume.device)
        else:
            yield refuse(Code.HEADER_MISMATCH, volume.device, "" if volume.header_digest else "it has none")


def _ready(found: Found) -> bool:
    return found.standing is Standing.OURS and _content(found).state is State.READY


def _content(found: Found) -> Anchor:
    if found.anchor is None:
        raise ValueError(f"an anchor that is {found.standing.value} has no content")
    return found.anchor
