# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exact fields of every object in a LUKS2 header, and their types.

A field more is as wrong as a field less: an old reader that ignores what it does not know is how a downgrade begins.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Callable, Iterable, Iterator, Mapping


class Flaw(str, Enum):
    """How an object deviates from its shape."""

    UNKNOWN = "unknown-field"
    MISSING = "missing-field"
    MALFORMED = "malformed-field"


Check = Callable[[Any], bool]


@dataclass(frozen=True)
class Shape:
    """The exact fields of an object: those it must have, those it may have."""

    required: Mapping[str, Check]
    optional: Mapping[str, Check] = field(default_factory=dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 64


def is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def is_decimal(value: Any) -> bool:
    """A 64-bit number as LUKS2 writes it: a string of digits."""
    return isinstance(value, str) and re.fullmatch(r"0|[1-9][0-9]{0,18}", value) is not None


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 32 and all(_is_text(entry) for entry in value)


def _is_pcrs(value: Any) -> bool:
    """PCRs as systemd writes them from a mask: each once, ascending."""
    if not isinstance(value, list) or not all(type(pcr) is int and 0 <= pcr < 24 for pcr in value):
        return False
    return value == sorted(set(value))


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _is_base64(value: Any) -> bool:
    """Base64 in its one canonical spelling: decoders differ in what they make of any other."""
    if not isinstance(value, str) or not value:
        return False
    try:
        return base64.b64encode(base64.b64decode(value, validate=True)).decode() == value
    except (binascii.Error, ValueError):
        return False


def _is_bytes(length: int) -> Check:
    return lambda value: _is_base64(value) and len(base64.b64decode(value)) == length


def _is_structure(value: Any) -> bool:
    """A marshalled TPM structure: the largest that systemd stores here is a key with its private part."""
    return _is_base64(value) and len(value) <= 8192


def _is_salt(value: Any) -> bool:
    return _is_base64(value) and 16 <= len(base64.b64decode(value)) <= 64


def _is_hex(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _one_or_more(check: Check) -> Check:
    """systemd writes one value, or a list where a policy has several steps."""
    return lambda value: (
        1 <= len(value) <= 4 and all(check(entry) for entry in value) if isinstance(value, list) else check(value)
    )


def _is_one_of(*texts: str) -> Check:
    return lambda value: isinstance(value, str) and value in texts


def _is_bank(value: Any) -> bool:
    return isinstance(value, dict) and all(
        re.fullmatch(r"[0-9]|1[0-9]|2[0-3]", pcr) is not None and _is_hex(digest) for pcr, digest in value.items()
    )


KEYSLOT = Shape({"type": _is_text, "key_size": is_count, "af": _is_object, "area": _is_object, "kdf": _is_object})
SPLITTER = Shape({"type": _is_text, "stripes": is_count, "hash": _is_text})
AREA = Shape({"type": _is_text, "offset": is_decimal, "size": is_decimal, "encryption": _is_text, "key_size": is_count})
PBKDF2 = Shape({"type": _is_text, "hash": _is_text, "iterations": is_count, "salt": _is_salt})
ARGON2 = Shape({"type": _is_text, "time": is_count, "memory": is_count, "cpus": is_count, "salt": _is_salt})
SEGMENT = Shape(
    {
        "type": _is_text,
        "offset": is_decimal,
        "size": _is_text,
        "iv_tweak": is_decimal,
        "encryption": _is_text,
        "sector_size": is_count,
    },
    {"integrity": _is_object, "flags": _is_texts},
)
INTEGRITY = Shape(
    {"type": _is_text, "journal_encryption": _is_text, "journal_integrity": _is_text}, {"key_size": is_count}
)
DIGEST = Shape(
    {
        "type": _is_text,
        "keyslots": _is_texts,
        "segments": _is_texts,
        "hash": _is_text,
        "iterations": is_count,
        "salt": _is_salt,
        "digest": _is_bytes(32),
    }
)
CONFIG = Shape({"json_size": is_decimal, "keyslots_size": is_decimal}, {"flags": _is_texts, "requirements": _is_object})
TPM2_TOKEN = Shape(
    {
        "type": _is_text,
        "keyslots": _is_texts,
        "tpm2-blob": _one_or_more(_is_structure),
        "tpm2-pcrs": _is_pcrs,
        "tpm2-policy-hash": _one_or_more(_is_hex),
    },
    {
        "tpm2-pcr-bank": _is_text,
        "tpm2-primary-alg": _is_one_of("ecc", "rsa"),
        "tpm2-pin": _is_boolean,
        "tpm2_pcrlock": _is_boolean,
        "tpm2_pubkey_pcrs": _is_pcrs,
        "tpm2_pubkey": _is_structure,
        "tpm2_srk": _is_structure,
        "tpm2_pcrlock_nv": _is_structure,
    },
)
RECOVERY_TOKEN = Shape({"type": _is_text, "keyslots": _is_texts})
EVIDENCE_TOKEN = Shape(
    {
        "type": _is_text,
        "keyslots": _is_texts,
        "version": is_count,
        "claims": _is_base64,
        "quote": _is_object,
        "ak": _is_base64,
        "pcrs": _is_object,
        "firmware_log": _is_base64,
        "userspace_log": _is_base64,
    }
)
QUOTE = Shape({"attest": _is_base64, "signature": _is_base64})
PCRS = Shape({"sha256": _is_bank})


def deviations(where: str, found: Mapping[str, Any], shape: Shape) -> Iterator[tuple[Flaw, str, str]]:
    """Yield what an object has too much, too little or of another type: how, where, what."""
    known = {**shape.optional, **shape.required}
    for name in found:
        if name not in known:
            yield Flaw.UNKNOWN, f"{where}.{shown(name)}", shown(found[name])
    for name, check in known.items():
        if name not in found:
            if name in shape.required:
                yield Flaw.MISSING, f"{where}.{name}", "nothing"
        elif not check(found[name]):
            yield Flaw.MALFORMED, f"{where}.{name}", shown(found[name])


def shown(value: Any) -> str:
    """A found value for people: short, on one line, printable."""
    return _short(repr(value))


def printable(text: str) -> str:
    """Return a text as it is, or with escapes where a console would obey it."""
    return text if text.isprintable() else repr(text)[1:-1]


def listed(names: Iterable[str]) -> str:
    """The names of a section's entries, which are small numbers: short, however many there are."""
    return _short(", ".join(names))


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
