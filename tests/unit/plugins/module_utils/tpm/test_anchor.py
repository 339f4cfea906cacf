# SPDX-License-Identifier: GPL-3.0-or-later
"""The anchor and its write policy, against a software TPM."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.tpm import anchor as anchors
from ansible_collections.cvm.fde.plugins.module_utils.tpm import policy as policies
from ansible_collections.cvm.fde.plugins.module_utils.tpm.anchor import Anchor, AnchorError, Standing, State
from ansible_collections.cvm.fde.plugins.module_utils.tpm.policy import PolicyError, PolicyKey, SignedPolicy
from ansible_collections.cvm.fde.plugins.module_utils.tpm.quote import PcrsChanged
from ansible_collections.cvm.fde.tests.unit.plugins.software_tpm import SoftwareTpm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

tss = pytest.importorskip("tpm2_pytss")
PHASE = hashlib.sha256(b"enter-initrd").digest()


@pytest.fixture(scope="module")
def signer() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture
def esys(tmp_path: Path) -> Iterator[Any]:
    with powered(tmp_path) as connection:
        yield connection


@contextmanager
def powered(tmp_path: Path) -> Iterator[Any]:
    """Yield a connection to a TPM with the state in ``tmp_path``; the end takes its power away."""
    if not shutil.which("swtpm"):
        pytest.skip("swtpm is not installed")
    tpm = SoftwareTpm(tmp_path)
    tpm.on()
    try:
        with tss.ESAPI(tpm.tcti) as connection:
            yield connection
    finally:
        tpm.off()


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
    then = replace(first.ready(PHASE, bytes(range(32))), generation=7, complete=True, last_refusal="header-mismatch")
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


class Restless:
    """A TPM whose PCR 10 is extended by somebody else before a command, the first ``times`` that it is given."""

    def __init__(self, esys: Any, command: str, times: int) -> None:
        self._esys, self._command, self.left = esys, command, times

    def __getattr__(self, name: str) -> Any:
        genuine = getattr(self._esys, name)
        if name != self._command or self.left <= 0:
            return genuine

        def command(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            extend(self._esys, b"a program was executed", 10)
            return genuine(*arguments, **options)

        return command


@pytest.mark.parametrize(("command", "times"), [("nv_write", 1), ("nv_write", 7), ("policy_authorize", 2)])
def test_a_pcr_that_moves_in_between_does_not_keep_the_anchor_from_being_written(
    esys: Any, signer: rsa.RSAPrivateKey, command: str, times: int
) -> None:
    """Whatever extends any PCR ends every policy session that has looked at one."""
    key = PolicyKey.from_pem(pem(signer))
    anchors.define(esys, key)
    restless = Restless(esys, command, times)
    anchors.write(restless, key, signed(signer), Anchor(State.READY, generation=5))
    assert restless.left == 0
    assert anchors.probe(esys, key).anchor == Anchor(State.READY, generation=5)
    assert sessions(esys) == 0


def test_pcrs_that_never_keep_still_are_named(esys: Any, signer: rsa.RSAPrivateKey) -> None:
    key = PolicyKey.from_pem(pem(signer))
    anchors.define(esys, key)
    restless = Restless(esys, "nv_write", 1000)
    with pytest.raises(PcrsChanged, match="the TPM's PCRs: they changed during each of 8 uses of a policy"):
        anchors.write(restless, key, signed(signer), Anchor(State.READY))
    assert restless.left == 1000 - 8
    assert anchors.probe(esys, key).standing is Standing.UNWRITTEN
    assert sessions(esys) == 0


def sessions(esys: Any) -> int:
    # The union is read out of "found", which must not be freed before.
    _more, found = esys.get_capability(tss.TPM2_CAP.HANDLES, tss.TPM2_HC.LOADED_SESSION_FIRST, 16)
    return len(found.data.handles)


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
        esys.nv_write(index, b"CVFA\x01" + bytes(anchors.SIZE - 5), 0, index, session1=session)
    assert anchors.probe(esys, key).standing is Standing.UNREADABLE


def test_the_contents_of_an_index_that_was_never_defined_are_absent(esys: Any, signer: rsa.RSAPrivateKey) -> None:
    assert anchors.probe(esys, PolicyKey.from_pem(pem(signer))).standing is Standing.ABSENT


READY = Anchor(State.READY).marshal()
HEAD = len(READY) - 24


@pytest.mark.parametrize(
    "content",
    [
        b"",
        READY[:-1],
        READY + b"\0",
        b"CVFB" + READY[4:],
        b"CVFA\x01\x02" + READY[6:],
        b"CVFA\x02\x00" + READY[6:],
        b"CVFA\x02\x03" + READY[6:],
        b"CVFA\x02\x02\x00\x02" + READY[8:],
        b"CVFA\x02\x02\x80\x00" + READY[8:],
        READY[:HEAD] + b"\0a" + bytes(22),
        READY[:HEAD] + b"Header-mismatch".ljust(24, b"\0"),
        READY[:HEAD] + b"header mismatch".ljust(24, b"\0"),
        READY[:HEAD] + b"\xff" * 24,
        bytes(len(READY)),
    ],
)
def test_only_exact_anchors_are_read(content: bytes) -> None:
    with pytest.raises(AnchorError):
        Anchor.unmarshal(content)


def test_an_anchor_survives_marshalling() -> None:
    digests = (b"1" * 32, b"2" * 32, b"3" * 32, b"4" * 32)
    anchor = Anchor(State.READY, *digests, 1 << 60, 1 << 31, 1 << 15, "a" * anchors.CODE_LIMIT, True, 1 << 14)
    assert Anchor.unmarshal(anchor.marshal()) == anchor
    assert len(anchor.marshal()) == anchors.SIZE == 176


# What becomes of an anchor


def test_a_change_of_the_header_pins_both_until_the_disk_holds_the_new_one() -> None:
    before = Anchor(State.INITIALIZING).ready(b"o" * 32, b"k" * 32)
    changing = before.changing(b"n" * 32)
    after = changing.changed()
    assert (before.pinned, changing.pinned, after.pinned) == ((b"o" * 32,), (b"o" * 32, b"n" * 32), (b"n" * 32,))
    assert (before.generation, changing.generation, after.generation) == (1, 1, 2)
    assert after.header_previous == b"o" * 32
    assert changing.unchanged() == before


def test_an_anchor_of_zeros_pins_nothing() -> None:
    assert Anchor(State.READY).pinned == ()


def test_completion_counts_once() -> None:
    ready = Anchor(State.READY, generation=3)
    assert ready.completed() == ready.completed().completed() == Anchor(State.READY, generation=4, complete=True)


def test_the_security_version_only_rises_and_is_0_where_none_was_written() -> None:
    """Before there was one, the number of refusals had its two bytes as well."""
    ready = Anchor(State.READY, refusals=3)
    assert [ready.at_least(svn).svn for svn in (0, 1, 0xFFFF)] == [0, 1, 0xFFFF]
    assert replace(ready, svn=2).at_least(1).svn == 2
    written = bytearray(ready.marshal())
    assert written[20:24] == (3).to_bytes(4, "big")
    written[20:22] = (7).to_bytes(2, "big")
    assert Anchor.unmarshal(bytes(written)) == replace(ready, svn=7)


def test_refusals_are_counted_with_the_code_of_the_newest() -> None:
    ready = Anchor(State.READY, generation=3)
    twice = ready.refused("header-mismatch").refused("disk-ambiguous")
    assert (twice.refusals, twice.last_refusal, twice.generation) == (2, "disk-ambiguous", 3)
    assert replace(ready, refusals=0xFFFF).refused("failed").refusals == 0xFFFF
    assert ready.refused("no such Code").last_refusal == "unnamed"
    assert ready.refused("x" * 25).last_refusal == "unnamed"


# What can be wrong with a TPM


def other_index(handle: int, size: int, attributes: str, policy: bytes = b"") -> Any:
    area = tss.TPMS_NV_PUBLIC(
        nvIndex=handle,
        nameAlg=tss.TPM2_ALG.SHA256,
        attributes=tss.TPMA_NV.parse(attributes),
        authPolicy=policy,
        dataSize=size,
    )
    return tss.TPM2B_NV_PUBLIC(nvPublic=area)


def test_a_tpm_without_room_for_the_anchor_is_named(esys: Any, signer: rsa.RSAPrivateKey) -> None:
    handle = 0x01810000
    for size in (2048, 64):
        with pytest.raises(tss.TSS2_Exception, match="insufficient space"):
            while True:
                esys.nv_define_space(b"", other_index(handle, size, "ownerwrite|ownerread"))
                handle += 1
    with pytest.raises(AnchorError) as caught:
        anchors.define(esys, PolicyKey.from_pem(pem(signer)))
    assert caught.value.obstacle is anchors.Obstacle.FULL


def test_a_tpm_whose_owner_has_a_password_is_named(esys: Any, signer: rsa.RSAPrivateKey) -> None:
    esys.hierarchy_change_auth(tss.ESYS_TR.OWNER, b"password")
    esys.tr_set_auth(tss.ESYS_TR.OWNER, None)
    with pytest.raises(AnchorError) as caught:
        anchors.define(esys, PolicyKey.from_pem(pem(signer)))
    assert caught.value.obstacle is anchors.Obstacle.OWNED


def test_a_tpm_whose_owner_is_switched_off_is_named(esys: Any, signer: rsa.RSAPrivateKey) -> None:
    esys.hierarchy_control(tss.ESYS_TR.PLATFORM, tss.ESYS_TR.OWNER, False)
    with pytest.raises(AnchorError) as caught:
        anchors.define(esys, PolicyKey.from_pem(pem(signer)))
    assert caught.value.obstacle is anchors.Obstacle.OWNED


def test_an_index_of_the_platform_in_the_place_of_the_anchor_is_named(esys: Any, signer: rsa.RSAPrivateKey) -> None:
    key = PolicyKey.from_pem(pem(signer))
    theirs = other_index(anchors.INDEX, anchors.SIZE, "ppwrite|ppread|authread|noda|platformcreate")
    esys.nv_define_space(b"", theirs, auth_handle=tss.ESYS_TR.PLATFORM)
    assert anchors.probe(esys, key).standing is Standing.FOREIGN
    with pytest.raises(AnchorError) as caught:
        anchors.define(esys, key)
    assert caught.value.obstacle is anchors.Obstacle.PROTECTED


def test_an_index_that_a_power_cut_would_empty_is_foreign(esys: Any, signer: rsa.RSAPrivateKey) -> None:
    """Everything but the attribute "orderly", which lets the TPM keep the content in its memory only, is as ours."""
    key = PolicyKey.from_pem(pem(signer))
    policy = policies.bound_policy(key, policies.bound_values(esys))
    attributes = "policywrite|authread|ownerread|noda"
    esys.nv_define_space(b"", other_index(anchors.INDEX, anchors.SIZE, attributes, policy))
    assert anchors.probe(esys, key).standing is Standing.UNWRITTEN
    esys.nv_undefine_space(esys.tr_from_tpmpublic(anchors.INDEX))
    esys.nv_define_space(b"", other_index(anchors.INDEX, anchors.SIZE, f"{attributes}|orderly", policy))
    assert anchors.probe(esys, key).standing is Standing.FOREIGN


def test_a_cleared_tpm_knows_of_no_anchor(esys: Any, signer: rsa.RSAPrivateKey) -> None:
    key = PolicyKey.from_pem(pem(signer))
    anchors.define(esys, key)
    anchors.write(esys, key, signed(signer), Anchor(State.READY))
    esys.clear(tss.ESYS_TR.LOCKOUT)
    assert anchors.probe(esys, key).standing is Standing.ABSENT


def test_a_tpm_in_lockout_still_serves_the_anchor(esys: Any, signer: rsa.RSAPrivateKey) -> None:
    """Whoever may guess passwords at the TPM can lock it; what needs no password goes on."""
    key = PolicyKey.from_pem(pem(signer))
    esys.dictionary_attack_parameters(1, 1000, 1000)
    guarded = esys.nv_define_space(b"password", other_index(0x01810000, 64, "authwrite|authread"))
    esys.tr_set_auth(guarded, b"guess")
    with pytest.raises(tss.TSS2_Exception):
        esys.nv_write(guarded, b"x", 0, guarded)
    with pytest.raises(tss.TSS2_Exception, match="lockout"):
        esys.nv_write(guarded, b"x", 0, guarded)
    anchors.define(esys, key)
    anchors.write(esys, key, signed(signer), Anchor(State.READY))
    assert anchors.probe(esys, key).anchor == Anchor(State.READY)


def test_the_anchor_survives_the_loss_of_power(tmp_path: Path, signer: rsa.RSAPrivateKey) -> None:
    """What is written is in the TPM's memory when the command ends, without an orderly shutdown."""
    key = PolicyKey.from_pem(pem(signer))
    with powered(tmp_path) as before:
        anchors.define(before, key)
        anchors.write(before, key, signed(signer), Anchor(State.READY, generation=4))
    with powered(tmp_path) as after:
        assert anchors.probe(after, key).anchor == Anchor(State.READY, generation=4)


def test_the_phase_in_which_the_system_runs_writes_the_anchor(esys: Any, signer: rsa.RSAPrivateKey) -> None:
    key = PolicyKey.from_pem(pem(signer))
    anchors.define(esys, key)
    phases = (b"enter-initrd", b"leave-initrd", b"sysinit", b"ready")
    allowed = signed(signer, phases[0]) + signed(signer, *phases)
    for number, phase in enumerate(phases):
        extend(esys, phase)
        if number in (0, 3):
            anchors.write(esys, key, allowed, Anchor(State.READY, generation=number))
        else:
            with pytest.raises(PolicyError):
                anchors.write(esys, key, allowed, Anchor(State.READY, generation=9))
    assert anchors.probe(esys, key).anchor == Anchor(State.READY, generation=3)
