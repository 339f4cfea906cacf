# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Was Secure Boot enforced, and by whose certificates: read from events of PCR 7 that their digests bind.

Source: TCG PC Client Platform Firmware Profile 1.06, section 3.3.4.8 (PCR 7) and 10.2.6 (UEFI_VARIABLE_DATA).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

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
    """Whether it was on, and the SHA-256 of each certificate of ``db`` that admitted an image."""

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
    authorities = {
        hashlib.sha256(variable.data[16:]).hexdigest()
        for variable in (_variable(event, bank) for event in after)
        if (variable.owner, variable.name) == (_IMAGE_SECURITY, "db")
    }
    return SecureBoot(variables[0].data == b"\x01", frozenset(authorities))


def _variable(event: Event, bank: str) -> _Variable:
    """Read a UEFI_VARIABLE_DATA whose digest binds it."""
    if not event.bound(bank):
        raise AppraisalError("unbound-event", f"event {event.number} in PCR 7 is not what its digest was made from")
    if len(event.data) < 32:
        raise AppraisalError("malformed", f"event {event.number} in PCR 7 is too short for a variable")
    owner = event.data[:16]
    name_length, data_length = struct.unpack("<QQ", event.data[16:32])
    rest = event.data[32:]
    if name_length > 256 or 2 * name_length + data_length != len(rest):
        raise AppraisalError("malformed", f"event {event.number} in PCR 7 does not have the lengths it states")
    try:
        name = rest[: 2 * name_length].decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise AppraisalError("malformed", f"event {event.number} in PCR 7 has a name that is not text") from error
    return _Variable(owner, name, rest[2 * name_length :])
