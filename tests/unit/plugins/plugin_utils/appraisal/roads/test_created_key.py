# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attestation keys below the endorsement key, as tpm2-tools and keylime make them, on the roads over that key."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.quote import verify_quote
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.endorsement_key import (
    Activation,
    PinnedEk,
)
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.first_use import Approval, FirstUse
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.trust import Attester, digest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import PublicArea, parse_public, parse_quote
from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.appraisal.captured import SAMPLES
from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.appraisal.encoding import rsa_area
from cryptography.hazmat.primitives.asymmetric import rsa


@pytest.fixture(scope="module")
def keylime(captured: Any) -> tuple[Attester, PublicArea]:
    """What keylime's agent showed, and its endorsement key."""
    sample = SAMPLES["keylime"](captured.folder)
    assert isinstance(sample.key, PublicArea) and sample.endorsement is not None
    signer = parse_quote(sample.attest).qualified_signer
    return Attester(sample.key, signer, sample.nonce, sample.values), sample.endorsement


def activated(endorsement: PublicArea, shown: Attester) -> Activation:
    """Return an activation as it is once the TPM has answered it."""
    activation, _credential = Activation.begin(endorsement, shown.ak)
    return activation.answered(activation.secret)


def test_a_key_below_the_endorsement_key_is_believed_over_a_pin(keylime, now) -> None:
    shown, endorsement = keylime
    trust = PinnedEk(activated(endorsement, shown), digest(endorsement.key)).establish(shown, now)
    assert (trust.ak, trust.ek) == (digest(shown.ak.key), digest(endorsement.key))


def test_and_over_an_approval(keylime, now) -> None:
    shown, endorsement = keylime
    approval = Approval("web1", digest(endorsement.key), "alice", now)
    assert FirstUse("web1", approval, activated(endorsement, shown)).establish(shown, now).ek == approval.key


def test_not_without_the_endorsement_key(keylime, now, refused) -> None:
    shown, _endorsement = keylime
    with refused("other-signer"):
        FirstUse("web1", Approval("web1", digest(shown.ak.key), "alice", now)).establish(shown, now)


def test_not_below_another_endorsement_key(keylime, now, refused) -> None:
    shown, endorsement = keylime
    modulus = rsa.generate_private_key(65537, 2048).public_key().public_numbers().n
    other = parse_public(endorsement.raw[:-256] + modulus.to_bytes(256, "big"))
    with refused("other-signer"):
        PinnedEk(activated(other, shown), digest(other.key)).establish(shown, now)


def test_not_without_the_answer_of_its_tpm(keylime, now, refused) -> None:
    shown, endorsement = keylime
    with refused("not-activated"):
        unanswered = activated(endorsement, shown).answered(b"")
        PinnedEk(unanswered, digest(endorsement.key)).establish(shown, now)


def test_not_a_key_with_other_attributes(keylime, now, refused) -> None:
    """A key that may sign anything can name any signer: its qualified name is worth nothing."""
    shown, endorsement = keylime
    unrestricted = rsa_area(shown.ak.attributes & ~(1 << 16), shown.ak.key.public_numbers().n)
    changed = dataclasses.replace(shown, ak=unrestricted)
    with refused("bad-attestation-key"):
        PinnedEk(activated(endorsement, changed), digest(endorsement.key)).establish(changed, now)


@pytest.mark.skipif(not shutil.which("tpm2_createak"), reason="tpm2-tools are not installed")
@pytest.mark.parametrize("algorithm", ["rsa", "ecc"])
def test_a_key_of_tpm2_createak_and_its_quote_are_good(
    machine: Any, tmp_path: Path, algorithm: str, now: Any, refused: Any
) -> None:
    environment = {"PATH": "/usr/bin", "TPM2TOOLS_TCTI": machine.tcti}

    def tool(*words: str) -> None:
        # No resource manager stands between: what the last program left in the TPM has to go first.
        for command in (("tpm2_flushcontext", "-t"), words):
            subprocess.run(command, check=True, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)

    signing = {"rsa": "rsassa", "ecc": "ecdsa"}[algorithm]
    nonce = bytes(range(32))
    tool("tpm2_createek", "-G", algorithm, "-c", "ek.ctx", "-u", "ek.pub")
    tool(
        "tpm2_createak", "-C", "ek.ctx", "-c", "ak.ctx", "-G", algorithm, "-s", signing, "-g", "sha256", "-u", "ak.pub"
    )
    words = ["-c", "ak.ctx", "-l", "sha256:0,7,11", "-q", nonce.hex(), "-m", "attest", "-s", "signature"]
    tool("tpm2_quote", *words, "-o", "values", "-F", "values")
    tool("tpm2_flushcontext", "-t")
    raw = (tmp_path / "values").read_bytes()
    values = {pcr: raw[32 * place : 32 * place + 32] for place, pcr in enumerate((0, 7, 11))}
    attestation, endorsement = (parse_public((tmp_path / name).read_bytes()[2:]) for name in ("ak.pub", "ek.pub"))
    attest, signature = ((tmp_path / name).read_bytes() for name in ("attest", "signature"))
    asked = {"sha256": frozenset((0, 7, 11))}
    found = verify_quote(attestation, attest, signature, nonce, asked, {"sha256": values}, endorsement)
    with refused("other-signer"):
        verify_quote(attestation, attest, signature, nonce, asked, {"sha256": values})
    shown = Attester(attestation, found.attest.qualified_signer, nonce, {"sha256": values})
    PinnedEk(activated(endorsement, shown), digest(endorsement.key)).establish(shown, now)
