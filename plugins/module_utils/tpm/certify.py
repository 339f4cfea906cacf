# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A signed statement of the TPM about the content of an NV index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .esys import exists, tss
from .keys import Key

_AUTHREAD = 1 << 18
_WRITTEN = 1 << 29


@dataclass(frozen=True)
class Certified:
    """TPMS_ATTEST (of type NV) and TPMT_SIGNATURE as the TPM marshalled them."""

    attest: bytes
    signature: bytes


def certify(esys: Any, key: Key, index: int, nonce: bytes, size: int) -> Certified:
    """Have ``key`` sign name and first ``size`` bytes of an NV index that its own empty auth value may read."""
    nv = esys.tr_from_tpmpublic(index)
    attest, signature = esys.nv_certify(
        key.handle, nv, tss.TPM2B_DATA(nonce), tss.TPMT_SIG_SCHEME(scheme=tss.TPM2_ALG.NULL), size
    )
    return Certified(bytes(attest), bytes(signature.marshal()))


def certifiable(esys: Any, index: int, size: int) -> bool:
    """Tell whether there is an NV index of at least ``size`` bytes that was written and that anyone may read."""
    if not exists(esys, index):
        return False
    public, _name = esys.nv_read_public(esys.tr_from_tpmpublic(index))
    attributes = int(public.nvPublic.attributes)
    return bool(attributes & _WRITTEN and attributes & _AUTHREAD) and int(public.nvPublic.dataSize) >= size
