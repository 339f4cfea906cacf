# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wanted of a data volume, from plain values to frozen ones that hold together."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Iterator, Optional

from ..errors import FdeError
from ..escrow.certificate import CertificateError, read_certificate
from ..luks2.keyslots import PCRLOCK_POLICY
from ..luks2.method import Method, Passphrase, Recovery, Tpm2
from ..luks2.profile import AUTHENTICATED, Profile
from ..tpm.policy import PolicyError, PolicyKey

#: Device-mapper and systemd take these without escaping anything.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_PATH = re.compile(r"/[\w./:+@=%-]*")
_OPTION = re.compile(r"[\w./:+@=%-]+")


class State(str, Enum):
    """What a volume is to be after the run."""

    MOUNTED = "mounted"
    OPEN = "open"
    CLOSED = "closed"
    ERASED = "erased"


class FileSystemType(str, Enum):
    """What is made on a new volume."""

    EXT4 = "ext4"
    XFS = "xfs"
    BTRFS = "btrfs"
    NONE = "none"


#: Least sizes of the device in bytes; the programs refuse less, but only after the device was overwritten.
LEAST = {
    FileSystemType.EXT4: 48 << 20,
    FileSystemType.XFS: 352 << 20,
    FileSystemType.BTRFS: 160 << 20,
    FileSystemType.NONE: 32 << 20,
}


@dataclass(frozen=True)
class Mount:
    """Where the file system is mounted, and with which options."""

    path: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class UnlockWith:
    """What opens the volume when the TPM cannot. Exactly one of them; never shown."""

    recovery_key: Optional[str] = field(default=None, repr=False)
    passphrase: Optional[str] = field(default=None, repr=False)
    key_file: Optional[str] = None


@dataclass(frozen=True)
class Wanted:
    """One volume as its owner wants it.

    ``journal`` and ``wipe`` are decided already; ``passphrase`` belongs to the method of that name in ``unlock``.
    """

    name: str
    device: str
    state: State = State.MOUNTED
    profile: Profile = AUTHENTICATED
    journal: bool = True
    wipe: bool = False
    file_system: FileSystemType = FileSystemType.EXT4
    label: str = ""
    format_options: tuple[str, ...] = ()
    mount: Optional[Mount] = None
    unlock: tuple[Method, ...] = ()
    passphrase: Optional[str] = field(default=None, repr=False)
    unlock_with: Optional[UnlockWith] = None
    force: Optional[str] = None
    adopt: bool = False
    least_size: int = 0
    boot: bool = True
    nofail: bool = True
    tpm2_device: str = "auto"
    certificates: tuple[bytes, ...] = field(default=(), repr=False)
    host: str = "localhost"

    def has(self, kind: type) -> bool:
        """Return whether a method of this kind is wanted."""
        return any(isinstance(method, kind) for method in self.unlock)

    @property
    def has_tpm2(self) -> bool:
        return self.has(Tpm2)

    @property
    def read_at_boot(self) -> tuple[str, ...]:
        """The files from which the TPM's policy is read when the volume is opened, and which may be mounted late."""
        pcrlock = any(isinstance(method, Tpm2) and method.pcrlock for method in self.unlock)
        return (PCRLOCK_POLICY,) if pcrlock else ()


def canonical(path: str) -> str:
    """Return an absolute path without the slashes and dots that say nothing; links are not followed."""
    return "/" + os.path.normpath(path).lstrip("/")


def check(wanted: Wanted) -> None:
    """Raise ``FdeError`` when the options of one volume do not hold together."""
    problem = next(_problems(wanted), None)
    if problem is not None:
        raise FdeError(f"volume {wanted.name!r}", problem, "Correct the options of the volume")


def check_all(volumes: tuple[Wanted, ...]) -> None:
    """Check every volume, and that no two of them share a name, a device or a mount point."""
    for wanted in volumes:
        check(wanted)
    for what, values in (
        ("name", [one.name for one in volumes]),
        ("device", [one.device for one in volumes]),
        ("mount point", [one.mount.path for one in volumes if one.mount is not None]),
    ):
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise FdeError("the list of volumes", f"two volumes have the {what} '{twice[0]}'", "Name each only once")


def _problems(wanted: Wanted) -> Iterator[str]:
    if not _NAME.fullmatch(wanted.name):
        yield "its name must be lower-case letters, digits and '_', begin with a letter, and have 32 at the most"
    if wanted.name == "control" or wanted.name.endswith("_dif"):
        yield f"its name '{wanted.name}' is one that device-mapper or cryptsetup use for themselves"
    if not _PATH.fullmatch(wanted.device) or not wanted.device.startswith("/dev/"):
        yield f"its device '{wanted.device}' is not a plain path below /dev"
    if wanted.state in (State.CLOSED, State.ERASED):
        return
    yield from _mount_problems(wanted)
    yield from _unlock_problems(wanted)
    if wanted.profile.integrity is None and (wanted.wipe or not wanted.journal):
        yield "wiping, and doing without a journal, belong to authenticated profiles"
    if wanted.file_system is FileSystemType.NONE and (wanted.label or wanted.format_options):
        yield "without a file system there is nothing to label or to give options to"
    if not re.fullmatch(r"[\w.-]{0,12}", wanted.label):
        yield f"its label '{wanted.label}' is longer than 12 characters, or has others than letters, digits, '.-_'"


def _mount_problems(wanted: Wanted) -> Iterator[str]:
    if wanted.state is State.MOUNTED and wanted.mount is None:
        yield "it is to be mounted, but no mount point is named"
    if wanted.mount is None:
        return
    if wanted.file_system is FileSystemType.NONE:
        yield "it has a mount point, but no file system"
    path = wanted.mount.path
    if not _PATH.fullmatch(path) or ".." in path.split("/") or canonical(path) == "/":
        yield f"its mount point '{path}' is not a plain absolute path"
    elif path != canonical(path):
        # Mount tables show the shortest way to write it, and what is written otherwise is never found there.
        yield f"its mount point '{path}' is to be written '{canonical(path)}'"
    for needed in wanted.read_at_boot:
        if needed.startswith(path + "/"):
            yield f"to unlock it, '{needed}' is read, which would lie on it: mount it elsewhere, or do without pcrlock"
    for option in wanted.mount.options:
        if not _OPTION.fullmatch(option):
            yield f"its mount option '{option}' has characters that /etc/fstab cannot hold"


def _unlock_problems(wanted: Wanted) -> Iterator[str]:
    if not wanted.unlock:
        yield "nothing would unlock it: name at least one unlock method"
    if len(set(wanted.unlock)) < len(wanted.unlock):
        yield "an unlock method is listed twice"
    for method in wanted.unlock:
        if isinstance(method, Tpm2):
            yield from _tpm2_problems(method)
    if wanted.has(Passphrase) != bool(wanted.passphrase):
        yield "a passphrase is needed where one unlocks it, and nowhere else"
    if wanted.has(Recovery) and not wanted.certificates:
        yield "its recovery key would be known to nobody: say where it is escrowed"
    for certificate in wanted.certificates:
        try:
            read_certificate(certificate)
        except CertificateError as error:
            yield f"its escrow certificate cannot receive a recovery key: {error.cause}"
    given = wanted.unlock_with
    if given is not None and sum(x is not None for x in (given.recovery_key, given.passphrase, given.key_file)) != 1:
        yield "unlock_with takes exactly one of recovery_key, passphrase and key_file"


def _tpm2_problems(method: Tpm2) -> Iterator[str]:
    if not method.bound:
        yield "its TPM keyslot would open in every state of the machine: name PCRs, a public key or pcrlock"
    if method.public_key is not None:
        try:
            # systemd has the TPM verify RSASSA signatures, and no others.
            PolicyKey.from_pem(method.public_key)
        except PolicyError as error:
            yield f"its public key verifies no signed PCR policy: {error.cause}"
