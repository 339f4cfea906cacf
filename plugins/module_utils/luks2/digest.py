# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What identifies a volume: the digest of its header area and the id of its volume key."""

from __future__ import annotations

import hashlib
import hmac
from typing import Union

_DOMAIN = b"cvm.fde luks2 header\0"


def header_digest(area: bytes) -> bytes:
    """Return the digest of a header area: everything before the data segment, both headers and all keyslots.

    SHA-256 over a fixed prefix and the bytes; 32 bytes. Any change of a header changes it, a harmless one as well.
    """
    digest = hashlib.sha256(_DOMAIN)
    digest.update(area)
    return digest.digest()


def volume_key_id(volume_key: Union[bytes, bytearray], name: str, uuid: str) -> str:
    """Return the id of a volume key under which systemd measures it, 64 hexadecimal digits.

    HMAC-SHA256 keyed with the volume key over "cryptsetup:NAME:UUID", NAME being the device-mapper name. It is not
    secret. Source: systemd src/shared/cryptsetup-util.c, cryptsetup_get_volume_key_id. Raises ``ValueError`` for a name
    that systemd would escape.
    """
    if (
        not name
        or ":" in name
        or "\\" in name
        or any(ord(character) < 33 or ord(character) > 126 for character in name)
    ):
        raise ValueError(f"not a plain device-mapper name: {name!r}")
    return hmac.new(volume_key, f"cryptsetup:{name}:{uuid}".encode(), hashlib.sha256).hexdigest()
