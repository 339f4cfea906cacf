# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Quotes that TPMs of real machines and clouds made, each as what a verifier is given and what it asked for."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Callable, Mapping, Optional, Union

from ansible_collections.cvm.fde.plugins.module_utils.tpm import templates as tpm
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.quote import VerifiedQuote, verify_quote
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import (
    PublicArea,
    Scheme,
    Signature,
    VerifyingKey,
    parse_public,
    parse_signature,
)
from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.appraisal.encoding import (
    AK_ATTRIBUTES,
    AZURE_AK_ATTRIBUTES,
    ecc_area,
    rsa_area,
)
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

RSASSA = Scheme(tpm.ALG_RSASSA, "sha256")
ECDSA = Scheme(tpm.ALG_ECDSA, "sha256")
#: The nonces that were asked for, where they are stated nowhere but in what was captured.
KEYLIME_NONCE = bytes.fromhex("db1db298db6d60e6385b7231743e9c3056a18003")
TRUSTEE_NONCE = bytes.fromhex(
    "a04182b506878d4f29b91ee606a71a0d3361ccf1b22db20c98adcaa537bea393ef0e41a18b3569ab678f1497fbc5c120"
).ljust(64, b"\0")
GUARD_NONCES = {
    "good": bytes.fromhex("57cd4f0b9fbe528a1d23f04d45f1bb0a9fc25a01296ea098ca083b705c8eaa85"),
    "failed": bytes.fromhex("078fec8ef00405c11b8b3cef400a8ae40d0300347f10292f5b20f9964334c8e8"),
}


@dataclass(frozen=True)
class Sample:
    """A quote of a real machine, and what its verifier asked for.

    ``key`` is a TPMT_PUBLIC where one is at hand or follows from the platform's template, else the bare key.
    """

    key: Union[PublicArea, VerifyingKey]
    attest: bytes
    signature: Union[bytes, Signature]
    nonce: bytes
    values: Mapping[str, Mapping[int, bytes]]
    selection: Mapping[str, frozenset[int]]
    endorsement: Optional[PublicArea] = None
    #: The firmware's log, where it was captured with the quote.
    log: bytes = field(default=b"", repr=False)

    def verify(self) -> VerifiedQuote:
        """Judge it by the collection's own code, as the verifier does that asked for it."""
        return verify_quote(
            self.key, self.attest, self.signature, self.nonce, self.selection, self.values, self.endorsement
        )


def keylime(vectors: Path) -> Sample:
    folder = vectors / "quotes" / "keylime"
    # tpm2-tools' files: a TPM2B_PUBLIC, a bare TPMS_ATTEST, a TPMT_SIGNATURE, and the values in the C structures'
    # own layout.
    raw = (folder / "quotepcr.out").read_bytes()
    (digests,) = struct.unpack_from("<I", raw, 132 + 4)
    pcrs, place, values = (15, 16, 22), 132 + 4 + 4, {}
    assert digests == 3
    for pcr in pcrs:
        (size,) = struct.unpack_from("<H", raw, place)
        values[pcr] = raw[place + 2 : place + 2 + size]
        place += 66
    attestation, endorsement = (parse_public((folder / name).read_bytes()[2:]) for name in ("ak.pub", "ek.pub"))
    attest, signature = ((folder / name).read_bytes() for name in ("quote.out", "quotesig.out"))
    selection = {"sha256": frozenset(pcrs)}
    return Sample(attestation, attest, signature, KEYLIME_NONCE, {"sha256": values}, selection, endorsement)


def azure(vectors: Path, name: str, nonce: Optional[bytes] = b"challenge") -> Sample:
    found = json.loads((vectors / "quotes" / name).read_text())
    hcl = base64.urlsafe_b64decode(found["hcl_report"] + "==")
    start = 32 + 1184
    (size,) = struct.unpack_from("<I", hcl, start + 16)
    runtime = json.loads(hcl[start + 20 : start + 20 + size])
    key = next(key for key in runtime["keys"] if key["kid"] == "HCLAkPub")
    quote = found["tpm_quote"]
    signature = Signature(RSASSA, bytes.fromhex(quote["signature"]))
    # The later verifiers ask for the nonce in the report as well, which carries 64 bytes.
    nonce = nonce or bytes.fromhex(runtime["user-data"]).rstrip(b"\0")
    modulus = int.from_bytes(base64.urlsafe_b64decode(key["n"] + "=="), "big")
    attest, values = bytes.fromhex(quote["message"]), [bytes.fromhex(value) for value in quote["pcrs"]]
    return all_pcrs(rsa_area(AZURE_AK_ATTRIBUTES, modulus), attest, signature, nonce, "sha256", values)


def vaportpm(vectors: Path, name: str, bank: str) -> Sample:
    found = json.loads((vectors / "quotes" / name).read_text())
    point, quote = found["ak_pubkeys"]["ecc_p256"], found["attestation"]["tpm"]["ecc_p256"]
    key = ecc_area(AK_ATTRIBUTES, int(point["x"], 16), int(point["y"], 16))
    values = [bytes.fromhex(found["pcrs"][bank][str(pcr)]) for pcr in range(24)]
    signature = Signature(ECDSA, bytes.fromhex(quote["signature"]))
    attest, nonce = bytes.fromhex(quote["attest_data"]), bytes.fromhex(found["nonce"])
    return all_pcrs(key, attest, signature, nonce, bank, values)


def trustee(vectors: Path) -> Sample:
    found = json.loads((vectors / "quotes" / "trustee-tpm-evidence.json").read_text())
    key: Any = load_der_public_key(base64.b64decode(found["ak_public"]))
    attest, signature = (base64.b64decode(found["tpm_quote"][name]) for name in ("message", "signature"))
    values = [bytes.fromhex(value) for value in found["tpm_quote"]["pcrs"]]
    return all_pcrs(key, attest, signature, TRUSTEE_NONCE, "sha256", values)


def all_pcrs(key: Any, attest: bytes, signature: Any, nonce: bytes, bank: str, values: list[bytes]) -> Sample:
    assert len(values) == 24
    return Sample(
        key, attest, signature, nonce, {bank: dict(enumerate(values))}, {bank: frozenset(range(24))}
    )  # fmt: skip


def guard(vectors: Path, name: str) -> Sample:
    """Return one of two quotes by one machine, which state neither its key nor the nonce that was asked for."""
    found = json.loads((vectors / f"quotes/guard-{name}-1.json").read_text())
    attest, signature = base64.b64decode(found["quote"]), base64.b64decode(found["signature"])
    values = {int(pcr): base64.b64decode(value) for pcr, value in found["pcrs"].items()}
    log = base64.b64decode(found["firmware"]["event_log"]["data"])
    return Sample(
        guard_key(vectors), attest, signature, GUARD_NONCES[name], {"sha256": values},
        {"sha256": frozenset(range(9))}, log=log,
    )  # fmt: skip


SAMPLES: dict[str, Callable[[Path], Sample]] = {
    "keylime": keylime,
    "azure-snp-v1": lambda vectors: azure(vectors, "azure-snp/evidence-v1.json"),
    "azure-snp-v2": lambda vectors: azure(vectors, "azure-snp/evidence-v2.json", None),
    "azure-tdx-v1": lambda vectors: azure(vectors, "azure-tdx/evidence-v1.json"),
    "aws-nitrotpm": lambda vectors: vaportpm(vectors, "aws-nitrotpm.json", "sha384"),
    "gcp-sev": lambda vectors: vaportpm(vectors, "gcp-sev.json", "sha256"),
    "trustee": trustee,
    "guard-good": lambda vectors: guard(vectors, "good"),
    "guard-failed": lambda vectors: guard(vectors, "failed"),
}


# --- the key of the evidence that does not hold it
#
# It follows from the signatures themselves: each admits two keys, and one key only can have made both.

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


@cache
def guard_key(vectors: Path) -> ec.EllipticCurvePublicKey:
    found = []
    for name in ("good", "failed"):
        one = json.loads((vectors / f"quotes/guard-{name}-1.json").read_text())
        signature = parse_signature(base64.b64decode(one["signature"]))
        found.append(signers(base64.b64decode(one["quote"]), signature.value))
    (common,) = found[0] & found[1]
    assert common is not None
    return ec.EllipticCurvePublicNumbers(*common, ec.SECP256R1()).public_key()
