# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The volume key: from the kernel's and the TPM's random numbers, so that a weak one of them is not enough."""

from __future__ import annotations

import hashlib
import hmac
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
    kernel, tpm, key = bytearray(), bytearray(size), bytearray()
    try:
        kernel = random_secret(size)
        _fill(tpm, esys)
        key = mixed(kernel, tpm, size)
        yield key
    finally:
        for secret in (kernel, tpm, key):
            wipe(secret)


def _fill(secret: bytearray, esys: Any) -> None:
    """Fill a secret with random numbers of the TPM.

    tpm2-pytss hands them out as a buffer that it frees and that no Python code can overwrite; without the kernel's half
    they are worth nothing.
    """
    filled = 0
    while filled < len(secret):
        chunk = bytearray(bytes(esys.get_random(_TPM_CHUNK)))
        if not chunk:
            raise FdeError("the random generator of the TPM", "it gives nothing", "Do not use this machine")
        taken = min(len(chunk), len(secret) - filled)
        secret[filled : filled + taken] = chunk[:taken]
        wipe(chunk)
        filled += taken


def mixed(kernel: bytearray, tpm: bytearray, size: int = SIZE) -> bytearray:
    """Return HKDF-SHA-512 (RFC 5869) of both random strings, ``size`` bytes; the caller wipes them.

    What the hashes give is immutable for a moment, 64 bytes each, and is let go of at once; all that lives longer is
    overwritten. Raises ``FdeError`` when one of them is too short or constant: a broken generator must not pass
    silently.
    """
    for source, value in (("the kernel", kernel), ("the TPM", tpm)):
        if len(value) < size or len(set(value)) < 16:
            raise FdeError(f"the random generator of {source}", "its output is not random", "Do not use this machine")
    state = hmac.new(_SALT, kernel, hashlib.sha512)
    state.update(tpm)
    extracted, block, output = bytearray(state.digest()), bytearray(), bytearray(size)
    try:
        for number, at in enumerate(range(0, size, state.digest_size), 1):
            step = hmac.new(extracted, block, hashlib.sha512)
            step.update(_SALT + bytes([number]))
            wipe(block)
            block = bytearray(step.digest())
            output[at : at + len(block)] = block[: size - at]
        return output
    finally:
        wipe(extracted)
        wipe(block)


def temporary() -> bytearray:
    """Return a random key for the keyslot that exists until the TPM's keyslot replaces it."""
    return random_secret(64)
