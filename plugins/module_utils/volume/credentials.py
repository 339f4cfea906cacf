# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What opens a volume now: the key it was made with, the TPM, or what its owner gave."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator, Optional

from ..luks2 import keyslots
from ..luks2.secret import wipe
from .found import Found
from .probe import unlock_key
from .wanted import Wanted


@contextmanager
def credential(found: Found, wanted: Wanted, temporary_key: Optional[bytearray]) -> Iterator[keyslots.Credential]:
    """Yield what opens the header that is being worked on; a secret is overwritten afterwards."""
    if temporary_key is not None:
        yield keyslots.ByKey(temporary_key)
    elif found.credentials.by_tpm:
        yield keyslots.ByTpm(wanted.tpm2_device)
    else:
        with secret(found, wanted) as key:
            yield keyslots.ByKey(key)


@contextmanager
def secret(found: Found, wanted: Wanted) -> Iterator[bytearray]:
    """Yield the secret of the owner's that was found to open the volume; it is overwritten afterwards."""
    if wanted.unlock_with is not None and found.credentials.by_unlock_with:
        with unlock_key(wanted.unlock_with) as key:
            yield key
        return
    key = bytearray(str(wanted.passphrase).encode())
    try:
        yield key
    finally:
        wipe(key)
