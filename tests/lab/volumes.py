# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What guests with data volumes have in common."""

from __future__ import annotations

from pathlib import Path

from .process import run

#: What the role ``volume`` installs where it is missing (apt needs minutes for it under emulation), what Ansible's apt
#: needs in check mode (python3-apt), and what asks what came of it (fio, tpm2-tools).
PACKAGES = (
    "btrfs-progs cryptsetup-bin dmsetup e2fsprogs fio kmod openssl python3-apt systemd-cryptsetup tpm-udev "
    "tpm2-tools xfsprogs libtss2-esys-3.0.2-0t64 libtss2-mu-4.0.1-0t64 libtss2-rc0t64 libtss2-tcti-device0t64"
).split()


def escrow_certificate(folder: Path) -> Path:
    """Make the key pair of an escrow, ``escrow.key`` and the certificate ``escrow.pem``; return the certificate."""
    certificate = folder / "escrow.pem"
    run(
        ["openssl", "req", "-x509", "-newkey", "rsa:3072", "-sha256", "-nodes", "-days", "2", "-subj", "/CN=escrow"]
        + ["-keyout", folder / "escrow.key", "-out", certificate]
    )
    return certificate
