# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kinds of volume that this collection makes and accepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Layout:
    """Where things lie in a volume, in bytes."""

    #: Start of the data; everything before it is the header area that the anchor's digest covers.
    offset: int = 8 << 20
    #: One binary header and its JSON area; large, because the evidence token holds two event logs.
    metadata_size: int = 256 << 10
    sector_size: int = 4096


LAYOUT = Layout()


@dataclass(frozen=True)
class Profile:
    """A cipher and its integrity protection: what cryptsetup is told, what the header then says, what the kernel runs.

    Sizes are in bytes. ``volume_key_size`` is that of the whole volume key, the key of the MAC included.
    """

    name: str
    encryption: str
    cipher_key_size: int
    volume_key_size: int
    #: The argument of ``--integrity``, the type in the header, and the bytes that each sector needs for it.
    integrity_option: Optional[str]
    integrity: Optional[str]
    tag_size: int
    #: How the kernel's table names the cipher.
    kernel_cipher: str

    @property
    def integrity_key_size(self) -> int:
        """The part of the volume key that belongs to the MAC; an AEAD has none of its own."""
        return self.volume_key_size - self.cipher_key_size


AUTHENTICATED = Profile(
    name="authenticated",
    encryption="aes-xts-plain64",
    cipher_key_size=64,
    volume_key_size=96,
    integrity_option="hmac-sha256",
    integrity="hmac(sha256)",
    tag_size=32,
    kernel_cipher="capi:authenc(hmac(sha256),xts(aes))-plain64",
)
AEGIS = Profile(
    name="aegis",
    encryption="aegis128-random",
    cipher_key_size=16,
    volume_key_size=16,
    integrity_option="aead",
    integrity="aead",
    tag_size=32,
    kernel_cipher="capi:aegis128-random",
)
CONFIDENTIAL = Profile(
    name="confidential",
    encryption="aes-xts-plain64",
    cipher_key_size=64,
    volume_key_size=64,
    integrity_option=None,
    integrity=None,
    tag_size=0,
    kernel_cipher="aes-xts-plain64",
)
PROFILES = {profile.name: profile for profile in (AUTHENTICATED, AEGIS, CONFIDENTIAL)}
