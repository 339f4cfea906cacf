# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An escrowed key is encrypted on the machine, opens with openssl, and never goes to a certificate that is no good."""

from __future__ import annotations

import base64
import datetime
import json
import subprocess
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.process import SubprocessRunner
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.escrow.certificate import (
    CertificateError,
    Kind,
    read_certificate,
)
from ansible_collections.cvm.fde.plugins.module_utils.escrow.envelope import Belonging, document, seal
from ansible_collections.cvm.fde.plugins.module_utils.luks2.recovery_key import new_recovery_key
from ansible_collections.cvm.fde.plugins.module_utils.runner import Completed
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

BELONGING = Belonging("db1.example.org", "data", "6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a003")
GOOD = {
    "RSA 2048": {"kind": 2048},
    "RSA 3072 for encryption": {"kind": 3072, "usage": "key_encipherment"},
    "P-256": {"kind": ec.SECP256R1()},
    "P-384 for key agreement": {"kind": ec.SECP384R1(), "usage": "key_agreement"},
    "P-521": {"kind": ec.SECP521R1()},
}


class Recorder(SubprocessRunner):
    """Runs programs and keeps what other processes can see of them."""

    def run(self, argv, *, stdin=None, pass_fds=(), env=None, ok=(0,)) -> Completed:
        self.argv, self.env = list(argv), dict(env or {})
        return super().run(argv, stdin=stdin, pass_fds=pass_fds, env=env, ok=ok)


def opened(envelope: bytes, private_key: bytes, folder: Path) -> bytes:
    """Open an envelope as its owner does."""
    (folder / "key").write_bytes(private_key)
    argv = ["openssl", "cms", "-decrypt", "-inform", "DER", "-inkey", str(folder / "key")]
    return subprocess.run(argv, input=envelope, check=True, capture_output=True).stdout


@pytest.fixture(params=GOOD)
def owner(request, authority):
    return authority.issue(**GOOD[request.param])


def test_the_owner_opens_the_envelope_with_openssl(owner, tmp_path):
    key = new_recovery_key()
    runner = Recorder()
    content = document(key, BELONGING)
    envelope = seal(runner, content, [owner.certificate])
    found = opened(envelope, owner.private_key, tmp_path)
    assert found == content
    assert json.loads(found) == {
        "version": 1,
        "host": "db1.example.org",
        "volume": "data",
        "luks_uuid": "6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a003",
        "recovery_key": key.decode(),
    }
    assert key not in envelope
    assert not any(key.decode() in word for word in [*runner.argv, *runner.env.values()])


def test_every_one_of_several_owners_opens_the_envelope_and_nobody_else(authority, tmp_path):
    owners = [authority.issue(**options, serial=number) for number, options in enumerate(GOOD.values(), 1)]
    stranger = authority.issue(4096)
    content = document(new_recovery_key(), BELONGING)
    envelope = seal(Recorder(), content, [owner.certificate for owner in owners])
    assert all(opened(envelope, owner.private_key, tmp_path) == content for owner in owners)
    with pytest.raises(subprocess.CalledProcessError):
        opened(envelope, stranger.private_key, tmp_path)


def test_rsa_keys_are_encrypted_with_oaep_and_sha256(authority):
    envelope = seal(Recorder(), bytearray(b"secret"), [authority.issue(2048).certificate])
    text = subprocess.run(
        ["openssl", "asn1parse", "-inform", "DER"], input=envelope, check=True, capture_output=True
    ).stdout.decode()
    for name in ("pkcs7-envelopedData", "rsaesOaep", "sha256", "aes-256-cbc"):
        assert name in text
    assert "rsaEncryption" not in text


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"kind": 1024}, "1024 bits, which is too weak"),
        ({"usage": "digital_signature"}, "does not include keyEncipherment"),
        ({"usage": "key_agreement"}, "does not include keyEncipherment"),
        ({"kind": ec.SECP256R1(), "usage": "digital_signature"}, "does not include keyAgreement"),
        ({"kind": ec.SECP256K1()}, "its curve is none of"),
        ({"kind": None}, "nothing can be encrypted to a key of its type"),
        ({"start": -20, "days": 10}, "and the clock of this machine says"),
        ({"start": 5, "days": 10}, "and the clock of this machine says"),
    ],
    ids=["weak", "signing", "agreement", "EC signing", "odd curve", "Ed25519", "expired", "not yet valid"],
)
def test_a_certificate_that_is_no_good_is_refused_before_anything_is_encrypted(authority, options, why):
    good, bad = authority.issue(2048), authority.issue(**options)
    runner = Recorder()
    with pytest.raises(CertificateError, match=why):
        seal(runner, bytearray(b"secret"), [good.certificate, bad.certificate])
    assert not hasattr(runner, "argv")


def test_what_is_not_one_certificate_is_refused(authority):
    owner = authority.issue(2048)
    for pem in (
        b"",
        b"certificate",
        owner.private_key,
        owner.certificate + owner.private_key,
        owner.certificate * 2,
        owner.certificate.replace(b"BEGIN CERT", b"BEGIN TRUSTED CERT"),
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        owner.certificate.replace(b"\nMII", b"\nM*I"),
        b" " * 100_000,
    ):
        with pytest.raises(CertificateError, match="not one X.509 certificate"):
            read_certificate(pem)


def test_no_certificate_is_no_escrow():
    with pytest.raises(FdeError, match="there is none"):
        seal(Recorder(), bytearray(b"secret"), [])


def test_the_times_of_a_certificate_are_read_as_openssl_reads_them(authority):
    owner = authority.issue(2048, days=365 * 40)
    found = read_certificate(owner.certificate)
    argv = ["openssl", "x509", "-noout", "-dates", "-dateopt", "iso_8601"]
    lines = subprocess.run(argv, input=owner.certificate, check=True, capture_output=True).stdout.decode().split("\n")
    stated = [datetime.datetime.fromisoformat(line.partition("=")[2].replace("Z", "+00:00")) for line in lines[:2]]
    assert [found.not_before, found.not_after] == stated
    assert found.not_after.year > 2050
    assert found.kind is Kind.RSA


def test_a_program_that_makes_no_envelope_is_an_error(authority):
    class Silent(SubprocessRunner):
        def run(self, argv, **options):
            return Completed(tuple(argv), 0, b"", b"")

    with pytest.raises(FdeError, match="did not make an EnvelopedData"):
        seal(Silent(), bytearray(b"secret"), [authority.issue(2048).certificate])


@settings(max_examples=300)
@given(data=st.data())
def test_any_damaged_certificate_is_read_or_refused(authority, data):
    der = bytearray(base64.b64decode(b"".join(authority.issue(2048).certificate.splitlines()[1:-1])))
    for _change in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(der) - 1))
        der[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(bytes(der)) + b"-----END CERTIFICATE-----\n"
    try:
        read_certificate(pem)
    except CertificateError as error:
        assert error.subject == "escrow certificate"
