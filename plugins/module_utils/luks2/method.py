# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways in which a volume is unlocked, as they are wanted and as they are found; never a secret."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Any, Mapping, Optional, Union

#: PCRs for debugging and for applications: every program that may talk to the TPM can set them back to zero.
_RESETTABLE = frozenset({16, 23})
#: A PEM public key of the largest size that a TPM could know is a quarter of this.
_MAX_PEM = 4096
_PEM = re.compile(rb"\s*-----BEGIN ([A-Z ]+)-----([A-Za-z0-9+/=\s]+)-----END \1-----\s*")


@dataclass(frozen=True)
class Tpm2:
    """A keyslot that the TPM opens while all that is named here holds.

    ``pcrs`` must have the values of the enrolment, ``public_key_pcrs`` a value that the holder of ``public_key`` (PEM)
    has signed, and with ``pcrlock`` the machine's own systemd-pcrlock policy must be fulfilled.
    """

    pcrs: tuple[int, ...] = (7,)
    public_key: Optional[bytes] = field(default=None, repr=False)
    public_key_pcrs: tuple[int, ...] = (11,)
    pcrlock: bool = False

    def __post_init__(self) -> None:
        # Equal methods compare equal, however they were written.
        object.__setattr__(self, "pcrs", tuple(sorted(set(self.pcrs))))
        signed = tuple(sorted(set(self.public_key_pcrs))) if self.public_key is not None else ()
        object.__setattr__(self, "public_key_pcrs", signed)
        if self.public_key is not None:
            object.__setattr__(self, "public_key", _canonical(self.public_key))
            if not signed:
                raise ValueError("a signed policy needs the PCRs that are signed")
        if any(not 0 <= pcr < 24 for pcr in (*self.pcrs, *signed)):
            raise ValueError("a TPM has the PCRs 0 to 23")

    @classmethod
    def told(cls, token: Mapping[str, Any]) -> Tpm2:
        """Return what a ``systemd-tpm2`` token that was judged says. Raises ``ValueError`` where it makes no sense."""
        return cls(
            pcrs=tuple(token["tpm2-pcrs"]),
            public_key=base64.b64decode(token.get("tpm2_pubkey", "")) or None,
            public_key_pcrs=tuple(token.get("tpm2_pubkey_pcrs", ())),
            pcrlock=token.get("tpm2_pcrlock", False),
        )

    @property
    def bound(self) -> bool:
        """Whether the TPM asks for anything that not every system on it can bring about.

        An empty policy opens for anybody, and is what systemd 258 and newer enrol unless they are told otherwise.
        """
        return bool(set(self.pcrs) - _RESETTABLE) or self.public_key is not None or self.pcrlock


@dataclass(frozen=True)
class Recovery:
    """A recovery key: 256 random bits in systemd's spelling, with a token of type ``systemd-recovery``."""


@dataclass(frozen=True)
class Passphrase:
    """A passphrase that a person knows: a keyslot without a token, stretched by Argon2id."""


Method = Union[Tpm2, Recovery, Passphrase]


def same_key(one: bytes, other: bytes) -> bool:
    """Return whether two PEM public keys are the same; line breaks do not matter."""
    return _canonical(one) == _canonical(other)


def is_public_key(pem: bytes) -> bool:
    """Return whether this is one PEM block of a public key, of a size that keys have; the key itself is not parsed."""
    match = _PEM.fullmatch(pem) if len(pem) <= _MAX_PEM else None
    if match is None or match[1] != b"PUBLIC KEY":
        return False
    try:
        # A SubjectPublicKeyInfo is a DER sequence.
        return base64.b64decode(b"".join(match[2].split()), validate=True).startswith(b"\x30")
    except binascii.Error:
        return False


def _canonical(pem: bytes) -> bytes:
    """A PEM block with 64 characters a line; what is no PEM stays as it is, and equals only itself."""
    match = _PEM.fullmatch(pem)
    if match is None:
        return pem
    body = b"".join(match[2].split())
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return b"\n".join([b"-----BEGIN " + match[1] + b"-----", *lines, b"-----END " + match[1] + b"-----", b""])
