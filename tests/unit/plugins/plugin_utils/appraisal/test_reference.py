# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Manifests: signed, complete, and of one meaning."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any, Callable

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.reference import (
    PHASE_READY,
    load_reference,
    parse_manifest,
)
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def pem(key: Any) -> bytes:
    public: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return public


def text(manifest: Any) -> bytes:
    return json.dumps(manifest).encode()


@pytest.mark.parametrize("kind", ["rsa", "ec"])
def test_a_manifest_that_the_key_signed_is_read(image: Any, kind: str) -> None:
    manifest = text(image.manifest())
    if kind == "rsa":
        signer: Any = rsa.generate_private_key(65537, 2048)
        signature = signer.sign(manifest, padding.PKCS1v15(), hashes.SHA256())
    else:
        signer = ec.generate_private_key(ec.SECP256R1())
        signature = signer.sign(manifest, ec.ECDSA(hashes.SHA256()))
    reference = load_reference(manifest, signature, pem(signer))
    assert (reference.name, reference.strategy, reference.root_hash) == ("debian-forky", "clone", image.root_hash)
    assert reference.pcr_11[PHASE_READY] == image.pcr_11[PHASE_READY]
    assert image.pcr_4 in reference.pcr_4
    closed = hashlib.sha256(bytes(32) + hashlib.sha256(b"os-separator").digest()).digest()
    assert reference.pcr_13 == reference.pcr_14 == {bytes(32), closed}
    other = signature[:-1] + bytes([signature[-1] ^ 1])
    for changed_manifest, changed_signature in ((manifest + b" ", signature), (manifest, other)):
        with pytest.raises(AppraisalError, match="bad-signature"):
            load_reference(changed_manifest, changed_signature, pem(signer))
    with pytest.raises(AppraisalError, match="bad-signature"):
        load_reference(manifest, signature, image.pem)


def test_a_key_that_cannot_sign_manifests_is_refused(image: Any) -> None:
    for key in (b"", b"hello", pem(ed25519.Ed25519PrivateKey.generate())):
        with pytest.raises(AppraisalError, match="bad-key"):
            load_reference(text(image.manifest()), b"", key)


def without(*path: str) -> Callable[[Any], None]:
    def change(manifest: Any) -> None:
        for name in path[:-1]:
            manifest = manifest[name]
        del manifest[path[-1]]

    return change


def with_value(value: Any, *path: str) -> Callable[[Any], None]:
    def change(manifest: Any) -> None:
        for name in path[:-1]:
            manifest = manifest[name]
        manifest[path[-1]] = value

    return change


BAD: dict[str, Callable[[Any], None]] = {
    "no name": without("name"),
    "no root hash": without("root", "hash"),
    "a root hash that is too short": with_value("00", "root", "hash"),
    "a root hash in upper case": with_value("AA" * 32, "root", "hash"),
    "a root of text": with_value("root", "root"),
    "a version that is true": with_value(True, "version"),
    "version 2": with_value(2, "version"),
    "no PCR 4": without("pcrs", "sha256", "4"),
    "no value of PCR 4": with_value([], "pcrs", "sha256", "4"),
    "a value of PCR 4 that is a number": with_value([4], "pcrs", "sha256", "4"),
    "too many values of PCR 12": with_value(["00" * 32] * 65, "pcrs", "sha256", "12"),
    "a value of PCR 13 that is no digest": with_value(["00"], "pcrs", "sha256", "13"),
    "no value of PCR 14": with_value([], "pcrs", "sha256", "14"),
    "no phase ready": without("pcrs", "sha256", "11", PHASE_READY),
    "no phase in the initrd": without("pcrs", "sha256", "11", "enter-initrd"),
    "no policy key": without("pcr_policy", "public_key"),
    "a policy key that is none": with_value("hello", "pcr_policy", "public_key"),
    "another fingerprint": with_value("00" * 32, "pcr_policy", "fingerprint"),
    "a signer that is no digest": with_value("x", "secure_boot", "signer_sha256"),
    "no strategy": without("strategy"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_manifest_that_does_not_say_what_it_must_is_refused(image: Any, name: str) -> None:
    manifest = copy.deepcopy(image.manifest())
    BAD[name](manifest)
    with pytest.raises(AppraisalError):
        parse_manifest(text(manifest))


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"null", b'{"version":1,"version":1}', b"{", b"\xff", b" " * 300000, b'{"a":' * 50 + b"1" + b"}" * 50],
)
def test_what_is_no_manifest_is_refused(raw: bytes) -> None:
    with pytest.raises(AppraisalError):
        parse_manifest(raw)


def test_what_a_manifest_says_beyond_is_left_to_others(image: Any) -> None:
    manifest = {**image.manifest(), "uki": {"path": "/EFI/BOOT/BOOTX64.EFI"}}
    assert parse_manifest(text(manifest)).name == "debian-forky"
