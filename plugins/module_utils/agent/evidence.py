# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Proof of where and when the volume key was made: a quote over the claims, kept in a token of the volume's header."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
import zlib
from dataclasses import dataclass
from typing import Any, Mapping, Optional

from ..luks2.header import Header
from ..tpm.anchor import INDEX
from ..tpm.keys import attestation_key
from ..tpm.measurements import firmware_log, held_userspace_log
from ..tpm.quote import quote
from .configuration import Configuration

TOKEN_TYPE = "cvm-fde"
VERSION = 1
#: What a token is evidence of.
CREATION, RECOVERY = "volume-creation", "volume-recovery"
#: The firmware's and the kernel's measurements, the initrd (9), boot phases (11) and further configuration (12).
QUOTED_PCRS = {"sha256": (0, 1, 2, 3, 4, 5, 7, 9, 11, 12)}


@dataclass(frozen=True)
class Creation:
    """What was made: the volume's mapping name, its ids, its ciphers and the id of its key."""

    volume: str
    volume_key_id: bytes
    luks_uuid: uuid.UUID
    partition_uuid: uuid.UUID
    cipher: str
    integrity: str
    sector_size: int


def claims(creation: Creation, configuration: Configuration, anchor: bytes) -> bytes:
    """Return the canonical JSON of what the quote vouches for: sorted names, no white space, ASCII.

    ``anchor`` is the Name of the anchor once it is written.
    """
    content = {
        "version": VERSION,
        "purpose": CREATION,
        "volume": creation.volume,
        "volume_key_id": creation.volume_key_id.hex(),
        "luks_uuid": str(creation.luks_uuid),
        "partition_uuid": str(creation.partition_uuid),
        "root_hash": configuration.root_hash.hex(),
        "strategy": configuration.strategy.value,
        "cipher": creation.cipher,
        "integrity": creation.integrity,
        "sector_size": creation.sector_size,
        "anchor": {"nv_index": f"{INDEX:#010x}", "name": anchor.hex()},
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")


@dataclass(frozen=True)
class Recovery:
    """What was recovered: the volume, the id of its key, the code of the refusal, and how often it happened so far."""

    volume: str
    volume_key_id: bytes
    luks_uuid: uuid.UUID
    code: str
    recoveries: int


def recovery_claims(recovery: Recovery, configuration: Configuration, anchor: bytes) -> bytes:
    """Return the canonical JSON of what the quote of a recovery vouches for; ``anchor`` as in ``claims``."""
    content = {
        "version": VERSION,
        "purpose": RECOVERY,
        "volume": recovery.volume,
        "volume_key_id": recovery.volume_key_id.hex(),
        "luks_uuid": str(recovery.luks_uuid),
        "root_hash": configuration.root_hash.hex(),
        "strategy": configuration.strategy.value,
        "code": recovery.code,
        "recoveries": recovery.recoveries,
        "anchor": {"nv_index": f"{INDEX:#010x}", "name": anchor.hex()},
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")


@dataclass(frozen=True)
class Found:
    """An evidence token in a header, unverified: its number, its claims and the public area of the key that made it."""

    number: int
    claims: Mapping[str, Any]
    key: bytes


def found(header: Header) -> dict[str, Found]:
    """Return the evidence tokens of a judged header by their purpose; what cannot be read is left out."""
    tokens = {}
    for number, content in header.metadata["tokens"].items():
        if content["type"] == TOKEN_TYPE:
            try:
                stated = json.loads(base64.b64decode(content["claims"]))
                tokens[str(stated["purpose"])] = Found(int(number), stated, base64.b64decode(content["ak"]))
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
    return tokens


def differing(creation: Found, configuration: Configuration, *, any_image: bool) -> list[str]:
    """Return the names of the claims by which a volume was made from another image than the one that boots."""
    expected = {"strategy": configuration.strategy.value}
    if not any_image:
        expected["root_hash"] = configuration.root_hash.hex()
    return [name for name, value in expected.items() if creation.claims.get(name) != value]


def token(esys: Any, content: bytes) -> bytes:
    """Quote ``content`` (claims) with the attestation key and return the LUKS2 token as JSON."""
    with held_userspace_log() as userspace, attestation_key(esys) as key:
        quoted = quote(esys, key, hashlib.sha256(content).digest(), QUOTED_PCRS)
        userspace_log = userspace.read().content
    pcrs = {bank: {str(pcr): value.hex() for pcr, value in values.items()} for bank, values in quoted.pcrs.items()}
    return json.dumps(
        {
            "type": TOKEN_TYPE,
            "keyslots": [],
            "version": VERSION,
            "claims": _base64(content),
            "quote": {"attest": _base64(quoted.attest), "signature": _base64(quoted.signature)},
            "ak": _base64(key.public),
            "pcrs": pcrs,
            "firmware_log": _compressed(firmware_log()),
            "userspace_log": _compressed(userspace_log),
        },
        sort_keys=True,
    ).encode("ascii")


def _compressed(log: Optional[bytes]) -> str:
    """Return a log as the token holds it; an absent one is empty, which no verifier can take for a replayable one."""
    return _base64(zlib.compress(log or b"", 9))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
