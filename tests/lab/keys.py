# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's keys: Secure Boot, PCR policy, manifest, ssh, and the authority that certifies endorsement keys of TPMs.

They are made once for a checkout and kept in ``build/keys``; whoever can read that folder owns every guest of the lab.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

from .cache import BUILD, lock, remove
from .process import run
from .progress import step


@dataclass(frozen=True)
class Keys:
    """The folder of the keys, in PEM: private ``NAME.key``, certificates ``NAME.crt``, public ``NAME.pub``."""

    folder: Path

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def certificate(self, name: str) -> Path:
        return self.folder / f"{name}.crt"

    def public(self, name: str) -> Path:
        return self.folder / f"{name}.pub"

    @property
    def owner(self) -> str:
        """The owner GUID of the Secure Boot keys."""
        return (self.folder / "owner").read_text().strip()

    @property
    def ssh(self) -> Path:
        return self.folder / "ssh"

    @property
    def ek_authority(self) -> Path:
        """The certificate that the endorsement keys of the lab's TPMs chain up to."""
        return self.certificate("ek-ca")


SECURE_BOOT = ("PK", "KEK", "db")
SIGNING = ("pcr", "manifest")
_AUTHORITY = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")


def keys() -> Keys:
    """Return the lab's keys, made first when there are none."""
    folder = BUILD / "keys"
    with lock("keys"):
        if not folder.exists():
            partial = folder.with_name("partial-keys")
            remove(partial)
            partial.mkdir(mode=0o700)
            with step("making the lab's keys"):
                _make(Keys(partial))
            partial.rename(folder)
    return Keys(folder)


def _make(new: Keys) -> None:
    (new.folder / "owner").write_text(f"{uuid.uuid4()}\n")
    for name in SECURE_BOOT:
        _self_signed(new, name, f"cvm.fde lab {name}", ())
    _self_signed(new, "ek-ca", "cvm.fde lab EK authority", _AUTHORITY)
    (new.folder / "ek-ca.serial").write_text("01\n")
    for name in SIGNING:
        run(["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", new.key(name)])
        run(["openssl", "pkey", "-in", new.key(name), "-pubout", "-out", new.public(name)])
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "cvm.fde lab", "-f", new.ssh])


def _self_signed(new: Keys, name: str, subject: str, extensions: tuple[str, ...]) -> None:
    run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-sha256", "-nodes", "-days", "3650", *extensions]
        + ["-subj", f"/CN={subject}/", "-keyout", new.key(name), "-out", new.certificate(name)]
    )
