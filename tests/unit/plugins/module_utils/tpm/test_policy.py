# SPDX-License-Identifier: GPL-3.0-or-later
"""The image's policy key and its signature file, as hostile bytes."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.tpm.policy import (
    PolicyError,
    PolicyKey,
    pcr_policy,
    signed_policies,
)
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

ENTRY: dict[str, Any] = {"pcrs": [11], "pkfp": "ab" * 32, "pol": "cd" * 32, "sig": base64.b64encode(b"s").decode()}
#: What systemd-measure 262 made: a key, the PCR 11 it predicted, and the entry it signed.
MEASURED_KEY = b"""\
-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA3xGmutN2ehFn9ebdDZeG
PCEvI52+5twZLOs/CQsdnFWpepfRg+jgYRzN7G/h5LfOSP7A2YooT+9lGPaayIbr
maWQl1WgZpAJ9tL7fKFCYRdRpSOY0seLpjOjUSE7NYb5tmRmd5x9Qa3yKiuw9l3H
8HO0x0Gt+f6V5plRNoxAl2wiSV0oPRpbU4S4xyZFbecGlOY8F1IYhxGhZ1N7Xb55
Ng4GohfuLkGVPxphqr1aXjlPkgKtGQZEbmgoeKY4DF0/KQueRBRkcHBkpBj+n1WK
qVJRX5Wj4o/gJc2OcpNMv9WnDQNg7y5EE00uUsIAmJmgAcYxqkhEAB3LdVfcunTl
FQIDAQAB
-----END PUBLIC KEY-----
"""
MEASURED_VALUE = bytes.fromhex("d107ba9e37f476a7a4ddee4a14458c4ffc73bfd219b3ee6916d83ba1be49333d")
MEASURED_PKFP = "8f778ad143dc9beb0f5a81537027b491b5cbd2c5bfbe896be169ea84446c2065"
MEASURED_POLICY = bytes.fromhex("5bd61bee92b72bd48ad91232dac450921726f95f31791263adadaada8b99daf9")


def pem(public: Any) -> bytes:
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    content = public.public_bytes(encoding, form)
    assert isinstance(content, bytes)
    return content


@pytest.fixture(scope="module")
def public() -> rsa.RSAPublicKey:
    return rsa.generate_private_key(65537, 2048).public_key()


def test_the_key_is_read_as_cryptography_reads_it(public: rsa.RSAPublicKey) -> None:
    key = PolicyKey.from_pem(pem(public))
    numbers = public.public_numbers()
    assert (int.from_bytes(key.modulus, "big"), key.exponent) == (numbers.n, numbers.e)
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert key.fingerprint == hashlib.sha256(der).hexdigest()


def test_key_and_policy_are_named_as_systemd_measure_names_them() -> None:
    assert PolicyKey.from_pem(MEASURED_KEY).pkfp == MEASURED_PKFP
    assert pcr_policy(11, MEASURED_VALUE) == MEASURED_POLICY


def test_each_truncation_and_each_changed_tag_is_refused(public: rsa.RSAPublicKey) -> None:
    der = PolicyKey.from_pem(pem(public)).der
    hostile = [der[:length] for length in range(len(der))] + [der + b"\0"]
    for place in (0, 4, 19, 24, 28):
        changed = bytearray(der)
        changed[place] ^= 0xFF
        hostile.append(bytes(changed))
    for content in hostile:
        block = b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(content) + b"\n-----END PUBLIC KEY-----\n"
        with pytest.raises(PolicyError):
            PolicyKey.from_pem(block)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN PUBLIC KEY-----\n!!!!\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        pem(ec.generate_private_key(ec.SECP256R1()).public_key()),
        pem(rsa.generate_private_key(65537, 1024).public_key()),
        pem(rsa.generate_private_key(3, 2048).public_key()),
    ],
)
def test_other_files_are_not_a_policy_key(content: bytes) -> None:
    with pytest.raises(PolicyError):
        PolicyKey.from_pem(content)


def test_policies_that_we_cannot_use_are_left_out() -> None:
    others = [{**ENTRY, "pcrs": [11, 12]}, {**ENTRY, "pcrs": [4]}, {**ENTRY, "ref": "initrd"}]
    [policy] = signed_policies(json.dumps({"sha256": [*others, ENTRY], "sha384": [ENTRY]}).encode())
    assert (policy.pkfp, policy.digest, policy.signature) == ("ab" * 32, bytes.fromhex("cd" * 32), b"s")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"sha256": 1}',
        b'{"sha256": [1]}',
        b'{"sha256": [{"pcrs": [11]}]}',
        json.dumps({"sha256": [{**ENTRY, "pol": "cd"}]}).encode(),
        json.dumps({"sha256": [{**ENTRY, "pol": "zz" * 32}]}).encode(),
        json.dumps({"sha256": [{**ENTRY, "pol": None}]}).encode(),
        json.dumps({"sha256": [{**ENTRY, "sig": "!"}]}).encode(),
        b"[" * 100_000,
        b" " * 300_000 + b'{"sha256": []}',
        b"\xff\xfe",
    ],
)
def test_other_files_are_not_signatures(content: bytes) -> None:
    with pytest.raises(PolicyError):
        signed_policies(content)
