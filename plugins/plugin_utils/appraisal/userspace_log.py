# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd's own event log: what the operating system measured after the firmware was done.

A JSON text sequence (RFC 7464): each record begins with 0x1E and ends with a line feed.
Source: systemd ``src/shared/tpm2-util.c`` (``tpm2_userspace_log``) and ``docs/TPM2_PCR_MEASUREMENTS.md``.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Optional

from .documents import parse_json
from .errors import AppraisalError
from .event_log import PCR_LIMIT
from .structures import HASH_IDS

#: Bounds: a boot writes some thirty records of 300 bytes.
LOG_LIMIT = 4 * 1024 * 1024
RECORD_LIMIT = 64 * 1024
COUNT_LIMIT = 8192

VOLUME_KEY = "volume-key"
PHASE = "phase"

_HEX = re.compile(r"[0-9a-f]*")
#: The TCG's names of hash algorithms, as ``sha256`` and ``sm3_256``, and hexadecimal digits of the longest digest.
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,15}")
_SIZE_LIMIT = 128


@dataclass(frozen=True)
class Record:
    """One measurement. Only ``digests`` were extended; what they stand for is the word of the log's writer."""

    number: int
    pcr: int
    digests: Mapping[str, bytes]
    kind: str
    string: str


@dataclass(frozen=True)
class UserspaceLog:
    """The records that extend a PCR, in order. Those of NV indexes are checked for form and left out."""

    records: tuple[Record, ...]

    def replay(self, bank: str, values: Mapping[int, bytes], initial: Mapping[int, bytes]) -> dict[int, bytes]:
        """Extend ``values``, what the firmware left behind, and return all PCRs afterwards.

        ``initial`` holds what untouched PCRs begin with. Raises ``AppraisalError`` when a record lacks a digest of
        ``bank``.
        """
        replayed = dict(values)
        for record in self.records:
            if bank not in record.digests:
                raise AppraisalError("bank-not-logged", f"record {record.number} of systemd's log has no {bank} digest")
            before = replayed.get(record.pcr, initial[record.pcr])
            replayed[record.pcr] = hashlib.new(bank, before + record.digests[bank]).digest()
        return replayed

    def digests(self, pcr: int, bank: str) -> tuple[bytes, ...]:
        """Return what was extended into a PCR, in order."""
        return tuple(record.digests[bank] for record in self.records if record.pcr == pcr and bank in record.digests)

    def volume_keys(self, volume: str, uuid: str, bank: str, pcr: int) -> tuple[bytes, ...]:
        """Return the key ids that are said to be of a volume: HMAC(volume key, "cryptsetup:NAME:UUID").

        A key id cannot be told from other digests, so this is the word of whoever wrote the log.
        """
        string = f"cryptsetup:{volume}:{uuid}"
        return tuple(
            record.digests[bank]
            for record in self.records
            if record.pcr == pcr and record.kind == VOLUME_KEY and record.string == string and bank in record.digests
        )


def parse(raw: bytes) -> Optional[UserspaceLog]:
    """Read the log, or return None for one of no bytes. Raises ``AppraisalError`` for anything that systemd does not
    write.
    """
    if not raw:
        return None
    if len(raw) > LOG_LIMIT:
        raise AppraisalError("malformed", f"systemd's log is longer than {LOG_LIMIT} bytes")
    return UserspaceLog(tuple(record for record in _records(raw) if record is not None))


def _records(raw: bytes) -> Iterator[Optional[Record]]:
    texts = raw.split(b"\x1e")
    if texts[0] or len(texts) - 1 > COUNT_LIMIT:
        raise AppraisalError("malformed", "systemd's log does not begin with a record, or has too many")
    for number, text in enumerate(texts[1:], start=1):
        if not text.endswith(b"\n"):
            raise AppraisalError("malformed", f"record {number} of systemd's log has no end")
        yield _record(number, parse_json(text, f"record {number} of systemd's log", RECORD_LIMIT))


def _record(number: int, found: Any) -> Optional[Record]:
    if not isinstance(found, dict) or not isinstance(found.get("content", {}), dict):
        raise AppraisalError("malformed", f"record {number} of systemd's log is not an object")
    digests = _digests(number, found.get("digests"))
    if "nv_index" in found and "pcr" not in found:
        return None
    pcr = found.get("pcr")
    if type(pcr) is not int or not 0 <= pcr < PCR_LIMIT or "nv_index" in found:
        raise AppraisalError("malformed", f"record {number} of systemd's log is for a PCR that does not exist")
    content = found.get("content", {})
    kind, string = content.get("eventType", ""), content.get("string", "")
    if not isinstance(kind, str) or not isinstance(string, str):
        raise AppraisalError("malformed", f"record {number} of systemd's log has content that is not text")
    return Record(number, pcr, digests, kind, string)


def _digests(number: int, found: Any) -> dict[str, bytes]:
    if not isinstance(found, list) or not 0 < len(found) <= 16:
        raise AppraisalError("malformed", f"record {number} of systemd's log has no list of digests")
    digests: dict[str, bytes] = {}
    for entry in found:
        name, text = (entry.get("hashAlg"), entry.get("digest")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str) or name in digests or not _NAME.fullmatch(name):
            raise AppraisalError("malformed", f"record {number} of systemd's log has a digest of no algorithm")
        # Of a bank that nobody here judges by, such as SM3 or SHA-3, only the form is looked at.
        size = 2 * hashlib.new(name).digest_size if name in HASH_IDS else min(len(text), _SIZE_LIMIT) & ~1
        if not _HEX.fullmatch(text) or len(text) != size:
            raise AppraisalError("malformed", f"record {number} of systemd's log has a digest of the wrong length")
        digests[name] = bytes.fromhex(text)
    return {name: digest for name, digest in digests.items() if name in HASH_IDS}
