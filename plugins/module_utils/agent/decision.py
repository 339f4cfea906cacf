# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the boot agent does about the state it finds: open the volume, make it, or refuse.

The table lives here and nowhere else; the documentation is tested against it. Nothing in this file looks at a disk or
a TPM.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Iterator, Optional, Union

from ..errors import Refusal
from ..tpm.anchor import Anchor, Found, Standing, State


class Code(str, Enum):
    """Why a boot is refused; the value is stable and appears on the console, in the log and in PCR 11.

    Up to ``ROLLED_BACK`` in the order in which the decision looks for them.
    """

    def __new__(cls, value: str, sentence: str = "", remedy: str = "") -> Code:
        member = str.__new__(cls, value)
        member._value_ = value
        member.sentence = sentence
        member.remedy = remedy
        return member

    sentence: str
    remedy: str

    DISK_AMBIGUOUS = (
        "disk-ambiguous",
        "Not exactly one disk carries the partitions of the sealed image",
        "Detach every disk that is a copy of the root disk",
    )
    DISK_DAMAGED = (
        "disk-damaged",
        "No disk carries the sealed image, and the partition table of one is damaged: it was cut off or changed",
        "Give the machine the whole disk back, or deploy the image again",
    )
    VOLUME_DISK = (
        "volume-disk",
        "Not exactly one disk is the one that the encrypted volume belongs on",
        "Attach the disk of this machine, and detach others; the image says which disk it is",
    )
    DISK_FOREIGN = (
        "disk-foreign",
        "The disk for the encrypted volume holds something that this agent did not make",
        "Attach a blank disk, or the one that belongs to this machine",
    )
    PARTITION_FOREIGN = (
        "partition-foreign",
        "The root disk has a partition that neither the image nor this agent made",
        "Remove the partition, or deploy the image again",
    )
    VOLUME_DUPLICATE = (
        "volume-duplicate",
        "More than one partition claims to be the encrypted volume",
        "Remove the partition that was added",
    )
    ANCHOR_UNREADABLE = (
        "anchor-unreadable",
        "The anchor has a content that this version does not know",
        "Boot the version of the image that wrote it, or recover the volume with its recovery key",
    )
    ANCHOR_FOREIGN = (
        "anchor-foreign",
        "The place of the anchor in the TPM is held by an index that this image's key does not protect",
        "Recover the volume with its recovery key; another system ran on this TPM, or the image's policy key changed",
    )
    VOLUME_WITHOUT_ANCHOR = (
        "volume-without-anchor",
        "There is an encrypted volume, but this TPM knows of none: somebody else made it, or the TPM was cleared",
        "If the volume is yours, recover it with its recovery key; otherwise deploy the image again",
    )
    VOLUME_MISSING = (
        "volume-missing",
        "The TPM remembers a complete volume that is no longer there",
        "Attach the disk that belongs to this machine, or decommission it and deploy the image again",
    )
    HEADER_MISMATCH = (
        "header-mismatch",
        "The volume's LUKS2 header is not the one the TPM remembers",
        "Recover the volume with its recovery key; the header was changed without a commit, or damaged",
    )
    ROLLED_BACK = (
        "rolled-back",
        "The volume's LUKS2 header is the one that the TPM remembered before the last change",
        "Restore the newest state of the disk, or recover the volume with its recovery key",
    )
    ANCHOR_NO_ROOM = (
        "anchor-no-room",
        "The TPM has no room left for the anchor",
        "Delete NV indexes that nothing needs, then start the machine again",
    )
    TPM_OWNED = (
        "tpm-owned",
        "The TPM's owner hierarchy has a password or is switched off, so that no anchor can be made",
        "Clear the TPM, or remove the password of its owner hierarchy, then start the machine again",
    )
    VERITY_MISSING = (
        "verity-missing",
        "There is no verified root with the root hash of this image",
        "Deploy the image again; its root partitions are missing, changed or damaged",
    )
    KEY_UNAVAILABLE = (
        "key-unavailable",
        "The TPM does not release the volume's key, or the key is not the one it was",
        "Check Secure Boot and the firmware's settings, or recover the volume with its recovery key",
    )
    NOT_MEASURED = (
        "not-measured",
        "The volume was opened, but its key was not measured into PCR 15",
        "Boot through the signed image with a working TPM",
    )
    SECURE_BOOT_OFF = (
        "secure-boot-off",
        "Secure Boot is off, so the TPM cannot tell this system from any other",
        "Turn Secure Boot on with the keys that the image is signed for",
    )
    CONFIGURATION_ADDED = (
        "configuration-added",
        "Something beside the image configures this boot: a word for its command line, a credential, an extension",
        "Remove what was added to the machine's settings (SMBIOS) or to the EFI system partition",
    )
    STRATEGY_UNSUPPORTED = (
        "strategy-unsupported",
        "The kernel lacks a part that the strategy needs for which the image is sealed",
        "Seal the image for another strategy, or with another kernel",
    )
    INITRD_FAILED = (
        "initrd-failed",
        "The initrd could not continue",
        "Look at the messages above",
    )


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


def refuse(code: Code, subject: str, detail: str = "") -> Refusal:
    """Make the refusal with the words that belong to ``code``."""
    return Refusal(code.value, subject, code.sentence + (f" ({detail})" if detail else ""), code.remedy)


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
