# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The volume key: from the kernel's and the TPM's random numbers, so that a weak one of them is not enough."""

from __future__ import annotations

import hashlib
import hmac
import os
from contextlib import contextmanager
from typing import Any, Iterator

from ..errors import FdeError
from ..luks2.secret import random_secret, wipe

#: aes-xts-plain64 with two 256-bit keys, then the key of hmac(sha256).
SIZE = 64 + 32
_SALT = b"cvm.fde volume key"
#: What one TPM2_GetRandom may give at least: the size of the largest digest, and every TPM has SHA-256.
_TPM_CHUNK = 32


@contextmanager
def fresh(esys: Any, size: int = SIZE) -> Iterator[bytearray]:
    """Yield a new volume key and overwrite it afterwards."""
    kernel = bytearray(os.getrandom(size))
    tpm = bytearray()
    key = bytearray(size)
    try:
        while len(tpm) < size:
            tpm += bytes(esys.get_random(_TPM_CHUNK))
        key[:] = mixed(kernel, tpm, size)
        yield key
    finally:
        for secret in (kernel, tpm, key):
            wipe(secret)


def mixed(kernel: bytearray, tpm: bytearray, size: int = SIZE) -> bytes:
    """Return HKDF-SHA-512 (RFC 5869) of both random strings, ``size`` bytes.

    Raises ``FdeError`` when one of them is too short or constant: a broken generator must not pass silently.
    """
    for source, value in (("the kernel", kernel), ("the TPM", tpm)):
        if len(value) < size or len(set(value)) < 16:
            raise FdeError(f"the random generator of {source}", "its output is not random", "Do not use this machine")
    extracted = hmac.new(_SALT, kernel + tpm, hashlib.sha512).digest()
    output, block, counter = b"", b"", 1
    while len(output) < size:
        block = hmac.new(extracted, block + _SALT + bytes([counter]), hashlib.sha512).digest()
        output, counter = output + block, counter + 1
    return output[:size]


def temporary() -> bytearray:
    """Return a random key for the keyslot that exists until the TPM's keyslot replaces it."""
    return random_secret(64)
