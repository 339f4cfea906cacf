# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two captured quotes with their logs: genuine both, and one whose log does not lead to what was quoted.

The evidence does not hold the attestation key. It follows from the signatures themselves: each admits two keys, and one
key only can have made both.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any, Optional

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal import event_log
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.replay import replay, unexplained
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import (
    parse_quote,
    parse_signature,
    pcr_digest,
    verify_signature,
)
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

#: P-256 (FIPS 186-5): prime, order, coefficient b, base point.
P = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
Point = Optional[tuple[int, int]]


def add(one: Point, other: Point) -> Point:
    if one is None or other is None:
        return one or other
    if one[0] == other[0] and (one[1] + other[1]) % P == 0:
        return None
    if one == other:
        slope = (3 * one[0] ** 2 - 3) * pow(2 * one[1], -1, P)
    else:
        slope = (other[1] - one[1]) * pow(other[0] - one[0], -1, P)
    x = (slope**2 - one[0] - other[0]) % P
    return x, (slope * (one[0] - x) - one[1]) % P


def times(factor: int, point: Point) -> Point:
    result: Point = None
    while factor:
        if factor & 1:
            result = add(result, point)
        point, factor = add(point, point), factor >> 1
    return result


def signers(message: bytes, signature: bytes) -> set[Point]:
    """Return the keys that can have made an ECDSA signature (SEC 1, section 4.1.6)."""
    r, s = decode_dss_signature(signature)
    hashed = int.from_bytes(hashlib.sha256(message).digest(), "big")
    y = pow(r**3 - 3 * r + B, (P + 1) // 4, P)
    rest = times(-hashed % N, G)
    return {times(pow(r, -1, N), add(times(s, (r, root)), rest)) for root in (y, P - y)}


@pytest.fixture(scope="module")
def evidence(vectors: Path) -> dict[str, Any]:
    return {name: json.loads((vectors / f"quotes/guard-{name}-1.json").read_text()) for name in ("good", "failed")}


@pytest.fixture(scope="module")
def key(evidence: dict[str, Any]) -> ec.EllipticCurvePublicKey:
    found = []
    for one in evidence.values():
        signature = parse_signature(base64.b64decode(one["signature"]))
        found.append(signers(base64.b64decode(one["quote"]), signature.value))
    (common,) = found[0] & found[1]
    assert common is not None
    return ec.EllipticCurvePublicNumbers(*common, ec.SECP256R1()).public_key()


@pytest.mark.parametrize(("name", "left"), [("good", ()), ("failed", (0,))])
def test_both_quotes_are_genuine_and_one_of_the_logs_does_not_lead_to_pcr_0(
    evidence: dict[str, Any], key: ec.EllipticCurvePublicKey, name: str, left: tuple[int, ...]
) -> None:
    found = evidence[name]
    message, signature = base64.b64decode(found["quote"]), parse_signature(base64.b64decode(found["signature"]))
    verify_signature(key, signature, message)
    quote = parse_quote(message)
    values = {int(pcr): base64.b64decode(value) for pcr, value in found["pcrs"].items()}
    assert pcr_digest(quote, {"sha256": values}, signature.scheme.hash_name) == quote.pcr_digest
    log = event_log.parse(base64.b64decode(found["firmware"]["event_log"]["data"]))
    assert log is not None
    # What this evidence calls PCR 8 is zero although the log extends it, in both.
    assert set(unexplained(replay(log, None, "sha256").values, values)) - {8} == set(left)


def test_each_quote_changed_on_its_way_is_refused_with_its_own_reason(
    evidence: dict[str, Any], key: ec.EllipticCurvePublicKey
) -> None:
    for found in evidence.values():
        message = base64.b64decode(found["quote"])
        signature = parse_signature(base64.b64decode(found["signature"]))
        values = {int(pcr): base64.b64decode(value) for pcr, value in found["pcrs"].items()}
        with pytest.raises(AppraisalError, match="bad-signature"):
            verify_signature(key, signature, message[:-1] + bytes([message[-1] ^ 1]))
        quote = parse_quote(message)
        swapped = {**values, 0: values[7], 7: values[0]}
        assert pcr_digest(quote, {"sha256": swapped}, "sha256") != quote.pcr_digest
        with pytest.raises(AppraisalError, match="pcr-values"):
            pcr_digest(quote, {"sha256": {pcr: value for pcr, value in values.items() if pcr != 3}}, "sha256")
        with pytest.raises(AppraisalError, match="pcr-values"):
            pcr_digest(quote, {"sha256": values, "sha384": {0: bytes(48)}}, "sha256")
