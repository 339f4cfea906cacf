# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates of endorsement keys, good and nearly good."""

from __future__ import annotations

import base64
import datetime
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Optional

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.tpm import templates
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.endorsement import (
    load_authorities,
    parse_certificate,
    verify_chain,
    verify_endorsement,
)
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import parse_public
from ansible_collections.cvm.fde.tests.unit.plugins.conftest import timeless
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.timezone.utc)
DAY = datetime.timedelta(days=1)
EK = ObjectIdentifier("2.23.133.8.1")
AK = ObjectIdentifier("2.23.133.8.3")
TPM = x509.SubjectAlternativeName(
    [
        x509.DirectoryName(
            x509.Name(
                [
                    x509.NameAttribute(ObjectIdentifier(f"2.23.133.2.{number}"), f"id:0000000{number}")
                    for number in (1, 2, 3)
                ]
            )
        )
    ]
)
KEY = rsa.generate_private_key(65537, 2048)
PUBLIC = parse_public(templates.EK_RSA_2048.fixed + b"\1\0" + KEY.public_key().public_numbers().n.to_bytes(256, "big"))


@dataclass
class Made:
    """A certificate and the key of its subject."""

    certificate: x509.Certificate
    key: Any


@dataclass
class Recipe:
    """A certificate to make; tests change one thing of a good one."""

    subject: str = ""
    purposes: tuple[ObjectIdentifier, ...] = (EK,)
    names: Optional[x509.SubjectAlternativeName] = TPM
    ca: Optional[bool] = False
    path_length: Optional[int] = None
    start: datetime.datetime = NOW - 10 * DAY
    end: datetime.datetime = NOW + 10 * DAY
    encipher: bool = True
    cert_sign: bool = False
    extra: list[tuple[x509.ExtensionType, bool]] = field(default_factory=list)
    digest: Any = field(default_factory=hashes.SHA256)
    key: Any = KEY

    def make(self, issuer: Optional[Made] = None) -> Made:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.subject)] if self.subject else [])
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer.certificate.subject if issuer else name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.start)
            .not_valid_after(self.end)
        )
        if self.ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(self.ca, self.path_length), critical=True)
        usage = x509.KeyUsage(False, False, self.encipher, False, False, self.cert_sign, False, False, False)
        builder = builder.add_extension(usage, critical=True)
        if self.purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(self.purposes), critical=False)
        if self.names is not None:
            builder = builder.add_extension(self.names, critical=True)
        for extension, critical in self.extra:
            builder = builder.add_extension(extension, critical)
        return Made(builder.sign(issuer.key if issuer else self.key, self.digest), self.key)


def authority(subject: str, issuer: Optional[Made] = None, **changes: Any) -> Made:
    recipe = Recipe(
        subject=subject,
        purposes=(),
        names=None,
        ca=True,
        encipher=False,
        cert_sign=True,
        key=ec.generate_private_key(ec.SECP256R1()),
    )
    return replace(recipe, **changes).make(issuer)


ROOT = authority("root")
INTERMEDIATE = authority("intermediate", ROOT)


def verify(leaf: Made, authorities: tuple[Made, ...] = (ROOT,), intermediates: tuple[Made, ...] = ()) -> int:
    chain = verify_endorsement(
        parse_certificate(leaf.certificate.public_bytes(Encoding.DER)),
        PUBLIC,
        [made.certificate for made in authorities],
        [made.certificate for made in intermediates],
        NOW,
    )
    return len(chain)


def test_a_certificate_by_a_given_authority_is_good() -> None:
    assert verify(Recipe().make(ROOT)) == 2


def test_a_given_intermediate_is_as_good_as_its_root() -> None:
    assert verify(Recipe().make(INTERMEDIATE), (INTERMEDIATE,)) == 2


def test_intermediates_may_come_from_anyone() -> None:
    assert verify(Recipe().make(INTERMEDIATE), intermediates=(INTERMEDIATE,)) == 3
    with pytest.raises(AppraisalError, match="no-chain"):
        verify(Recipe().make(INTERMEDIATE))


def test_an_intermediate_from_anyone_is_no_authority() -> None:
    own = authority("root")
    with pytest.raises(AppraisalError, match="no-chain"):
        verify(Recipe().make(own), intermediates=(own,))


def critical() -> list[tuple[x509.ExtensionType, bool]]:
    return [(x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b""), True)]


BAD: dict[str, tuple[Callable[[], Made], str]] = {
    "of another key": (lambda: Recipe(key=rsa.generate_private_key(65537, 2048)).make(ROOT), "other-key"),
    "of an authority": (lambda: Recipe(ca=True).make(ROOT), "not-an-ek-certificate"),
    "without a purpose": (lambda: Recipe(purposes=()).make(ROOT), "not-an-ek-certificate"),
    "of an attestation key": (lambda: Recipe(purposes=(AK,)).make(ROOT), "not-an-ek-certificate"),
    "without a name of a TPM": (lambda: Recipe(names=None).make(ROOT), "not-an-ek-certificate"),
    "of a host": (
        lambda: Recipe(names=x509.SubjectAlternativeName([x509.DNSName("host")])).make(ROOT),
        "not-an-ek-certificate",
    ),
    "that does not allow to encrypt": (lambda: Recipe(encipher=False).make(ROOT), "not-an-ek-certificate"),
    "with a critical extension nobody knows": (lambda: Recipe(extra=critical()).make(ROOT), "unsupported"),
    "that is not valid yet": (lambda: Recipe(start=NOW + DAY).make(ROOT), "not-yet-valid"),
    "that has expired": (lambda: Recipe(end=NOW - DAY).make(ROOT), "expired"),
    "by an authority of the same name": (lambda: Recipe().make(authority("root")), "no-chain"),
    "that signed itself": (lambda: Recipe(subject="root").make(), "no-chain"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_certificate_is_refused(name: str) -> None:
    make, code = BAD[name]
    with pytest.raises(AppraisalError) as refused:
        verify(make())
    assert refused.value.code == code


HOSTS = x509.NameConstraints([x509.DNSName("example")], None)
BAD_ISSUERS: dict[str, tuple[dict[str, Any], str]] = {
    "that is none": ({"ca": False}, "no-chain"),
    "without basic constraints": ({"ca": None}, "no-chain"),
    "that may not sign certificates": ({"cert_sign": False}, "no-chain"),
    "with a critical extension nobody knows": ({"extra": critical()}, "no-chain"),
    "that has expired": ({"end": NOW - DAY}, "expired"),
    "that is not valid yet": ({"start": NOW + DAY}, "not-yet-valid"),
    "for servers only": ({"purposes": (ExtendedKeyUsageOID.SERVER_AUTH,)}, "other-purpose"),
    "of attestation keys only": ({"purposes": (AK,)}, "other-purpose"),
    "that may name only some hosts": ({"extra": [(HOSTS, False)]}, "unsupported"),
    "that may name only some hosts, critically": ({"extra": [(HOSTS, True)]}, "unsupported"),
}


@pytest.mark.parametrize("name", BAD_ISSUERS)
def test_an_authority_is_refused(name: str) -> None:
    changes, code = BAD_ISSUERS[name]
    issuer = authority("issuer", ROOT, **changes)
    for authorities, intermediates in (((ROOT,), (issuer,)), ((issuer,), ())):
        with pytest.raises(AppraisalError) as refused:
            verify(Recipe().make(issuer), authorities, intermediates)
        assert refused.value.code == code


@pytest.mark.parametrize(
    "purposes", [(EK,), (EK, ExtendedKeyUsageOID.SERVER_AUTH), (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)]
)
def test_an_authority_for_endorsement_keys_among_others_is_good(purposes: tuple[ObjectIdentifier, ...]) -> None:
    issuer = authority("issuer", ROOT, purposes=purposes)
    assert verify(Recipe().make(issuer), intermediates=(issuer,)) == 3
    assert verify(Recipe().make(issuer), (issuer,)) == 2


def renewed(subject: str, old: Made, issuer: Optional[Made] = None) -> Made:
    """Certify the key of an authority that has expired once more."""
    return authority(subject, issuer, key=old.key)


#: What an authority's other certificate, of the same name and key, says.
SIBLINGS: dict[str, dict[str, Any]] = {
    "an expired one": {"end": NOW - DAY},
    "one that is not valid yet": {"start": NOW + DAY},
    "one that is no authority": {"ca": False},
    "one for another purpose": {"purposes": (AK,)},
    "one that may not sign certificates": {"cert_sign": False},
    "one with names": {"extra": [(HOSTS, True)]},
}


@pytest.mark.parametrize("name", SIBLINGS)
def test_a_bad_certificate_beside_a_good_one_of_the_same_authority_stops_nothing(name: str) -> None:
    bad = authority("issuer", ROOT, **SIBLINGS[name])
    good = renewed("issuer", bad, ROOT)
    leaf = Recipe().make(good)
    for intermediates in ((bad, good), (good, bad)):
        assert verify(leaf, intermediates=intermediates) == 3
        # Both may be given as authorities, too.
        assert verify(leaf, intermediates) == 2


def test_a_bad_root_beside_its_renewed_one_stops_nothing() -> None:
    old = authority("root of old", end=NOW - DAY)
    new = renewed("root of old", old)
    for authorities in ((old, new), (new, old)):
        assert verify(Recipe().make(new), authorities) == 2


def test_where_every_chain_is_bad_the_reason_is_that_of_a_chain() -> None:
    old = authority("issuer", ROOT, end=NOW - DAY)
    other = authority("other", ROOT)
    for intermediates in ((old, other), (other, old)):
        with pytest.raises(AppraisalError, match="expired"):
            verify(Recipe().make(old), intermediates=intermediates)


def test_a_chain_for_no_named_purpose_takes_no_authority_that_names_one() -> None:
    """Chips, platforms and NitroTPMs have no purpose of their own: an authority that is bound to one is not theirs."""
    for purposes in ((EK,), (AK,), (ExtendedKeyUsageOID.SERVER_AUTH,)):
        issuer = authority("issuer", ROOT, purposes=purposes)
        leaf = Recipe(purposes=(), names=None).make(issuer).certificate
        with pytest.raises(AppraisalError, match="other-purpose"):
            verify_chain(leaf, [ROOT.certificate], [issuer.certificate], NOW)
    free = authority("issuer", ROOT)
    leaf = Recipe(purposes=(), names=None).make(free).certificate
    assert len(verify_chain(leaf, [ROOT.certificate], [free.certificate], NOW)) == 3


def test_a_path_length_is_kept() -> None:
    short = authority("short", path_length=0)
    middle = authority("middle", short)
    assert verify(Recipe().make(short), (short,)) == 2
    with pytest.raises(AppraisalError, match="no-chain"):
        verify(Recipe().make(middle), (short,), (middle,))


def test_a_chain_has_an_end() -> None:
    chain = [ROOT]
    for number in range(8):
        chain.append(authority(f"level {number}", chain[-1]))
    with pytest.raises(AppraisalError, match="no-chain"):
        verify(Recipe().make(chain[-1]), (ROOT,), tuple(chain[1:]))


def test_authorities_that_signed_each_other_do_not_keep_us_busy() -> None:
    first = authority("a")
    second = authority("b", first)
    crossed = Recipe(subject="a", purposes=(), names=None, ca=True, cert_sign=True, key=first.key).make(second)
    with pytest.raises(AppraisalError, match="no-chain"):
        verify(Recipe().make(second), (ROOT,), (first, second, crossed) * 3)


def test_a_sha1_signature_and_other_keys_are_refused() -> None:
    edwards = authority("edwards", key=ed25519.Ed25519PrivateKey.generate(), digest=None)
    with pytest.raises(AppraisalError, match="no-chain"):
        verify(Recipe(digest=None).make(edwards), (edwards,))


def test_what_is_no_certificate_is_refused() -> None:
    good = Recipe().make(ROOT).certificate.public_bytes(Encoding.DER)
    for data in (b"", b"\x30", good[:-1], good + b"\0", bytes(20000)):
        with pytest.raises(AppraisalError, match="malformed"):
            parse_certificate(data)
    for place in range(0, len(good), 7):
        changed = bytearray(good)
        changed[place] ^= 0xFF
        try:
            verify_chain(parse_certificate(bytes(changed)), [ROOT.certificate], [], NOW)
        except AppraisalError:
            continue
        pytest.fail(f"a change of byte {place} was not noticed")


def test_a_certificate_of_a_version_that_does_not_exist_is_refused() -> None:
    der = Recipe().make().certificate.public_bytes(Encoding.DER)
    # [0] EXPLICIT INTEGER 2 is version 3.
    changed = der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020107"), 1)
    assert changed != der
    with pytest.raises(AppraisalError, match="malformed: the certificate cannot be read"):
        parse_certificate(changed)
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(changed) + b"-----END CERTIFICATE-----\n"
    with pytest.raises(AppraisalError, match="bad-authority"):
        load_authorities(pem)


def test_a_certificate_with_a_date_of_no_calendar_is_refused() -> None:
    der = timeless(KEY.public_key())
    # The library takes it, and fails only when it is asked for the date.
    with pytest.raises(ValueError, match="year 0"):
        _asked = x509.load_der_x509_certificate(der).not_valid_before_utc
    with pytest.raises(AppraisalError, match="malformed: the certificate cannot be read"):
        parse_certificate(der)
    late = der.replace(b"20600101000000Z", b"00000102000000Z").replace(b"00000101000000Z", b"20550101000000Z")
    with pytest.raises(AppraisalError, match="malformed: the certificate cannot be read"):
        parse_certificate(late)
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
    with pytest.raises(AppraisalError, match="bad-authority"):
        load_authorities(pem)


def test_a_file_without_certificates_is_no_authority() -> None:
    assert len(load_authorities(ROOT.certificate.public_bytes(Encoding.PEM) * 2)) == 2
    for pem in (b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with pytest.raises(AppraisalError, match="bad-authority"):
            load_authorities(pem)
