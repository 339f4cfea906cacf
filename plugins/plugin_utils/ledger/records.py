# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be said in the ledger, and how it lies in the columns of one row.

Three kinds of record: what a host showed and what was thought of it (`Attestation`), which keys a host proved to hold
(`Identity`), and what an operator decided (`Decision`). The ledger knows no appraisal: verdicts and roads are words to
it, evidence is bytes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import Callable, Mapping, Optional, Union, cast

#: A row of the ledger as the database, the chain and the export see it: text, integers and nothing else.
Row = Mapping[str, object]

TEXT_LIMIT = 255
REASON_LIMIT = 2000
DOCUMENT_COUNT_LIMIT = 64
#: The road of an attestation whose TPM nobody vouched for.
NO_ROAD = "none"

_WORD = re.compile(r"[a-z][a-z0-9-]{0,63}")
_DOCUMENT_NAME = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_HEX = re.compile(r"(?:[0-9a-f]{2}){1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_U64_DIGITS = 20


class Kind(str, Enum):
    ATTESTATION = "attestation"
    IDENTITY = "identity"
    DECISION = "decision"


class Action(str, Enum):
    """What an operator can decide."""

    APPROVE_IDENTITY = "approve-identity"
    RENEW_VOLUME = "renew-volume"
    RETIRE_HOST = "retire-host"
    ESCROW_KEY = "escrow-key"


@dataclass(frozen=True)
class Anchor:
    """What the TPM remembers about a volume, together with how often the TPM was reset.

    ``generation`` and ``state`` are the anchor's (unsigned 64 and 8 bits), ``reset_count`` is the TPM's resetCount
    (unsigned 32 bits). All three only ever grow in the life of a volume.
    """

    generation: int
    state: int
    reset_count: int

    def __post_init__(self) -> None:
        _bounded("generation", self.generation, 64)
        _bounded("state", self.state, 8)
        _bounded("reset count", self.reset_count, 32)

    def behind(self, highest: Anchor) -> tuple[str, ...]:
        """Name the parts of this anchor that are lower than they once were; empty for a volume that went forward."""
        return tuple(
            name
            for name in ("generation", "state", "reset_count")
            if cast(int, getattr(self, name)) < cast(int, getattr(highest, name))
        )


@dataclass(frozen=True)
class Attestation:
    """One appraisal of one host; a host with several volumes has a record for each.

    ``anchor`` is what the appraisal found proved by the TPM. A value that a host only claims does not belong there:
    the highest one is remembered, and a lie would lock out the truth.
    """

    host: str
    verdict: str
    road: str
    volume: Optional[str] = None
    volume_key_id: Optional[str] = None
    root_hash: Optional[str] = None
    reference_set: Optional[str] = None
    anchor: Optional[Anchor] = None

    def __post_init__(self) -> None:
        _text("host", self.host)
        _word("verdict", self.verdict)
        _word("road", self.road)
        for name in ("volume", "reference_set"):
            _optional(_text, name, getattr(self, name))
        for name in ("volume_key_id", "root_hash"):
            _optional(_hex, name, getattr(self, name))


@dataclass(frozen=True)
class Identity:
    """The keys that a host proved to hold, as SHA-256 fingerprints in hex, and the road on which it did so.

    Roads without an endorsement key leave ``ek`` out; the attestation key then stands for the host's TPM.
    """

    host: str
    road: str
    ek: Optional[str] = None
    ak: Optional[str] = None

    def __post_init__(self) -> None:
        _text("host", self.host)
        _word("road", self.road)
        for name in ("ek", "ak"):
            _optional(_hex, name, getattr(self, name))
        if not self.fingerprints:
            raise ValueError("an identity needs the fingerprint of a key")

    @property
    def key(self) -> str:
        """Return the fingerprint that stands for the host's TPM."""
        return cast(str, self.ek or self.ak)

    @property
    def fingerprints(self) -> frozenset[str]:
        return frozenset(fingerprint for fingerprint in (self.ek, self.ak) if fingerprint)


@dataclass(frozen=True)
class Decision:
    """What an operator decided about a host: who, why, and about which key or volume.

    The ``key`` of a recovery key that was put into escrow is the digest of its envelope.
    """

    host: str
    action: Action
    operator: str
    reason: str
    key: Optional[str] = None
    volume: Optional[str] = None

    def __post_init__(self) -> None:
        _text("host", self.host)
        _text("operator", self.operator)
        _text("reason", self.reason, REASON_LIMIT)
        _optional(_hex, "key", self.key)
        _optional(_text, "volume", self.volume)
        if (self.key is not None) != (self.action in (Action.APPROVE_IDENTITY, Action.ESCROW_KEY)):
            raise ValueError("a key belongs to the approval of an identity or to escrow, and only there")
        if (self.volume is not None) != (self.action in (Action.RENEW_VOLUME, Action.ESCROW_KEY)):
            raise ValueError("a volume belongs to its renewal or to escrow, and only there")


Record = Union[Attestation, Identity, Decision]


@dataclass(frozen=True)
class Entry:
    """A record in its place. ``documents`` maps names to the SHA-256 of what was kept, in hex."""

    sequence: int
    recorded: datetime
    record: Record
    documents: Mapping[str, str]
    previous: str
    digest: str


def columns_of(record: Record, documents: Mapping[str, str]) -> dict[str, object]:
    """Lay a record out in columns: all of an entry but its place, its time and its digests."""
    columns: dict[str, object] = dict.fromkeys(_RECORD_COLUMNS)
    columns["documents"] = json.dumps(_documents(documents), sort_keys=True, separators=(",", ":"))
    if isinstance(record, Attestation):
        columns["kind"] = Kind.ATTESTATION.value
        names: tuple[str, ...] = _ATTESTATION_COLUMNS
        if record.anchor is not None:
            # Neither SQLite nor PostgreSQL has an unsigned 64-bit integer; padded digits sort the same.
            columns["generation"] = f"{record.anchor.generation:0{_U64_DIGITS}d}"
            columns["state"] = record.anchor.state
            columns["reset_count"] = record.anchor.reset_count
    elif isinstance(record, Identity):
        columns["kind"] = Kind.IDENTITY.value
        names = _IDENTITY_COLUMNS
    else:
        columns["kind"] = Kind.DECISION.value
        columns["action"] = record.action.value
        names = _DECISION_COLUMNS
    columns.update((name, getattr(record, name)) for name in names)
    return columns


def entry_of(row: Row) -> Entry:
    """Read an entry back from its columns; ValueError unless it is exactly what `columns_of` would have written."""
    record = _record_of(row)
    documents = _documents(json.loads(_string(row["documents"])))
    written = columns_of(record, documents)
    if any(row[name] != value or type(row[name]) is not type(value) for name, value in written.items()):
        raise ValueError("the columns do not belong together")
    sequence = row["sequence"]
    if not isinstance(sequence, int):
        raise ValueError("the sequence is not a number")
    return Entry(
        sequence=sequence,
        recorded=time_of(_string(row["recorded"])),
        record=record,
        documents=documents,
        previous=_digest(row["previous"]),
        digest=_digest(row["digest"]),
    )


def text_of(moment: datetime) -> str:
    """Write a moment as RFC 3339 in UTC, always with microseconds so that texts sort as moments do."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def time_of(text: str) -> datetime:
    # strptime would be imported anew in each of the processes that Ansible starts for its hosts.
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if text_of(moment) != text:
        raise ValueError("the time is not written as the ledger writes it")
    return moment


_ATTESTATION_COLUMNS = ("host", "verdict", "road", "volume", "volume_key_id", "root_hash", "reference_set")
_IDENTITY_COLUMNS = ("host", "road", "ek", "ak")
_DECISION_COLUMNS = ("host", "operator", "reason", "key", "volume")
_ANCHOR_COLUMNS = ("generation", "state", "reset_count")
_RECORD_COLUMNS = tuple(
    dict.fromkeys(
        ("kind", *_ATTESTATION_COLUMNS, *_ANCHOR_COLUMNS, *_IDENTITY_COLUMNS, "action", *_DECISION_COLUMNS, "documents")
    )
)


def _record_of(row: Row) -> Record:
    # Types are checked by the records themselves and by the comparison in entry_of.
    def column(name: str) -> str:
        return cast(str, row[name])

    kind = Kind(row["kind"])
    if kind is Kind.ATTESTATION:
        return Attestation(anchor=_anchor_of(row), **{name: column(name) for name in _ATTESTATION_COLUMNS})
    if kind is Kind.IDENTITY:
        return Identity(**{name: column(name) for name in _IDENTITY_COLUMNS})
    return Decision(action=Action(row["action"]), **{name: column(name) for name in _DECISION_COLUMNS})


def _anchor_of(row: Row) -> Optional[Anchor]:
    values = [row[name] for name in _ANCHOR_COLUMNS]
    if values == [None, None, None]:
        return None
    digits = _string(values[0])
    if len(digits) != _U64_DIGITS or not digits.isascii() or not digits.isdigit():
        raise ValueError("the generation is not a number of twenty digits")
    return Anchor(int(digits), cast(int, values[1]), cast(int, values[2]))


def _documents(documents: object) -> dict[str, str]:
    if not isinstance(documents, Mapping) or len(documents) > DOCUMENT_COUNT_LIMIT:
        raise ValueError(f"documents are at most {DOCUMENT_COUNT_LIMIT} names with a digest each")
    for name, digest in documents.items():
        if not isinstance(name, str) or not _DOCUMENT_NAME.fullmatch(name):
            raise ValueError("a document's name is a word of lower-case letters, digits, dots and hyphens")
        _digest(digest)
    return dict(documents)


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is not a text")
    return value


def _digest(value: object) -> str:
    text = _string(value)
    if not _DIGEST.fullmatch(text):
        raise ValueError("a digest is 64 lower-case hex digits")
    return text


def _text(name: str, value: object, limit: int = TEXT_LIMIT) -> None:
    if not isinstance(value, str) or not value or len(value) > limit or not value.isprintable():
        raise ValueError(f"{name} is 1 to {limit} printable characters")


def _word(name: str, value: object) -> None:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise ValueError(f"{name} is a word of lower-case letters, digits and hyphens")


def _hex(name: str, value: object) -> None:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise ValueError(f"{name} is 1 to 64 bytes in lower-case hex")


def _optional(check: Callable[[str, object], None], name: str, value: object) -> None:
    if value is not None:
        check(name, value)


def _bounded(name: str, value: object, bits: int) -> None:
    if type(value) is not int or not 0 <= value < 1 << bits:
        raise ValueError(f"{name} is an unsigned integer of {bits} bits")
