# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The firmware's event log: what was measured into the PCRs before the operating system took over.

Only digests are authenticated, by the PCRs they lead to. What an event says about itself (``data``) is believed only
where its digest is the hash of just that (``Event.bound``); everything else is a hint for people.
Source: TCG PC Client Platform Firmware Profile 1.06, section 10 (logs) and 3.3.4 (PCR usage); TCG EFI Protocol 1.2
(CCEL: the Confidential Computing event log of UEFI 2.10, section 38). Little endian throughout.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Iterator, Optional

from .errors import AppraisalError
from .structures import HASHES

EV_NO_ACTION = 0x3
EV_SEPARATOR = 0x4
EV_EFI_VARIABLE_DRIVER_CONFIG = 0x80000001
EV_EFI_ACTION = 0x80000007
EV_EFI_VARIABLE_AUTHORITY = 0x800000E0

EXIT_BOOT_SERVICES = b"Exit Boot Services Invocation"
#: What a separator says: "the firmware is done here"; anything else reports an error of the firmware.
SEPARATOR = bytes(4)

#: Bounds: real logs have some 200 events in 50 KiB; the fixed buffer of a confidential VM has 256 KiB.
LOG_LIMIT = 4 * 1024 * 1024
EVENT_LIMIT = 8192
ALGORITHM_LIMIT = 16
PCR_LIMIT = 24
#: An index that no register has marks the end inside a fixed buffer.
END_MARK = b"\xff\xff\xff\xff"

_SPEC_ID_03 = b"Spec ID Event03\0"
_STARTUP_LOCALITY = b"StartupLocality\0"
_SHA1 = 0x0004


@dataclass(frozen=True)
class Event:
    """One event: digests by bank, and the firmware's own words, which prove nothing unless ``bound``."""

    number: int
    pcr: int
    kind: int
    digests: dict[str, bytes]
    data: bytes

    def bound(self, bank: str) -> bool:
        """Tell whether the digest of ``bank`` is the hash of the event's own data."""
        digest = self.digests.get(bank)
        return digest is not None and hmac.compare_digest(digest, hashlib.new(bank, self.data).digest())


@dataclass(frozen=True)
class FirmwareLog:
    """A log that was well-formed: its banks, its events without those that extend nothing, the locality of startup.

    ``confidential`` is true for the log of a confidential VM, whose registers are not PCRs: 0 stands for MRTD, 1 to
    4 for RTMR 0 to 3, and PCRs share them (1 and 7 → 1; 2 to 6 → 2; 8 to 15 → 3).
    """

    banks: tuple[str, ...]
    events: tuple[Event, ...]
    startup_locality: int
    confidential: bool

    def values(self, bank: str) -> dict[int, bytes]:
        """Return the PCRs that the log leads to, for each PCR that it extends or initialises.

        Raises ``AppraisalError`` when the log does not record this bank.
        """
        if bank not in self.banks:
            raise AppraisalError("bank-not-logged", f"the firmware's log does not record the {bank} bank")
        replayed: dict[int, bytes] = {}
        for event in self.events:
            before = replayed.get(event.pcr) or initial_value(bank, event.pcr, self.startup_locality)
            replayed[event.pcr] = hashlib.new(bank, before + event.digests[bank]).digest()
        return replayed

    @cached_property
    def boundary(self) -> int:
        """The number of the event with which the firmware handed over.

        Raises ``AppraisalError`` where there is none: whatever ran later may then have added events in the
        firmware's name.
        """
        register = 2 if self.confidential else 5
        for event in self.events:
            said = event.pcr == register and event.kind == EV_EFI_ACTION and event.data == EXIT_BOOT_SERVICES
            if said and all(event.bound(bank) for bank in event.digests):
                return event.number
        raise AppraisalError("no-exit-boot-services", "the firmware's log has no event of leaving the boot services")


def initial_value(bank: str, pcr: int, startup_locality: int = 0) -> bytes:
    """Return what a PCR holds after a TPM reset (part 1 of the TPM library, section 17)."""
    size = hashlib.new(bank).digest_size
    if pcr == 0 and startup_locality:
        return bytes(size - 1) + bytes([startup_locality])
    return (b"\xff" if 17 <= pcr <= 22 else b"\0") * size


def parse(raw: bytes) -> Optional[FirmwareLog]:
    """Read the log of a firmware with a TPM, or return None for one of no bytes: some platforms really have none.

    Handles SHA-1-only and crypto-agile logs. Raises ``AppraisalError`` for anything else, for logs that are well-formed
    but cannot be honest (a second startup locality, a second separator), and for that of a confidential VM, whose
    registers are no PCRs.
    """
    if not raw:
        return None
    log = _parse(raw)
    if log.confidential:
        raise AppraisalError("not-a-tpm-log", "the log is of a confidential VM's registers, not of a TPM's PCRs")
    return log


def parse_confidential(raw: bytes) -> Optional[FirmwareLog]:
    """Read the log of a confidential VM (CCEL), which may fill a buffer, or return None for one of no bytes.

    Raises ``AppraisalError`` as `parse` does, and for the log of a TPM.
    """
    if not raw:
        return None
    log = _parse(raw)
    if not log.confidential:
        raise AppraisalError("not-a-confidential-log", "the log is of a TPM's PCRs, not of a confidential VM")
    return log


def _parse(raw: bytes) -> FirmwareLog:
    if len(raw) > LOG_LIMIT:
        raise AppraisalError("malformed", f"the firmware's log is longer than {LOG_LIMIT} bytes")
    reader = _Reader(raw)
    first = _legacy_event(reader, 0)
    if first.kind == EV_NO_ACTION and first.data.startswith(_SPEC_ID_03):
        sizes = _algorithms(first.data)
        found = _agile_events(reader, sizes)
        banks = tuple(HASHES[number] for number in sizes if number in HASHES)
        if first.pcr not in (0, 1):
            raise AppraisalError("malformed", "the header of the firmware's log is of a register that has none")
        return _checked(banks, list(found), confidential=first.pcr == 1)
    return _checked(("sha1",), list(_legacy_events(reader, first)), confidential=False)


def _checked(banks: tuple[str, ...], found: list[Event], confidential: bool) -> FirmwareLog:
    """Keep the events that extend, and refuse logs that no honest firmware writes."""
    localities = [event for event in found if event.kind == EV_NO_ACTION and event.data.startswith(_STARTUP_LOCALITY)]
    extending = tuple(event for event in found if event.kind != EV_NO_ACTION)
    if not extending:
        raise AppraisalError("malformed", "the firmware's log measures nothing")
    locality = 0
    if localities:
        where = localities[0]
        locality = where.data[-1]
        if len(localities) > 1:
            raise AppraisalError("second-locality", "the firmware's log states its startup locality twice")
        if where.pcr != 0 or len(where.data) != len(_STARTUP_LOCALITY) + 1 or locality not in (0, 3, 4):
            raise AppraisalError("malformed", "the firmware's log states a startup locality that does not exist")
        if any(event.pcr == 0 and event.number < where.number for event in extending):
            raise AppraisalError("late-locality", "the firmware's log states its startup locality after it used PCR 0")
    separated: set[int] = set()
    for event in extending:
        if event.kind != EV_SEPARATOR:
            continue
        if event.pcr in separated:
            raise AppraisalError("second-separator", f"the firmware's log has two separators in PCR {event.pcr}")
        separated.add(event.pcr)
    return FirmwareLog(banks, extending, locality, confidential)


def _algorithms(data: bytes) -> dict[int, int]:
    """Return algorithm → digest size from a Spec ID event (TCG_EfiSpecIDEventStruct)."""
    reader = _Reader(data)
    reader.take(24)
    count = reader.u32()
    if not 0 < count <= ALGORITHM_LIMIT:
        raise AppraisalError("malformed", "the firmware's log names no hash algorithm, or too many")
    sizes: dict[int, int] = {}
    for _algorithm in range(count):
        number, size = reader.u16(), reader.u16()
        known = HASHES.get(number)
        if number in sizes or not 0 < size <= 64 or (known and hashlib.new(known).digest_size != size):
            raise AppraisalError("malformed", "the firmware's log declares a hash algorithm wrongly")
        sizes[number] = size
    reader.take(reader.u8())
    if reader.left:
        raise AppraisalError("malformed", "bytes follow the header of the firmware's log")
    return sizes


def _agile_events(reader: _Reader, sizes: dict[int, int]) -> Iterator[Event]:
    number = 1
    while reader.left and not reader.padding():
        pcr, kind, count = reader.u32(), reader.u32(), reader.u32()
        if count != len(sizes):
            raise AppraisalError("malformed", f"event {number} of the firmware's log does not have one digest a bank")
        digests: dict[int, bytes] = {}
        for _digest in range(count):
            algorithm = reader.u16()
            if algorithm not in sizes or algorithm in digests:
                raise AppraisalError("malformed", f"event {number} of the firmware's log has an undeclared digest")
            digests[algorithm] = reader.take(sizes[algorithm])
        named = {HASHES[algorithm]: digest for algorithm, digest in digests.items() if algorithm in HASHES}
        yield _event(number, pcr, kind, named, reader.take(reader.u32()))
        number += 1


def _legacy_events(reader: _Reader, first: Event) -> Iterator[Event]:
    yield first
    number = 1
    while reader.left and not reader.padding():
        yield _legacy_event(reader, number)
        number += 1


def _legacy_event(reader: _Reader, number: int) -> Event:
    pcr, kind, digest = reader.u32(), reader.u32(), reader.take(20)
    return _event(number, pcr, kind, {HASHES[_SHA1]: digest}, reader.take(reader.u32()))


def _event(number: int, pcr: int, kind: int, digests: dict[str, bytes], data: bytes) -> Event:
    if number >= EVENT_LIMIT:
        raise AppraisalError("malformed", f"the firmware's log has more than {EVENT_LIMIT} events")
    if pcr >= PCR_LIMIT and kind != EV_NO_ACTION:
        raise AppraisalError("malformed", f"event {number} of the firmware's log is for a PCR that does not exist")
    return Event(number, pcr, kind, digests, data)


class _Reader:
    """Takes a little-endian log apart and refuses to run past its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        # Looked for once: whoever looked anew before each event would read a long log some thousand times.
        self._zeroes, self._ones = (len(data.rstrip(byte)) for byte in (b"\0", b"\xff"))

    @property
    def left(self) -> int:
        return len(self._data) - self._position

    def padding(self) -> bool:
        """Tell whether only the padding of a fixed buffer is left."""
        # One index of all ones is not enough: that is also how a reference to a platform's manifest is written.
        if self._data.startswith(END_MARK, self._position):
            return self._position >= self._ones
        # Buffers are whole pages; without that rule a log cut inside an event's leading zeroes would pass for a
        # padded one.
        return len(self._data) % 4096 == 0 and self._position >= self._zeroes

    def take(self, count: int) -> bytes:
        end = self._position + count
        if end > len(self._data):
            raise AppraisalError("malformed", "the firmware's log ends in the middle of an event")
        piece = self._data[self._position : end]
        self._position = end
        return piece

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int(struct.unpack("<H", self.take(2))[0])

    def u32(self) -> int:
        return int(struct.unpack("<I", self.take(4))[0])
