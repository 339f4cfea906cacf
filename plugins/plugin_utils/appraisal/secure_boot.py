# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Was Secure Boot enforced, and by whose certificates: read from events of PCR 7 that their digests bind.

Source: TCG PC Client Platform Firmware Profile 1.06, section 3.3.4.8 (PCR 7) and 10.2.6 (UEFI_VARIABLE_DATA).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, replace

from .errors import AppraisalError
from .event_log import (
    EV_EFI_VARIABLE_AUTHORITY,
    EV_EFI_VARIABLE_DRIVER_CONFIG,
    EV_SEPARATOR,
    SEPARATOR,
    Event,
    FirmwareLog,
)

_PCR = 7
#: GUIDs as they lie in memory.
_GLOBAL = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
_IMAGE_SECURITY = bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f")
_SHIM = bytes.fromhex("50ab5d6046e00043abb63dd810dd8b23")
#: Shim measures these beside the authorities that it used; they admit nothing.
_STATE_OF_SHIM = frozenset((_SHIM, name) for name in ("SbatLevel", "MokListTrusted"))
#: Bytes behind the variable in the structure that old releases of shim measured: C's alignment of it.
_PADDING = bytes(5)
_OWNER_SIZE = 16
#: The firmware measures these, in this order, before it starts anything; an absent one with no data.
_VARIABLES = (
    (_GLOBAL, "SecureBoot"),
    (_GLOBAL, "PK"),
    (_GLOBAL, "KEK"),
    (_IMAGE_SECURITY, "db"),
    (_IMAGE_SECURITY, "dbx"),
)


@dataclass(frozen=True)
class SecureBoot:
    """Whether it was on, and the SHA-256 of each certificate, or other entry, that admitted an image: those of
    ``db``, and those that shim has.
    """

    enabled: bool
    authorities: frozenset[str]


@dataclass(frozen=True)
class _Variable:
    owner: bytes
    name: str
    data: bytes


def judge(log: FirmwareLog, bank: str) -> SecureBoot:
    """Read the state of Secure Boot from a log whose PCR 7 was already found to replay to the quoted value.

    Raises ``AppraisalError`` when PCR 7 was not measured as the specification demands: then nothing can be said.
    """
    events = [event for event in log.events if event.pcr == _PCR and event.number < log.boundary]
    separators = [place for place, event in enumerate(events) if event.kind == EV_SEPARATOR]
    if len(separators) != 1 or events[separators[0]].data != SEPARATOR or not events[separators[0]].bound(bank):
        raise AppraisalError("pcr-7-form", "PCR 7 has no separator that ends the firmware's configuration")
    before, after = events[: separators[0]], events[separators[0] + 1 :]
    if any(event.kind != EV_EFI_VARIABLE_DRIVER_CONFIG for event in before):
        raise AppraisalError(
            "pcr-7-form", "PCR 7 was extended with something else before the Secure Boot variables ended"
        )
    if any(event.kind != EV_EFI_VARIABLE_AUTHORITY for event in after):
        raise AppraisalError(
            "pcr-7-form", "PCR 7 was extended with something other than authorities after its separator"
        )
    variables = [_variable(event, bank) for event in before]
    if [(variable.owner, variable.name) for variable in variables[: len(_VARIABLES)]] != list(_VARIABLES):
        raise AppraisalError("pcr-7-form", "PCR 7 does not begin with SecureBoot, PK, KEK, db and dbx in this order")
    if any(variable.name == "SecureBoot" for variable in variables[1:]):
        raise AppraisalError("pcr-7-form", "PCR 7 speaks of Secure Boot twice")
    used = (_variable(event, bank) for event in after)
    authorities = {_entry(variable) for variable in used if (variable.owner, variable.name) not in _STATE_OF_SHIM}
    return SecureBoot(variables[0].data == b"\x01", frozenset(authorities))


def _entry(authority: _Variable) -> str:
    """Return the digest of the entry that was used: firmware names its owner first, shim the certificate alone."""
    data = authority.data
    alone = data[:2] == b"\x30\x82" and len(data) == 4 + int.from_bytes(data[2:4], "big")
    return hashlib.sha256(data if alone else data[_OWNER_SIZE:]).hexdigest()


def _measured(event: Event, bank: str) -> tuple[bytes, tuple[bytes, ...]]:
    """Return what an event's digest was made from, and what may be behind the variable in that.

    Releases of shim before its commit 8a27a4809a6a log one byte more than they measure, and both measure and log the
    padding of a C structure (``tpm_measure_variable``; go-attestation's issue 157 tells the same).
    """
    if event.bound(bank):
        return event.data, (b"", _PADDING) if event.kind == EV_EFI_VARIABLE_AUTHORITY else (b"",)
    if event.kind == EV_EFI_VARIABLE_AUTHORITY and replace(event, data=event.data[:-1]).bound(bank):
        return event.data[:-1], (_PADDING,)
    raise AppraisalError("unbound-event", f"event {event.number} in PCR 7 is not what its digest was made from")


def _variable(event: Event, bank: str) -> _Variable:
    """Read a UEFI_VARIABLE_DATA whose digest binds it."""
    data, padding = _measured(event, bank)
    if len(data) < 32:
        raise AppraisalError("malformed", f"event {event.number} in PCR 7 is too short for a variable")
    owner = data[:16]
    name_length, data_length = struct.unpack("<QQ", data[16:32])
    rest = data[32:]
    end = 2 * name_length + data_length
    if name_length > 256 or end > len(rest) or rest[end:] not in padding:
        raise AppraisalError("malformed", f"event {event.number} in PCR 7 does not have the lengths it states")
    try:
        name = rest[: 2 * name_length].decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise AppraisalError("malformed", f"event {event.number} in PCR 7 has a name that is not text") from error
    return _Variable(owner, name, rest[2 * name_length : end])
