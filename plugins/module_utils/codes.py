# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The codes of all refusals, with what they say and what is to be done.

They live here and nowhere else; the documentation is tested against them.
"""

from __future__ import annotations

from enum import Enum

from .errors import FdeError, Refusal


class Code(str, Enum):
    """Why a boot, or the use of a volume, is refused; the value is stable and appears on the console and in PCR 11.

    Up to ``FAILED`` in the order in which a boot looks for them: of several things that are wrong the first is named.
    """

    def __new__(cls, value: str, sentence: str = "", remedy: str = "", instead: str = "") -> Code:
        member = str.__new__(cls, value)
        member._value_ = value
        member.sentence = sentence
        member.remedy = remedy
        member.instead = instead
        return member

    sentence: str
    remedy: str
    #: Where the remedy is a recovery: what can be tried in its place when the image offers none.
    instead: str

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
    VERITY_MISSING = (
        "verity-missing",
        "There is no verified root with the root hash of this image",
        "Deploy the image again; its root partitions are missing, changed or damaged",
    )
    IMAGE_OUTDATED = (
        "image-outdated",
        "This machine has run with a newer image: the security version of this one is lower",
        "Put the newer image back, or deploy this one as a new machine",
    )
    DISK_AMBIGUOUS = (
        "disk-ambiguous",
        "The sealed image is not on exactly one writable disk, or another disk shows the same partition ids",
        "Detach every disk that is a copy of the root disk",
    )
    VOLUME_DISK = (
        "volume-disk",
        "Not exactly one disk is the one that the encrypted volume belongs on",
        "Attach the disk of this machine, and detach others; the image says which disk it is",
    )
    DISK_DAMAGED = (
        "disk-damaged",
        "The partition table of a disk that the boot needs is damaged: the disk was cut off or changed",
        "Give the machine the whole disk back, or deploy the image again",
    )
    DISK_FOREIGN = (
        "disk-foreign",
        "The disk for the encrypted volume holds something that this agent did not make",
        "Attach a blank disk, or the one that belongs to this machine",
    )
    PARTITION_FOREIGN = (
        "partition-foreign",
        "The disk of the image, or that of the volume, has a partition that neither the image nor this agent made",
        "Remove the partition, attach the right disk, or deploy the image again",
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
        "boot the version of it that wrote the anchor",
    )
    ANCHOR_FOREIGN = (
        "anchor-foreign",
        "The place of the anchor in the TPM is held by an index that this image's key does not protect",
        "Recover the volume with its recovery key; another system ran on this TPM, or the image's policy key changed",
        "put back the firmware's settings or the image, whichever changed",
    )
    VOLUME_WITHOUT_ANCHOR = (
        "volume-without-anchor",
        "There is an encrypted volume, but this TPM knows of none: somebody else made it, or the TPM was cleared",
        "If the volume is yours, recover it with its recovery key; otherwise deploy the image again",
        "give the machine back the TPM that knows the volume",
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
        "restore the header that the TPM remembers",
    )
    ROLLED_BACK = (
        "rolled-back",
        "The volume's LUKS2 header is the one that the TPM remembered before the last change",
        "Restore the newest state of the disk, or recover the volume with its recovery key",
        "restore the newest state of the disk",
    )
    DISK_TOO_SMALL = (
        "disk-too-small",
        "The encrypted volume does not fit",
        "Deploy the image to a larger disk",
    )
    TPM_OWNED = (
        "tpm-owned",
        "The TPM's owner hierarchy has a password or is switched off, so that no anchor can be made",
        "Clear the TPM, or remove the password of its owner hierarchy, then start the machine again",
    )
    ANCHOR_NO_ROOM = (
        "anchor-no-room",
        "The TPM has no room left for the anchor",
        "Delete NV indexes that nothing needs, then start the machine again",
    )
    LUKS2_POLICY = (
        "luks2-policy",
        "The LUKS2 header is not one that this collection makes; what deviates is named with its place",
        "Do not open it: somebody changed it, or another program made it",
    )
    DEVICE_SHRUNK = (
        "device-shrunk",
        "The device of a volume is smaller than when the volume was made",
        "Give the device its size back, or attach the right disk",
    )
    KEY_UNAVAILABLE = (
        "key-unavailable",
        "The TPM does not release the volume's key",
        "Check Secure Boot and the firmware's settings, or recover the volume with its recovery key",
        "check Secure Boot and the firmware's settings",
    )
    NOT_ACTIVATED = (
        "not-activated",
        "The TPM releases the volume's key, but the volume cannot be opened with it",
        "Look at the kernel's messages above: the disk is damaged or was changed. Mend it, or deploy the image again",
    )
    ACTIVE_TABLE = (
        "active-table",
        "The kernel maps the opened volume otherwise than its profile says: cipher, sizes, integrity or offset",
        "The program that opened it was given something else: deploy the image again, or close the data volume",
    )
    NOT_MEASURED = (
        "not-measured",
        "The volume was opened, but its key was not measured into PCR 15",
        "Boot through the signed image with a working TPM",
    )
    IMAGE_CHANGED = (
        "image-changed",
        "The volume was made from another image than the one that boots, or by another strategy",
        "Put the image back that the volume was made from, or deploy the new one to a new disk",
    )
    WRITTEN_RECORD = (
        "written-record",
        "The volume does not begin with its record of how far it is written",
        "Restore the newest state of the disk, or deploy the image again; a recovery key does not help",
    )
    CLONE_METADATA = (
        "clone-metadata",
        "dm-clone's record of what was copied is empty or unreadable",
        "Restore the newest state of the disk, or deploy the image again; a recovery key does not help",
    )
    INITRD_FAILED = (
        "initrd-failed",
        "The initrd could not continue",
        "Look at the messages above",
    )
    FAILED = (
        "failed",
        "A step failed, which is no sign of tampering by itself: a program, the TPM or the disk; the cause is named",
        "Mend the cause and start the machine again",
    )
    HEADER_CHANGED = (
        "header-changed",
        "The LUKS2 header of a data volume is not the one that its pin knows",
        "If you changed it with another program, or moved the disk, adopt it with a recovery key; otherwise somebody "
        "else changed it",
    )
    VOLUME_HAS_DATA = (
        "volume-has-data",
        "A data volume was to be made, or erased, where there is something else",
        "Check the device; `force` with its serial number or UUID gives it up",
    )


def refuse(code: Code, subject: str, detail: str = "") -> Refusal:
    """Make the refusal with the words that belong to ``code``."""
    return Refusal(code.value, subject, code.sentence + (f" ({detail})" if detail else ""), code.remedy)


#: Refusals that a proof of the recovery key answers: the volume is there, and only the TPM's memory of it is in doubt.
RECOVERABLE = frozenset(code for code in Code if code.instead)


def without_recovery(error: FdeError) -> FdeError:
    """Return an error with the remedy that is left where the image offers no recovery."""
    if not isinstance(error, Refusal) or error.code not in tuple(RECOVERABLE):
        return error
    remedy = f"This image offers no recovery: {Code(error.code).instead}, or deploy the image again as a new machine"
    return Refusal(error.code, error.subject, error.cause, remedy)
