# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""MakeCredential, against a TPM's ActivateCredential and against tpm2-pytss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.tpm import templates
from ansible_collections.cvm.fde.plugins.module_utils.tpm.activation import activate
from ansible_collections.cvm.fde.plugins.module_utils.tpm.esys import opened
from ansible_collections.cvm.fde.plugins.module_utils.tpm.keys import attestation_key, primary
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.credential import kdfa, kdfe, make_credential
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import parse_public

SECRET = bytes(range(32))


@pytest.mark.parametrize("template", [templates.EK_RSA_2048, templates.EK_ECC_P256], ids=["RSA", "ECC"])
@pytest.mark.parametrize("secret", [b"", b"x", SECRET], ids=["empty", "one byte", "32 bytes"])
def test_the_tpm_with_both_keys_returns_the_secret(machine: Any, template: templates.Template, secret: bytes) -> None:
    with opened(machine.tcti) as esys, attestation_key(esys) as attestation, primary(esys, template) as endorsement:
        name = parse_public(attestation.public).name
        credential = make_credential(parse_public(endorsement.public), name, secret)
        assert activate(esys, attestation, endorsement, credential.blob, credential.secret) == secret


def test_a_tpm_refuses_a_credential_for_another_attestation_key(machine: Any) -> None:
    tss = pytest.importorskip("tpm2_pytss")
    with (
        pytest.raises(Exception, match="integrity"),
        opened(machine.tcti) as esys,
        attestation_key(esys) as attestation,
        primary(esys, templates.EK_RSA_2048) as endorsement,
    ):
        credential = make_credential(parse_public(endorsement.public), b"\0\x0b" + bytes(32), SECRET)
        activate(esys, attestation, endorsement, credential.blob, credential.secret)
    assert tss


def test_the_shape_is_that_of_tpm2_makecredential(vectors: Path) -> None:
    folder = vectors / "quotes" / "keylime"
    endorsement = parse_public((folder / "ek.pub").read_bytes()[2:])
    secret = (folder / "actcred.out").read_bytes()
    ours = make_credential(endorsement, (folder / "ak.name").read_bytes(), secret)
    # tpm2-tools writes a magic number and a version in front of the same two structures.
    theirs = (folder / "mkcred.out").read_bytes()[8:]
    size = 2 + int.from_bytes(theirs[:2], "big")
    assert len(ours.blob) == size
    assert ours.blob[:4] == theirs[:4]
    assert len(ours.secret) == len(theirs) - size
    assert ours.secret[:2] == theirs[size : size + 2]


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha384", "sha512"])
@pytest.mark.parametrize("bits", [128, 256, 512])
def test_key_derivations_equal_those_of_tpm2_pytss(algorithm: str, bits: int) -> None:
    crypto = pytest.importorskip("tpm2_pytss.internal.crypto")
    tss = pytest.importorskip("tpm2_pytss")
    number = getattr(tss.TPM2_ALG, algorithm.upper())
    assert kdfa(algorithm, b"key", b"STORAGE", b"u", b"v", bits) == crypto._kdfa(
        number, b"key", b"STORAGE", b"u", b"v", bits
    )
    theirs = crypto.kdfe(number, b"z" * 32, b"IDENTITY\0", b"u" * 32, b"v" * 32, bits)
    assert kdfe(algorithm, b"z" * 32, b"IDENTITY\0", b"u" * 32, b"v" * 32, bits) == theirs


def test_a_key_that_is_no_endorsement_key_gets_no_credential(vectors: Path) -> None:
    folder = vectors / "quotes" / "keylime"
    good = parse_public((folder / "ek.pub").read_bytes()[2:])
    signing = parse_public((folder / "ak.pub").read_bytes()[2:])
    for public in (
        signing,
        replace(good, attributes=good.attributes & ~templates.RESTRICTED),
        replace(good, attributes=good.attributes & ~templates.FIXED_TPM),
        replace(good, attributes=good.attributes | templates.SIGN),
        replace(good, symmetric=None),
        replace(good, symmetric=(templates.ALG_AES, 128, 0x42)),
        replace(good, symmetric=(0x26, 128, templates.ALG_CFB)),
    ):
        with pytest.raises(AppraisalError, match="bad-endorsement-key"):
            make_credential(public, b"", SECRET)
    with pytest.raises(AppraisalError, match="bad-endorsement-key"):
        make_credential(good, b"", bytes(33))
