# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A quote together with the PCR values it speaks of."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from ..errors import FdeError
from .esys import tss
from .keys import Key

#: PCRs by bank, for example ``{"sha256": (0, 4, 7, 11)}``.
Selection = Mapping[str, Sequence[int]]
#: What one TPM2_PCR_Read may give (TPML_DIGEST; TPM 2.0 Library part 3, section 22.4).
_AT_ONCE = 8
#: How often something is tried during which no PCR may change.
ATTEMPTS = 8


class PcrsChanged(FdeError):
    """Something else extended a PCR during each attempt."""

    def __init__(self, attempts: str) -> None:
        cause = f"they changed during each of {attempts}"
        super().__init__("the TPM's PCRs", cause, "Try again when the system has finished booting")


@dataclass(frozen=True)
class Quote:
    """TPMS_ATTEST and TPMT_SIGNATURE as the TPM marshalled them, and the values: bank → PCR → digest."""

    attest: bytes
    signature: bytes
    pcrs: dict[str, dict[int, bytes]]


def quote(esys: Any, key: Key, nonce: bytes, selection: Selection, attempts: int = ATTEMPTS) -> Quote:
    """Quote the selected PCRs under ``nonce`` (at most 32 bytes fit every TPM) and return their values.

    The values are read after the quote, and the pair is only returned when they hash to what was quoted: systemd may
    extend a PCR in between. The digest is made with the hash of the key's scheme (SHA-256), whatever the bank.
    Raises ``PcrsChanged`` when the PCRs do not keep still for one of ``attempts``.
    """
    for _attempt in range(attempts):
        attest, signature = esys.quote(key.handle, selection_text(selection), tss.TPM2B_DATA(nonce))
        values = read_pcrs(esys, selection)
        digest = hashlib.sha256(b"".join(values[bank][pcr] for bank in selection for pcr in sorted(selection[bank])))
        body, _size = tss.TPMS_ATTEST.unmarshal(bytes(attest))
        if bytes(body.attested.quote.pcrDigest) == digest.digest():
            return Quote(bytes(attest), bytes(signature.marshal()), values)
    raise PcrsChanged(f"{attempts} quotes")


def read_pcrs(esys: Any, selection: Selection) -> dict[str, dict[int, bytes]]:
    """Return the values of the selected PCRs. A bank that the TPM does not have raises ``FdeError``."""
    return {bank: _read_bank(esys, bank, sorted(pcrs)) for bank, pcrs in selection.items()}


def selection_text(selection: Selection) -> str:
    """Write a selection as tpm2-tools and tpm2-pytss do: ``sha256:0,4,7+sha384:0``."""
    return "+".join(f"{bank}:{','.join(str(pcr) for pcr in sorted(pcrs))}" for bank, pcrs in selection.items())


def _read_bank(esys: Any, bank: str, pcrs: Sequence[int]) -> dict[int, bytes]:
    values: dict[int, bytes] = {}
    for start in range(0, len(pcrs), _AT_ONCE):
        asked = pcrs[start : start + _AT_ONCE]
        found = _read(esys, bank, asked)
        # Less than was asked for does not say what it is of.
        if len(found) != len(asked):
            found = [value for pcr in asked for value in _read_one(esys, bank, pcr)]
        values.update(zip(asked, found))
    return values


def _read_one(esys: Any, bank: str, pcr: int) -> list[bytes]:
    found = _read(esys, bank, (pcr,))
    if len(found) != 1:
        raise FdeError(
            "the TPM", f"it has no PCR {pcr} in a bank '{bank}'", f"Enable the {bank} bank in the firmware's setup"
        )
    return found


def _read(esys: Any, bank: str, pcrs: Sequence[int]) -> list[bytes]:
    _counter, _selected, digests = esys.pcr_read(selection_text({bank: pcrs}))
    return [bytes(digest) for digest in digests]
