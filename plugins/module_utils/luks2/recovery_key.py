# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recovery keys in the spelling of systemd: 256 random bits as eight groups of eight letters.

The letters are those of "modhex", which every keyboard layout has in the same places. What a keyslot is opened by is
the text itself, with its hyphens. Source: systemd ``src/shared/recovery-key.c``.
"""

from __future__ import annotations

from typing import Union

from ..errors import FdeError
from .secret import random_secret, wipe

LETTERS = b"cbdefghijklnrtuv"
_BYTES = 32
_GROUP = 8


def new_recovery_key() -> bytearray:
    """Return the text of a new recovery key, 71 bytes of ASCII; the caller wipes it."""
    raw = random_secret(_BYTES)
    try:
        return recovery_key_text(raw)
    finally:
        wipe(raw)


def recovery_key_text(raw: Union[bytes, bytearray]) -> bytearray:
    """Return 32 bytes as the text of a recovery key. Raises ``ValueError`` for another length."""
    if len(raw) != _BYTES:
        raise ValueError("a recovery key has 32 bytes")
    letters = bytearray()
    for byte in raw:
        letters += bytes((LETTERS[byte >> 4], LETTERS[byte & 15]))
    text = _grouped(letters)
    wipe(letters)
    return text


def typed_recovery_key(typed: Union[bytes, bytearray]) -> bytearray:
    """Return the text of a recovery key as a person typed it: any case, with or without hyphens and spaces.

    Raises ``FdeError`` when it is not the text of a recovery key.
    """
    letters = bytearray(byte for byte in typed.lower() if byte not in b"- \t\r\n")
    if len(letters) != 2 * _BYTES or any(byte not in LETTERS for byte in letters):
        wipe(letters)
        raise FdeError(
            "recovery key",
            "it is not 64 of the letters " + LETTERS.decode(),
            "Type it as it was written down; it has eight groups of eight letters",
        )
    text = _grouped(letters)
    wipe(letters)
    return text


def _grouped(letters: bytearray) -> bytearray:
    text = bytearray()
    for at in range(0, len(letters), _GROUP):
        if at:
            text += b"-"
        text += letters[at : at + _GROUP]
    return text
