# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Roads over the endorsement key, and the word of an operator."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import hmac

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.tpm import templates as tpm
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.credential import kdfa, kdfe
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.endorsement_key import (
    Activation,
    EkCertificate,
    PinnedEk,
)
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.first_use import Approval, FirstUse
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.trust import RoadName
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import parse_public
from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.appraisal.encoding import sized
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ObjectIdentifier

try:
    from cryptography.hazmat.decrepit.ciphers.modes import CFB
except ImportError:
    from cryptography.hazmat.primitives.ciphers.modes import CFB

EK_PURPOSE = x509.ExtendedKeyUsage([ObjectIdentifier("2.23.133.8.1")])
TPM_NAME = x509.SubjectAlternativeName(
    [
        x509.DirectoryName(
            x509.Name([x509.NameAttribute(ObjectIdentifier(f"2.23.133.2.{number}"), "x") for number in (1, 2, 3)])
        )
    ]
)


class Tpm:
    """The half of a TPM that TPM2_ActivateCredential needs, written after part 1 of the specification."""

    def __init__(self, kind: str) -> None:
        if kind == "rsa":
            self.key = rsa.generate_private_key(65537, 2048)
            unique = sized(self.key.public_key().public_numbers().n.to_bytes(256, "big"))
            self.ek = parse_public(tpm.EK_RSA_2048.fixed + unique)
        else:
            self.key = ec.generate_private_key(ec.SECP256R1())
            numbers = self.key.public_key().public_numbers()
            unique = sized(numbers.x.to_bytes(32, "big")) + sized(numbers.y.to_bytes(32, "big"))
            self.ek = parse_public(tpm.EK_ECC_P256.fixed + unique)

    def activate(self, credential, name: bytes) -> bytes:
        """Return the secret, or fail as the TPM does when the key's Name is not the one in the credential."""
        seed = self._seed(credential.secret[2:])
        outer, encrypted = credential.blob[4:36], credential.blob[36:]
        integrity = kdfa("sha256", seed, b"INTEGRITY", b"", b"", 256)
        assert hmac.compare_digest(outer, hmac.digest(integrity, encrypted + name, "sha256"))
        storage = kdfa("sha256", seed, b"STORAGE", name, b"", 128)
        decryptor = Cipher(algorithms.AES(storage), CFB(bytes(16))).decryptor()
        return (decryptor.update(encrypted) + decryptor.finalize())[2:]

    def _seed(self, encrypted: bytes) -> bytes:
        if isinstance(self.key, rsa.RSAPrivateKey):
            oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"IDENTITY\0")
            return self.key.decrypt(encrypted, oaep)
        x, y = encrypted[2:34], encrypted[36:68]
        point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\4" + x + y)
        shared = self.key.exchange(ec.ECDH(), point)
        ours = self.key.public_key().public_numbers().x.to_bytes(32, "big")
        return kdfe("sha256", shared, b"IDENTITY\0", x, ours, 256)


@pytest.fixture(scope="module", params=["rsa", "ecc"])
def device(request) -> Tpm:
    return Tpm(request.param)


@pytest.fixture(scope="module")
def maker(authority):
    return authority.root("TPM maker")


@pytest.fixture
def road(device, maker, attester):
    """A good road, and the machine that it is of."""
    shown = attester()
    activation, credential = Activation.begin(device.ek, shown.ak)
    answered = activation.answered(device.activate(credential, shown.ak.name))
    return EkCertificate(answered, certificate(maker, device), [maker.certificate]), shown


def certificate(maker, device, **changes) -> bytes:
    listed = changes.pop("extensions", [(EK_PURPOSE, False), (TPM_NAME, True)])
    return maker.issue("EK", public=device.key.public_key(), extensions=listed, **changes).der


def spki(key) -> str:
    return hashlib.sha256(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def test_certificate_and_activation_bind_the_key(road, device, now) -> None:
    made, shown = road
    trust = made.establish(shown, now)
    assert trust.road is RoadName.EK_CERTIFICATE
    assert trust.ek == spki(device.key)
    assert [binding.what for binding in trust.bindings] == ["attestation key", "endorsement key", "certificate"]
    assert len(trust.certificates) == 2


def test_without_the_answer_there_is_no_trust(road, now, refused, flip) -> None:
    made, shown = road
    for answer in (b"", flip(made.activation.answer, 0), made.activation.answer + b"\0", made.activation.answer[:-1]):
        with refused("not-activated"):
            dataclasses.replace(made, activation=made.activation.answered(answer)).establish(shown, now)


def test_an_empty_secret_is_never_the_answer(road, now, refused) -> None:
    made, shown = road
    empty = dataclasses.replace(made.activation, secret=b"", answer=b"")
    with refused("not-activated"):
        dataclasses.replace(made, activation=empty).establish(shown, now)


def test_the_answer_holds_for_one_attestation_key(road, attester, now, refused) -> None:
    made, _shown = road
    with refused("other-attestation-key"):
        made.establish(attester(), now)


def test_the_secret_is_in_no_representation(road) -> None:
    made, _shown = road
    assert repr(made.activation.secret) not in repr(made)


def test_the_certificate_must_be_of_this_key_and_of_an_endorsement_key(road, device, maker, now, refused) -> None:
    made, shown = road
    other = Tpm("ecc")
    with refused("other-key"):
        dataclasses.replace(made, certificate=certificate(maker, other)).establish(shown, now)
    for listed in ([], [(EK_PURPOSE, False)], [(TPM_NAME, True)]):
        with refused("not-an-ek-certificate"):
            raw = certificate(maker, device, extensions=listed)
            dataclasses.replace(made, certificate=raw).establish(shown, now)


def test_time_chain_and_root(road, authority, device, maker, now, refused) -> None:
    made, shown = road
    with refused("expired"):
        made.establish(shown, now + datetime.timedelta(days=2))
    with refused("not-yet-valid"):
        made.establish(shown, now - datetime.timedelta(days=2))
    with refused("no-chain"):
        dataclasses.replace(made, authorities=[authority.root("TPM maker").certificate]).establish(shown, now)
    between = maker.issue("between", authority=True)
    longer = dataclasses.replace(made, certificate=certificate(between, device), intermediates=[between.der])
    assert len(longer.establish(shown, now).certificates) == 3
    with refused("no-chain"):
        dataclasses.replace(longer, intermediates=[]).establish(shown, now)
    with refused("malformed"):
        dataclasses.replace(longer, intermediates=[between.der] * 7).establish(shown, now)


def test_no_credential_is_made_for_a_key_of_another_template(ecc_key, refused) -> None:
    with refused("bad-endorsement-key"):
        Activation.begin(ecc_key(), ecc_key())


# --- pinned


def test_a_pin_is_a_name_its_digest_or_that_of_the_key(road, device, now) -> None:
    made, shown = road
    name = device.ek.name.hex()
    for pin in (name, name.upper(), name[4:], spki(device.key)):
        trust = PinnedEk(made.activation, pin).establish(shown, now)
        assert trust.road is RoadName.PINNED_EK
        assert {remark.code for remark in trust.not_checked} == {"tpm-maker"}


def test_another_pin_or_no_answer_is_refused(road, device, now, refused) -> None:
    made, shown = road
    for pin in ("", "00", "\u00fc", device.ek.name.hex()[:-2], hashlib.sha256(b"other").hexdigest()):
        with refused("other-endorsement-key"):
            PinnedEk(made.activation, pin).establish(shown, now)
    with refused("not-activated"):
        PinnedEk(made.activation.answered(b""), spki(device.key)).establish(shown, now)


# --- first use


def approval(key: str, now: datetime.datetime, host: str = "web1") -> Approval:
    return Approval(host, key, "alice", now)


def test_an_approval_is_recorded_as_only_that(road, device, now) -> None:
    made, shown = road
    trust = FirstUse("web1", approval(spki(device.key), now), made.activation).establish(shown, now)
    assert trust.road is RoadName.FIRST_USE
    assert {remark.code for remark in trust.warnings} == {"first-use"}
    assert "alice" in trust.bindings[-1].how
    assert trust.certificates == () and trust.host is None


def test_an_attestation_key_alone_can_be_approved(attester, now) -> None:
    shown = attester()
    unapproved = FirstUse("web1", None)
    key = hashlib.sha256(
        shown.ak.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()  # fmt: skip
    assert dataclasses.replace(unapproved, approval=approval(key, now)).establish(shown, now).ek is None


def test_nothing_is_approved_by_itself(road, device, attester, now, refused) -> None:
    made, shown = road
    key = spki(device.key)
    with refused("not-approved"):
        FirstUse("web1", None, made.activation).establish(shown, now)
    with refused("not-approved"):
        FirstUse("web1", approval(key, now, "web2"), made.activation).establish(shown, now)
    with refused("not-approved"):
        FirstUse("web1", approval(key, now), made.activation).establish(shown, now - datetime.timedelta(seconds=1))
    with refused("other-key-approved"):
        FirstUse("web1", approval("00" * 32, now), made.activation).establish(shown, now)
    with refused("other-key-approved"):
        FirstUse("web1", approval(key, now)).establish(shown, now)
    with refused("not-activated"):
        FirstUse("web1", approval(key, now), made.activation.answered(b"")).establish(shown, now)
    with refused("bad-attestation-key"):
        FirstUse("web1", approval(key, now)).establish(
            attester(parse_public(device.ek.raw)), now
        )  # fmt: skip
