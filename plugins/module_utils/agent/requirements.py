# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a system must have before the boot agent can work in its initrd, and the packages that bring it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Mapping, Optional

from .configuration import Strategy


class Family(str, Enum):
    """Distributions by their package manager."""

    DEBIAN = "debian"
    REDHAT = "redhat"


@dataclass(frozen=True)
class Requirement:
    """Something that must be there, known by one of ``paths`` (patterns), and the packages that may bring it."""

    paths: tuple[str, ...]
    packages: Mapping[Family, tuple[str, ...]]
    #: None: every one.
    strategy: Optional[Strategy] = None


def _need(paths: str, debian: str, redhat: str, strategy: Optional[Strategy] = None) -> Requirement:
    packages = {Family.DEBIAN: tuple(debian.split()), Family.REDHAT: tuple(redhat.split())}
    return Requirement(tuple(paths.split()), packages, strategy)


#: Where several packages are named, the first that the distribution knows is taken: their split differs by release.
REQUIREMENTS = (
    _need("usr/bin/dracut", "dracut", "dracut"),
    _need("usr/bin/python3", "python3", "python3"),
    _need(
        "usr/lib/python3/dist-packages/tpm2_pytss usr/lib*/python3*/site-packages/tpm2_pytss",
        "python3-tpm2-pytss",
        "python3-tpm2-pytss",
    ),
    _need("usr/lib/*/libtss2-tcti-device.so.0 usr/lib64/libtss2-tcti-device.so.0",
          "libtss2-tcti-device0t64 libtss2-tcti-device0", "tpm2-tss"),
    _need("usr/sbin/cryptsetup usr/bin/cryptsetup", "cryptsetup-bin", "cryptsetup"),
    _need("usr/sbin/dmsetup usr/bin/dmsetup", "dmsetup", "device-mapper"),
    _need("usr/bin/systemd-cryptsetup usr/lib/systemd/systemd-cryptsetup", "systemd-cryptsetup", "systemd-udev"),
    _need("usr/lib/systemd/systemd-veritysetup", "systemd-cryptsetup", "systemd-udev"),
    _need("usr/bin/systemd-cryptenroll", "systemd-cryptsetup", "systemd-udev"),
    _need("usr/lib/systemd/systemd-pcrextend", "systemd-tpm systemd", "systemd-udev"),
    _need("usr/sbin/e2fsck usr/bin/e2fsck", "e2fsprogs", "e2fsprogs"),
    _need("usr/bin/zstd", "zstd", "zstd"),
    _need("usr/sbin/mkfs.btrfs usr/bin/mkfs.btrfs", "btrfs-progs", "btrfs-progs", Strategy.OVERLAY),
)  # fmt: skip
