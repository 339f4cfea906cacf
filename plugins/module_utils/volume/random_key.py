# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The volume key of a data volume: from the kernel, and from the TPM where the volume has one."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

from ..agent.volume_key import fresh
from ..luks2.secret import random_secret, wipe
from ..tpm.esys import opened, tss
from .machine import missing_tpm, tcti_of
from .wanted import Wanted


@contextmanager
def fresh_volume_key(size: int, wanted: Wanted) -> Iterator[bytearray]:
    """Yield a new volume key and overwrite it afterwards."""
    if tss is not None and wanted.has_tpm2 and missing_tpm(wanted.tpm2_device) is None:
        # The TPM is let go at once: what follows needs it as well.
        with opened(tcti_of(wanted.tpm2_device)) as esys, fresh(esys) as mixed:
            key = mixed[:size]
    else:
        key = random_secret(size)
    try:
        yield key
    finally:
        wipe(key)
