# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine that volumes are made on: its programs, its device-mapper, its files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterator, Optional

from ..dm.device import DeviceMapper
from ..luks2.profile import AEGIS, Profile
from ..runner import Runner
from ..tpm.esys import DEFAULT_TCTI
from .places import Places
from .wanted import FileSystemType, Wanted

_PROGRAMS = (
    "cryptsetup",
    "dmsetup",
    "lsblk",
    "wipefs",
    "blkid",
    "findmnt",
    "mount",
    "umount",
    "systemd-cryptsetup",
    "setpriv",
    "env",
    "timeout",
)
_MODULES = Path("/lib/modules")
#: Of systemd-cryptenroll: ``--tpm2-pcrlock`` came with 255, ``--unlock-tpm2-device`` with 256.
_LEAST_SYSTEMD = 256


def _silent(_text: str) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class Machine:
    """``announce`` is told every step before it is taken."""

    runner: Runner
    places: Places = Places()
    announce: Callable[[str], None] = field(default=_silent)

    @property
    def mapper(self) -> DeviceMapper:
        return DeviceMapper(self.runner)


def missing(runner: Runner, wanted: Wanted, modules: Path = _MODULES) -> tuple[str, ...]:
    """Return the programs and parts of the kernel that a volume needs and this machine lacks, for people."""
    programs = [*_PROGRAMS]
    if wanted.file_system is not FileSystemType.NONE:
        programs.append(f"mkfs.{wanted.file_system.value}")
    if wanted.has_tpm2:
        programs.append("systemd-cryptenroll")
    if wanted.certificates:
        programs.append("openssl")
    lacking = [f"the program {name}" for name in programs if runner.find(name) is None]
    if wanted.has_tpm2 and runner.find("systemd-cryptenroll") is not None:
        version = systemd_version(runner)
        lacking += [f"systemd {_LEAST_SYSTEMD} (it has {version})"] if version < _LEAST_SYSTEMD else []
    lacking += [f"the kernel's {name}" for name in _kernel_parts(wanted.profile) if not kernel_has(name, modules)]
    return tuple(lacking)


def systemd_version(runner: Runner) -> int:
    """Return the version of systemd-cryptenroll, 0 where it does not tell it."""
    told = re.match(rb"systemd ([0-9]+)", runner.run(["systemd-cryptenroll", "--version"], ok=()).stdout)
    return 0 if told is None else int(told[1])


def tcti_of(device: str) -> str:
    """Return a TPM that is named as systemd takes it in the way in which the TPM library takes it.

    systemd takes the path of a node too, and finds the first TPM by ``auto``, or ``device`` without a path.
    """
    if device.startswith("/"):
        return f"device:{device}"
    return DEFAULT_TCTI if device in ("auto", "device", "device:") else device


def missing_tpm(device: str, devices: Path = Path("/dev")) -> Optional[str]:
    """Return the node of a TPM that systemd would look for in vain, None where it is there or is no node."""
    kind, _colon, path = tcti_of(device).partition(":")
    node = devices / path.removeprefix("/dev/")
    return str(node) if kind == "device" and not node.exists() else None


def _kernel_parts(profile: Profile) -> Iterator[str]:
    yield "dm-crypt"
    if profile.integrity is not None:
        yield "dm-integrity"
    if profile is AEGIS:
        yield "aegis128"


def kernel_has(module: str, modules: Path = _MODULES) -> bool:
    """Return whether the running kernel has a module, loaded, built in or loadable; nothing is loaded to find out."""
    underscored = module.replace("-", "_")
    if Path("/sys/module", underscored).exists():
        return True
    directory = modules / os.uname().release
    for listing in ("modules.builtin", "modules.dep"):
        try:
            text = (directory / listing).read_text()
        except OSError:
            continue
        for line in text.splitlines():
            # "kernel/drivers/md/dm-crypt.ko.xz: ..." in one, the path alone in the other.
            name = line.split(":")[0].rpartition("/")[2].partition(".ko")[0]
            if name.replace("-", "_").startswith(underscored):
                return True
    return False
