# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""AWS: the hypervisor's document is believed while it is fresh, and only for the PCRs and the key that it names."""

from __future__ import annotations

import dataclasses
import datetime
import json

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.nitrotpm import parse_document
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.aws import AwsNitroTpm
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.trust import RoadName
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

PATH = "quotes/aws-nitrotpm.json"
MADE = datetime.datetime(2026, 2, 3, 10, 12, 2, tzinfo=datetime.timezone.utc)
SECOND = datetime.timedelta(seconds=1)
NONCE = bytes(range(32))
VALUES = {"sha384": {pcr: bytes([pcr]) * 48 for pcr in range(24)}}


@pytest.fixture
def real(captured):
    attestation, attester = captured.vaportpm(PATH)
    document = bytes.fromhex(attestation["nitro"]["document"])
    return AwsNitroTpm(document, captured.authorities("quotes/aws-nitro-root.pem")), attester


def test_the_captured_document_is_good_when_it_was_made(real) -> None:
    road, attester = real
    trust = road.establish(attester, MADE)
    assert trust.road is RoadName.AWS_NITROTPM
    assert trust.host is not None and trust.host.instance == "i-01cfb383223e42522"
    assert trust.ek is None
    assert len(trust.certificates) == 5
    assert {remark.code for remark in trust.not_checked} == {"revocation", "key-in-tpm"}
    json.dumps(trust.document())


def test_the_captured_document_is_good_while_it_is_fresh_and_expired_later(real, refused) -> None:
    road, attester = real
    road.establish(attester, MADE + 299 * SECOND)
    road.establish(attester, MADE - 59 * SECOND)
    for code, offset in (
        ("stale", 302),
        ("stale", 3 * 3600 - 60),
        ("expired", 3 * 3600 + 60),
        ("expired", 10**8),
        ("from-the-future", -61),
    ):
        with refused(code):
            road.establish(attester, MADE + offset * SECOND)


def test_a_longer_age_does_not_outlive_the_certificate(real, refused) -> None:
    road, attester = real
    patient = dataclasses.replace(road, maximum_age=datetime.timedelta(days=1))
    patient.establish(attester, MADE + datetime.timedelta(hours=2))
    with refused("expired"):
        patient.establish(attester, MADE + datetime.timedelta(hours=4))


def test_any_changed_byte_of_the_captured_document_is_refused(real, flip) -> None:
    road, attester = real
    for place in range(0, len(road.document), 7):
        with pytest.raises(AppraisalError):
            dataclasses.replace(road, document=flip(road.document, place)).establish(attester, MADE)


def test_a_captured_document_that_is_cut_anywhere_is_refused(real, refused) -> None:
    road, attester = real
    for size in range(0, len(road.document), 11):
        with refused("malformed"):
            dataclasses.replace(road, document=road.document[:size]).establish(attester, MADE)


def test_another_nonce_key_value_and_bank_are_refused_each_for_itself(real, attester, refused, flip) -> None:
    road, shown = real
    with refused("other-nonce"):
        road.establish(dataclasses.replace(shown, nonce=flip(shown.nonce, 0)), MADE)
    with refused("other-nonce"):
        road.establish(dataclasses.replace(shown, nonce=shown.nonce + b"\0"), MADE)
    with refused("other-key"):
        road.establish(attester(nonce=shown.nonce, values=shown.values), MADE)
    for pcr in (0, 11, 23):
        changed = {**shown.values["sha384"], pcr: flip(shown.values["sha384"][pcr], 47)}
        with refused("pcr-values"):
            road.establish(dataclasses.replace(shown, values={"sha384": changed}), MADE)
    for values in ({}, {"sha256": {}}, {**shown.values, "sha256": {0: bytes(32)}}):
        with refused("pcrs-not-vouched"):
            road.establish(dataclasses.replace(shown, values=values), MADE)


def test_another_root_is_refused(real, authority, refused) -> None:
    road, attester = real
    with refused("no-chain"):
        dataclasses.replace(road, authorities=[authority.root("aws.nitro-enclaves").certificate]).establish(
            attester, MADE
        )
    with refused("no-chain"):
        dataclasses.replace(road, authorities=[]).establish(attester, MADE)


# --- made here


@pytest.fixture(scope="module")
def machine(nitro_machine):
    return nitro_machine()


@pytest.fixture(scope="module")
def shown(attester):
    return attester(nonce=NONCE, values=VALUES)


def point(shown) -> bytes:
    return shown.ak.key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


@pytest.fixture
def road(machine, shown, encode_cbor):
    """Make the road over a document with these changes."""

    def make(drop: str = "", open_map: bool = False, **changes):
        payload = machine.payload(point(shown), NONCE, **changes)
        payload.pop(drop, None)
        return AwsNitroTpm(machine.document(encode_cbor(payload, open_map)), [machine.root.certificate])

    return make


def test_a_document_is_good_tagged_or_not_and_in_either_form_of_map(road, shown, now) -> None:
    for made in (road(), road(open_map=True)):
        made.establish(shown, now)
        dataclasses.replace(made, document=b"\xd2" + made.document).establish(shown, now)


def test_the_key_may_be_given_in_three_forms(road, shown, now, refused) -> None:
    spki = shown.ak.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for form in (point(shown), spki, shown.ak.raw):
        road(public_key=form).establish(shown, now)
    for form in (None, b"", point(shown)[1:], shown.ak.name):
        with refused("other-key"):
            road(public_key=form).establish(shown, now)


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("malformed", {"drop": "module_id"}),
        ("malformed", {"drop": "cabundle"}),
        ("malformed", {"drop": "nitrotpm_pcrs"}),
        ("other-nonce", {"drop": "nonce"}),
        ("other-key", {"drop": "public_key"}),
        ("malformed", {"another": 1}),
        ("malformed", {"module_id": "i-0123456789abcdef0-enc0123456789abcdef"}),
        ("malformed", {"module_id": b"i-0123456789abcdef0-tpm0000000000000000"}),
        ("malformed", {"module_id": "i-0123456789abcdef0-tpm0000000000000000\n"}),
        ("other-instance", {"module_id": "i-0123456789abcdef1-tpm0000000000000000"}),
        ("unsupported", {"digest": "SHA256"}),
        ("unsupported", {"digest": None}),
        ("malformed", {"timestamp": 0}),
        ("malformed", {"timestamp": -1}),
        ("malformed", {"timestamp": 1 << 63}),
        ("malformed", {"timestamp": "now"}),
        ("malformed", {"nitrotpm_pcrs": []}),
        ("malformed", {"nitrotpm_pcrs": {24: bytes(48)}}),
        ("malformed", {"nitrotpm_pcrs": {"0": bytes(48)}}),
        ("malformed", {"nitrotpm_pcrs": {0: bytes(32)}}),
        ("pcr-values", {"nitrotpm_pcrs": {0: bytes(48)}}),
        ("malformed", {"certificate": b""}),
        ("malformed", {"certificate": "text"}),
        ("malformed", {"certificate": bytes(16380)}),
        ("malformed", {"cabundle": []}),
        ("malformed", {"cabundle": {}}),
        ("malformed", {"cabundle": [1]}),
        ("malformed", {"cabundle": [b""] * 7}),
        ("malformed", {"nonce": bytes(1025)}),
        ("malformed", {"user_data": "text"}),
        ("malformed", {"public_key": [b""]}),
    ],
)
def test_a_signed_document_of_another_content_is_refused(road, shown, now, refused, code, changes) -> None:
    with refused(code):
        road(**changes).establish(shown, now)


def test_a_cut_bundle_is_refused(road, machine, shown, now, refused) -> None:
    with refused("no-chain"):
        road(cabundle=[machine.root.der]).establish(shown, now)


def test_a_key_twice_in_the_signed_payload_is_refused(machine, shown, encode_cbor, now, refused) -> None:
    payload = encode_cbor(machine.payload(point(shown), NONCE), True)
    doubled = payload[:-1] + encode_cbor("nonce") + encode_cbor(bytes(32)) + b"\xff"
    with refused("malformed"):
        AwsNitroTpm(machine.document(doubled), [machine.root.certificate]).establish(shown, now)


@pytest.mark.parametrize("extra", [b"\0", b"\xf6", b"\xff"])
def test_bytes_after_document_or_payload_are_refused(machine, shown, encode_cbor, now, refused, extra) -> None:
    payload = encode_cbor(machine.payload(point(shown), NONCE))
    for raw in (machine.document(payload) + extra, machine.document(payload + extra)):
        with refused("malformed"):
            AwsNitroTpm(raw, [machine.root.certificate]).establish(shown, now)


@pytest.mark.parametrize("protected", [b"", b"\xa0", b"\xa1\x01\x26", b"\xa2\x01\x38\x22\x01\x38\x22"])
def test_another_algorithm_in_the_header_is_refused(machine, shown, encode_cbor, now, protected) -> None:
    payload = encode_cbor(machine.payload(point(shown), NONCE))
    with pytest.raises(AppraisalError) as caught:
        AwsNitroTpm(machine.document(payload, protected), [machine.root.certificate]).establish(shown, now)
    assert caught.value.code in ("unsupported", "malformed")


def test_the_certificate_must_be_of_this_nitrotpm_and_no_authority(nitro_machine, shown, encode_cbor, now, refused):
    other = nitro_machine("i-0123456789abcdef1-tpm0000000000000000.eu-central-1.aws")
    document = other.document(encode_cbor(other.payload(point(shown), NONCE)))
    with refused("other-instance"):
        AwsNitroTpm(document, [other.root.certificate]).establish(shown, now)
    machine = nitro_machine()
    machine.leaf = machine.zone.issue(f"{machine.MODULE}.x", authority=True)
    document = machine.document(encode_cbor(machine.payload(point(shown), NONCE)))
    with refused("not-a-nitrotpm"):
        AwsNitroTpm(document, [machine.root.certificate]).establish(shown, now)
    machine.leaf = machine.zone.issue(f"{machine.MODULE}.x", curve=ec.SECP256R1())
    payload = encode_cbor(machine.payload(point(shown), NONCE))
    document = machine.document(payload, key=ec.generate_private_key(ec.SECP384R1()))
    with refused("not-a-nitrotpm"):
        AwsNitroTpm(document, [machine.root.certificate]).establish(shown, now)


def test_a_signature_by_another_key_is_refused(machine, shown, encode_cbor, now, refused) -> None:
    payload = encode_cbor(machine.payload(point(shown), NONCE))
    document = machine.document(payload, key=ec.generate_private_key(ec.SECP384R1()))
    with refused("bad-document-signature"):
        AwsNitroTpm(document, [machine.root.certificate]).establish(shown, now)


def test_the_outside_must_be_cose_sign1(encode_cbor, refused) -> None:
    header, body, signature = b"\xa1\x01\x38\x22", b"\xa0", bytes(96)
    for outside in (
        [],
        [header, {}, body],
        [header, {}, body, signature, 0],
        {0: header},
        [header, {1: 2}, body, signature],
        [header, [], body, signature],
        ["text", {}, body, signature],
        [header, {}, None, signature],
        [header, {}, body, bytes(95)],
        [header, {}, body, "text"],
        [header, {}, body, signature],
    ):
        with refused("malformed"):
            parse_document(encode_cbor(outside))
    with refused("malformed"):
        parse_document(encode_cbor([header, {}, bytes(20000), signature]))
