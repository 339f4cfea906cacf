# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attacks on the proof of where the volume key was made, seen from the verifier."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.tpm import rounds
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.judgement import Verdict
from ansible_collections.cvm.fde.tests.attacks.catalogue import Kind, attack
from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.appraisal.encoding import sized
from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.appraisal.test_judgement import ask, failed
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature


@attack(
    kind=Kind.EVIDENCE,
    does="Answers without the evidence token",
    promise="A machine is trusted only with a proof of where its volume key was made",
    stops="The check `evidence_signature` fails: untrusted",
)
def test_a_machine_without_evidence_is_not_trusted(good: Any) -> None:
    result = good.change(token=None).appraise()
    assert "evidence_signature" in failed(result) and result.verdict is Verdict.UNTRUSTED


@attack(
    kind=Kind.EVIDENCE,
    does="Answers with the evidence token of another genuine instance of the same image",
    promise="Evidence speaks of the machine that shows it",
    stops="It was signed by the attestation key of another TPM, and claims another volume key: untrusted",
)
def test_the_evidence_of_another_instance_is_refused(good: Any, make_machine: Callable[..., Any], grounds: Any) -> None:
    other = ask(make_machine("evidence-of-another"), grounds)
    assert other.appraise().verdict is Verdict.TRUSTED
    result = good.change(token=other.evidence["token"]).appraise()
    assert "evidence_signature" in failed(result) and result.verdict is Verdict.UNTRUSTED


class Forger:
    """A software key in the form of the genuine attestation key, which signs whatever it is given."""

    def __init__(self, good: Any) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._token = good.token()
        numbers = self._key.public_key().public_numbers()
        genuine = base64.b64decode(self._token["ak"])
        # The unique field, twice 32 bytes with their lengths, is the end of a TPMT_PUBLIC of an ECC P-256 key.
        self.public = genuine[:-68] + sized(numbers.x.to_bytes(32, "big")) + sized(numbers.y.to_bytes(32, "big"))

    def claims(self) -> bytes:
        """Claims about a volume whose key the attacker has made."""
        claims = json.loads(base64.b64decode(self._token["claims"]))
        claims["volume_key_id"] = hashlib.sha256(b"a key that the attacker knows").hexdigest()
        return json.dumps(claims, sort_keys=True, separators=(",", ":")).encode()

    def quote(self, claims: bytes) -> dict[str, str]:
        """Return the genuine quote over other claims, signed by the software key."""
        attest = bytearray(base64.b64decode(self._token["quote"]["attest"]))
        (signer,) = struct.unpack_from(">H", attest, 6)
        place = 8 + signer + 2
        attest[place : place + 32] = hashlib.sha256(claims).digest()
        first, second = decode_dss_signature(self._key.sign(bytes(attest), ec.ECDSA(hashes.SHA256())))
        signature = struct.pack(">HH", 0x0018, 0x000B)
        signature += sized(first.to_bytes(32, "big")) + sized(second.to_bytes(32, "big"))
        return {"attest": rounds.encode(bytes(attest)), "signature": rounds.encode(signature)}


@attack(
    kind=Kind.EVIDENCE,
    does="Forges evidence for a volume of its own with a software key, with or without that key in the token",
    promise="Only a quote of the machine's own TPM counts",
    stops="The evidence must be signed by the attestation key that this TPM has just proved to hold: untrusted",
)
@pytest.mark.parametrize("own_key", [False, True])
def test_evidence_forged_with_a_software_key_is_refused(good: Any, own_key: bool) -> None:
    forger = Forger(good)
    claims = forger.claims()
    fields = {"claims": rounds.encode(claims), "quote": forger.quote(claims)}
    if own_key:
        fields["ak"] = rounds.encode(forger.public)
    result = good.change_token(**fields).appraise()
    assert "evidence_signature" in failed(result) and result.verdict is Verdict.UNTRUSTED
