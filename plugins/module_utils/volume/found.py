# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is found of a data volume: everything that the plan decides by, and nothing that changes anything."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Optional

from ..luks2.area import HeaderArea
from ..luks2.enrolment import Enrolled
from ..luks2.policy import Judgement
from .device import Device
from .file_system import FileSystem, Mounted
from .pin import Pin


@dataclass(frozen=True)
class HeaderFound:
    """The header on the device. ``defect`` is the code of what makes it unreadable, ``area`` its bytes.

    ``fingerprints`` tells the keyslots from those that another program put in their places.
    """

    area: HeaderArea = field(repr=False)
    digest: str = ""
    uuid: Optional[str] = None
    defect: Optional[str] = None
    judgement: Judgement = Judgement(())
    enrolled: tuple[Enrolled, ...] = ()
    fingerprints: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MappingFound:
    """What is open under the volume's name. ``problems`` says why it is not the pinned volume.

    ``on_device`` tells whether it lies on the device that the volume is to have.
    """

    path: str
    uuid: Optional[str]
    on_device: bool = True
    problems: Optional[str] = None


@dataclass(frozen=True)
class Credentials:
    """What was tried against the header: ``proven`` are the keyslots that the TPM or the wanted passphrase opens now.

    ``authority`` tells whether something at hand opens the volume at all.
    """

    proven: frozenset[int] = frozenset()
    by_tpm: bool = False
    by_unlock_with: bool = False
    by_passphrase: bool = False

    @property
    def authority(self) -> bool:
        return self.by_tpm or self.by_unlock_with or self.by_passphrase


@dataclass(frozen=True)
class Found:
    """One volume as it is.

    ``saved`` is the digest of a header copy that an interrupted change left behind. ``torn`` tells that the change can
    be finished from it, and ``header`` is that copy then, not what is on the disk. ``envelope`` is the digest of a
    recovery key's envelope that waits to be handed over. ``marked`` is the UUID of the unfinished volume that the
    device is marked as, ``zeroed`` tells of one that is being erased that nothing of it is left. ``strays`` is what a
    killed program left set up on the device, ``at_mount_point`` what is mounted at the wanted place,
    ``mount_leads_to`` where that place really is, ``no_tpm`` the TPM that is needed and not there.
    """

    device: Optional[Device]
    pin: Optional[Pin] = None
    header: Optional[HeaderFound] = None
    saved: Optional[str] = None
    torn: bool = False
    envelope: Optional[str] = None
    marked: Optional[str] = None
    zeroed: bool = False
    mapping: Optional[MappingFound] = None
    strays: tuple[str, ...] = ()
    file_system: Optional[FileSystem] = None
    mounts: tuple[Mounted, ...] = ()
    at_mount_point: Optional[str] = None
    mount_leads_to: Optional[str] = None
    credentials: Credentials = Credentials()
    differing_files: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    no_tpm: Optional[str] = None
