# SPDX-License-Identifier: GPL-3.0-or-later
"""The anchor and its write policy, against a software TPM."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.tpm import anchor as anchors
from ansible_collections.cvm.fde.plugins.module_utils.tpm import policy as policies
from ansible_collections.cvm.fde.plugins.module_utils.tpm.anchor import Anchor, AnchorError, Standing, State
from ansible_collections.cvm.fde.plugins.module_utils.tpm.policy import PolicyError, PolicyKey, SignedPolicy
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

tss = pytest.importorskip("tpm2_pytss")
PHASE = hashlib.sha256(b"enter-initrd").digest()


@pytest.fixture(scope="module")
def signer() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture
def esys(tmp_path: Path) -> Iterator[Any]:
    if not shutil.which("swtpm"):
        pytest.skip("swtpm is not installed")
    socket = tmp_path / "swtpm.sock"
    process = subprocess.Popen(
        ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={tmp_path}", "--flags", "not-need-init,startup-clear"]
        + ["--server", f"type=unixio,path={socket}", "--ctrl", f"type=unixio,path={socket}.ctrl"]
        + ["--pid", f"file={tmp_path}/swtpm.pid"]
    )
    try:
        for _attempt in range(3000):
            # Its sockets exist before anyone listens there; the file with its process id comes after both.
            if (tmp_path / "swtpm.pid").exists():
                break
            time.sleep(0.01)
        with tss.ESAPI(f"swtpm:path={socket}") as connection:
            yield connection
    finally:
        process.kill()
        process.wait()


def pem(signer: rsa.RSAPrivateKey) -> bytes:
    return signer.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def signed(signer: rsa.RSAPrivateKey, *words: bytes) -> tuple[SignedPolicy, ...]:
    """Sign as systemd-measure does what PCR 11 is after ``words`` were extended into it."""
    value = bytes(32)
    for word in words:
        value = hashlib.sha256(value + hashlib.sha256(word).digest()).digest()
    digest = policies.pcr_policy(11, value)
    signature = signer.sign(digest, padding.PKCS1v15(), hashes.SHA256())
    entry = {
        "pcrs": [11],
        "pkfp": PolicyKey.from_pem(pem(signer)).pkfp,
        "pol": digest.hex(),
        "sig": base64.b64encode(signature).decode(),
    }
    return policies.signed_policies(json.dumps({"sha256": [entry]}).encode())


def extend(esys: Any, word: bytes, pcr: int = 11) -> None:
    digest = tss.TPMT_HA(hashAlg=tss.TPM2_ALG.SHA256)
    digest.digest.sha256 = hashlib.sha256(word).digest()
    esys.pcr_extend(tss.ESYS_TR.PCR0 + pcr, tss.TPML_DIGEST_VALUES([digest]))


def test_the_predicted_names_are_those_of_the_tpm(esys: Any, signer: rsa.RSAPrivateKey) -> None:
    key = PolicyKey.from_pem(pem(signer))
    area, _size = tss.TPMT_PUBLIC.unmarshal(key.public)
    loaded = esys.load_external(tss.TPM2B_PUBLIC(publicArea=area))
    assert bytes(esys.tr_get_name(loaded)) == key.name
    anchors.define(esys, key)
    found = anchors.probe(esys, key)
    values = policies.bound_values(esys)
    assert found == anchors.Found(Standing.UNWRITTEN, None, anchors.anchor_name(key, values, written=False))


def test_a_signed_phase_writes_the_anchor_and_anyone_reads_it(esys: Any, signer: rsa.RSAPrivateKey) -> None:
    key = PolicyKey.from_pem(pem(signer))
    extend(esys, b"enter-initrd")
    anchors.define(esys, key)
    first = Anchor(State.INITIALIZING)
    anchors.write(esys, key, signed(signer, b"enter-initrd"), first)
    then = replace(first.ready(PHASE, bytes(range(32))), generation=7, clean=True, complete=True)
    anchors.write(esys, key, signed(signer, b"enter-initrd"), then)
    assert anchors.probe(esys, key) == anchors.Found(
        Standing.OURS, then, anchors.anchor_name(key, policies.bound_values(esys))
    )


@pytest.mark.parametrize("pcr", policies.BOUND_PCRS)
def test_another_system_that_replays_the_signed_phase_does_not_write(
    esys: Any, signer: rsa.RSAPrivateKey, pcr: int
) -> None:
    """What PCR 11 is extended by is public; that firmware starts another system shows in PCR 7, what it adds in 12."""
    key = PolicyKey.from_pem(pem(signer))
    extend(esys, b"enter-initrd")
    allowed = signed(signer, b"enter-initrd")
    anchors.define(esys, key)
    anchors.write(esys, key, allowed, Anchor(State.INITIALIZING))
    extend(esys, b"another system", pcr)
    with pytest.raises(tss.TSS2_Exception, match="policy"):
        anchors.write(esys, key, allowed, Anchor(State.READY))
    index = esys.tr_from_tpmpublic(anchors.INDEX)
    assert Anchor.unmarshal(bytes(esys.nv_read(index, anchors.SIZE, 0, index))) == Anchor(State.INITIALIZING)
    assert anchors.probe(esys, key).standing is Standing.FOREIGN


def test_an_index_that_another_system_made_for_itself_is_foreign(esys: Any, signer: rsa.RSAPrivateKey) -> None:
    key = PolicyKey.from_pem(pem(signer))
    genuine = policies.bound_values(esys)
    extend(esys, b"another system", 7)
    extend(esys, b"enter-initrd")
    anchors.define(esys, key)
    anchors.write(esys, key, signed(signer, b"enter-initrd"), Anchor(State.READY))
    assert anchors.probe(esys, key).name != anchors.anchor_name(key, genuine)


def test_another_phase_does_not_write(esys: Any, signer: rsa.RSAPrivateKey) -> None:
    key = PolicyKey.from_pem(pem(signer))
    anchors.define(esys, key)
    extend(esys, b"enter-initrd")
    allowed = signed(signer, b"enter-initrd")
    anchors.write(esys, key, allowed, Anchor(State.INITIALIZING))
    extend(esys, b"leave-initrd")
    with pytest.raises(PolicyError, match="signed no policy for its present value"):
        anchors.write(esys, key, allowed, Anchor(State.READY))
    assert anchors.probe(esys, key).anchor == Anchor(State.INITIALIZING)


def test_another_key_does_not_write(esys: Any, signer: rsa.RSAPrivateKey) -> None:
    key = PolicyKey.from_pem(pem(signer))
    other = rsa.generate_private_key(65537, 2048)
    anchors.define(esys, key)
    [forged] = signed(other)
    with pytest.raises(tss.TSS2_Exception, match="signature"):
        anchors.write(esys, key, [replace(forged, pkfp=key.pkfp)], Anchor(State.READY))
    with pytest.raises(tss.TSS2_Exception):
        anchors.write(esys, PolicyKey.from_pem(pem(other)), [forged], Anchor(State.READY))
    assert anchors.probe(esys, key).standing is Standing.UNWRITTEN


def test_neither_owner_nor_empty_password_writes(esys: Any, signer: rsa.RSAPrivateKey) -> None:
    anchors.define(esys, PolicyKey.from_pem(pem(signer)))
    index = esys.tr_from_tpmpublic(anchors.INDEX)
    for authority in (index, tss.ESYS_TR.OWNER):
        with pytest.raises(tss.TSS2_Exception):
            esys.nv_write(index, Anchor(State.READY).marshal(), 0, authority)


@pytest.mark.parametrize(
    "attributes", ["ownerwrite|ownerread|authread", "policywrite|authwrite|authread|ownerread|noda"]
)
def test_an_index_of_somebody_else_is_foreign(esys: Any, signer: rsa.RSAPrivateKey, attributes: str) -> None:
    key = PolicyKey.from_pem(pem(signer))
    public = tss.TPMS_NV_PUBLIC(
        nvIndex=anchors.INDEX,
        nameAlg=tss.TPM2_ALG.SHA256,
        attributes=tss.TPMA_NV.parse(attributes),
        authPolicy=key.policy,
        dataSize=anchors.SIZE,
    )
    esys.nv_define_space(b"", tss.TPM2B_NV_PUBLIC(nvPublic=public))
    assert anchors.probe(esys, key).standing is Standing.FOREIGN
    anchors.define(esys, key)
    assert anchors.probe(esys, key).standing is Standing.UNWRITTEN


def test_a_content_of_another_version_is_unreadable(esys: Any, signer: rsa.RSAPrivateKey) -> None:
    key = PolicyKey.from_pem(pem(signer))
    anchors.define(esys, key)
    index = esys.tr_from_tpmpublic(anchors.INDEX)
    with policies.authorized(esys, key, signed(signer)) as session:
        esys.nv_write(index, b"CVFA\x02" + bytes(147), 0, index, session1=session)
    assert anchors.probe(esys, key).standing is Standing.UNREADABLE


def test_the_contents_of_an_index_that_was_never_defined_are_absent(esys: Any, signer: rsa.RSAPrivateKey) -> None:
    assert anchors.probe(esys, PolicyKey.from_pem(pem(signer))).standing is Standing.ABSENT


@pytest.mark.parametrize(
    "content",
    [
        b"",
        Anchor(State.READY).marshal()[:-1],
        Anchor(State.READY).marshal() + b"\0",
        b"CVFB" + Anchor(State.READY).marshal()[4:],
        b"CVFA\x01\x00" + bytes(146),
        b"CVFA\x01\x03" + bytes(146),
        b"CVFA\x01\x02\x00\x04" + bytes(144),
        bytes(152),
    ],
)
def test_only_exact_anchors_are_read(content: bytes) -> None:
    with pytest.raises(AnchorError):
        Anchor.unmarshal(content)


def test_an_anchor_survives_marshalling() -> None:
    anchor = Anchor(State.READY, b"1" * 32, b"2" * 32, b"3" * 32, b"4" * 32, 1 << 60, 1 << 61, True)
    assert Anchor.unmarshal(anchor.marshal()) == anchor
    assert len(anchor.marshal()) == 152
