# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Google: the platform's certificate says which instance an attestation key is of."""

from __future__ import annotations

import dataclasses
import json

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.gcp import GcpAkCertificate
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.trust import RoadName
from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.appraisal.encoding import der
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

PATH = "quotes/gcp-sev.json"
OID = "1.3.6.1.4.1.11129.2.1.21"


@pytest.fixture
def real(captured):
    attestation, attester = captured.vaportpm(PATH)
    chain = x509.load_pem_x509_certificates(attestation["gcp"]["ak_cert_chain"].encode())
    leaf, *between = (certificate.public_bytes(Encoding.DER) for certificate in chain)
    return GcpAkCertificate(leaf, between, captured.authorities("quotes/gcp-ekak-root.pem")), attester


def test_the_captured_machine_is_good_and_named(real, now) -> None:
    road, attester = real
    trust = road.establish(attester, now)
    assert trust.road is RoadName.GCP_AK_CERTIFICATE
    assert trust.host is not None
    assert trust.host.instance == "3414240648225485836"
    assert trust.host.details == {
        "zone": "us-central1-f",
        "project": "lockboot",
        "project_number": 232923608972,
        "instance_name": "instance-20260202-065609",
    }
    assert trust.certificates[-1] == "594759594b9b61524f6c8ef668f7177f7b9066bc0674f2f49fe9e052be78beb2"
    assert len(trust.certificates) == 3
    json.dumps(trust.document())


def test_another_key_signer_time_chain_and_root_are_refused(real, attester, authority, now, refused) -> None:
    road, shown = real
    with refused("other-key"):
        road.establish(attester(), now)
    with refused("other-signer"):
        road.establish(dataclasses.replace(shown, signer=shown.signer[:-1] + b"\0"), now)
    with refused("not-yet-valid"):
        road.establish(shown, now.replace(year=2025))
    with refused("expired"):
        road.establish(shown, now.replace(year=2057))
    with pytest.raises(AppraisalError, match="no-chain: .*: give Google's intermediate"):
        dataclasses.replace(road, intermediates=[]).establish(shown, now)
    # What a machine collects is the certificate alone; the intermediate comes from the operator, beside the root.
    between = [x509.load_der_x509_certificate(raw) for raw in road.intermediates]
    alone = dataclasses.replace(road, intermediates=[], authorities=[*road.authorities, *between])
    assert len(alone.establish(shown, now).certificates) == 2
    with refused("no-chain"):
        dataclasses.replace(road, authorities=[authority.root("EK/AK CA Root").certificate]).establish(shown, now)
    with refused("other-key"):
        dataclasses.replace(road, certificate=road.intermediates[0]).establish(shown, now)


def test_any_changed_byte_of_what_was_signed_is_refused(real, flip, now) -> None:
    road, attester = real
    signed = len(x509.load_der_x509_certificate(road.certificate).tbs_certificate_bytes)
    for place in range(signed + 4):
        with pytest.raises(AppraisalError):
            dataclasses.replace(road, certificate=flip(road.certificate, place)).establish(attester, now)


@pytest.mark.parametrize("attributes", [0x40072, 0x50070, 0x50062, 0x50052, 0x10072, 0x70072])
def test_a_key_that_can_sign_anything_is_refused_before_all_else(real, ecc_key, attester, now, refused, attributes):
    road, _shown = real
    with refused("bad-attestation-key"):
        road.establish(attester(ecc_key(attributes)), now)


# --- made here


def text(value: bytes) -> bytes:
    return der(0x0C, value)


TRUE, FALSE = der(1, b"\xff"), der(1, b"\0")
FLAGS = der(0xA0, der(2, b"\0")) + der(0xA1, TRUE) + der(0xA2, TRUE)


def instance(flags: bytes = FLAGS, middle: bytes = text(b"project") + der(2, b"\x07"), explicit: int = 0xA0) -> bytes:
    inside = text(b"zone") + der(2, b"\x05") + middle + text(b"name")
    return der(0x30, inside + der(explicit, der(0x30, flags)))


@pytest.fixture
def road(authority, extension, attester):
    """Make a road over a certificate with this extension, and the machine that it is of."""
    root, shown = authority.root(), attester()

    def make(raw=None, extensions=(), critical=False, **changes):
        listed = ([] if raw is None else [(extension(OID, raw), critical)]) + list(extensions)
        leaf = root.issue("instance", public=shown.ak.key, extensions=listed, **changes)
        return GcpAkCertificate(leaf.der, [], [root.certificate]), shown

    return make


def test_a_certificate_from_production_is_good(road, now) -> None:
    for flags in (FLAGS, der(0xA1, TRUE)):
        made, shown = road(instance(flags), critical=True)
        trust = made.establish(shown, now)
        assert trust.host is not None and trust.host.instance == "7"


@pytest.mark.parametrize(
    ("code", "raw"),
    [
        ("no-instance", None),
        ("not-production", instance(der(0xA0, der(2, b"\0")))),
        ("not-production", instance(der(0xA1, FALSE))),
        ("not-production", instance(b"")),
        ("not-production", der(0x30, text(b"z") + der(2, b"\5") + text(b"p") + der(2, b"\7") + text(b"n"))),
        ("malformed", b""),
        ("malformed", instance() + b"\0"),
        ("malformed", instance()[:-1]),
        ("malformed", instance(explicit=0xA1)),
        ("malformed", instance(der(0xA1, der(1, b"\1")))),
        ("malformed", instance(der(0xA1, TRUE + TRUE))),
        ("malformed", instance(der(0xA1, FALSE) + der(0xA1, TRUE))),
        ("malformed", instance(der(0xA2, TRUE) + der(0xA1, TRUE))),
        ("malformed", instance(FLAGS + b"\0")),
        ("malformed", instance(middle=text(b"project") + der(2, b"\xff"))),
        ("malformed", instance(middle=text(b"project") + der(2, b""))),
        ("malformed", instance(middle=text(b"project") + der(2, b"\0\7"))),
        ("malformed", instance(middle=text(b"pro\nject") + der(2, b"\7"))),
        ("malformed", instance(middle=text(b"pro\xc3\xbcject") + der(2, b"\7"))),
        ("malformed", instance(middle=b"\x0c\x80" + der(2, b"\7"))),
        ("malformed", instance(middle=b"\x0c\x81\x07project" + der(2, b"\7"))),
        ("malformed", instance(middle=b"\x0c\x84\xff\xff\xff\xff")),
    ],
)
def test_a_certificate_that_names_no_instance_of_production_is_refused(road, now, refused, code, raw) -> None:
    made, shown = road(raw)
    with refused(code):
        made.establish(shown, now)


def usage(**true: bool) -> x509.KeyUsage:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    names += ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{name: true.get(name, False) for name in names})


def test_a_certificate_for_another_purpose_is_refused(road, extension, now, refused) -> None:
    endorsement = x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.23.133.8.1")])
    for changes in (
        {"authority": True},
        {"extensions": [(usage(key_encipherment=True), True)]},
        {"extensions": [(endorsement, False)]},
    ):
        made, shown = road(instance(), **changes)
        with refused("not-an-ak-certificate"):
            made.establish(shown, now)
    made, shown = road(instance(), extensions=[(extension("1.2.3.4", b"\5\0"), True)])
    with refused("unsupported"):
        made.establish(shown, now)


def test_a_certificate_that_names_the_purpose_is_good(road, now) -> None:
    purpose = x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.23.133.8.3")])
    made, shown = road(instance(), extensions=[(purpose, False), (usage(digital_signature=True), True)])
    made.establish(shown, now)
