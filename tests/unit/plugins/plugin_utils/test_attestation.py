# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A hostile machine's answers: whatever it sends, the verifier refuses it by name and stays as small as it was."""

from __future__ import annotations

import base64
import datetime
import json
import os
import tracemalloc
import zlib
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.tpm import rounds
from ansible_collections.cvm.fde.plugins.plugin_utils import attestation as attestations
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.case import Grounds
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.endorsement import load_authorities
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import FAULT, AppraisalError
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.evidence import parse_evidence, parse_identity
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.judgement import Verdict
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.reference import parse_manifest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.rules.table import DEFAULT_PCRS
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.tokens import LOG_LIMIT, parse_token
from ansible_collections.cvm.fde.plugins.plugin_utils.attestation import Attestation, check_pcrs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="session")
def grounds(image: Any, authority: Any, tomorrow: datetime.datetime) -> Grounds:
    reference = parse_manifest(json.dumps(image.manifest()).encode())
    return Grounds((reference,), load_authorities((authority / "ca.pem").read_bytes()), tomorrow)


def hold(machine: Any, grounds: Grounds) -> tuple[Attestation, dict[str, Any], dict[str, Any]]:
    """Hold both rounds with a machine up to the judgement."""
    attestation = Attestation(grounds, DEFAULT_PCRS)
    identity = rounds.identity(machine.sources)
    asked = attestation.evidence_request(identity)
    request = rounds.Request(
        base64.b64decode(asked["nonce"]),
        {"sha256": tuple(asked["pcrs"])},
        base64.b64decode(asked["credential"]),
        base64.b64decode(asked["encrypted_seed"]),
    )
    return attestation, identity, rounds.evidence(machine.sources, request, machine.token)


@pytest.fixture(scope="module")
def answered(machine: Any, grounds: Grounds) -> tuple[Attestation, dict[str, Any], dict[str, Any]]:
    return hold(machine, grounds)


def test_a_whole_attestation_ends_in_trust_and_an_archive(answered: Any) -> None:
    attestation, _identity, evidence = answered
    result = attestation.judge({**evidence, "hydration": {"hydrated": 1, "total": 4}})
    assert result.verdict is Verdict.TRUSTED
    assert attestation.hydration.hydrated == 1
    kept = json.loads(attestation.archive(result))
    assert kept["verdict"] == "trusted"
    assert kept["answers"][1]["quote"] == evidence["quote"]


def test_every_attestation_asks_for_something_new(machine: Any, grounds: Grounds) -> None:
    identity = rounds.identity(machine.sources)
    asked = [Attestation(grounds, DEFAULT_PCRS).evidence_request(identity) for _time in range(2)]
    for name in ("nonce", "credential", "encrypted_seed"):
        assert asked[0][name] != asked[1][name]


def test_the_answers_of_one_attestation_do_not_serve_another(answered: Any, grounds: Grounds) -> None:
    _attestation, identity, evidence = answered
    later = Attestation(grounds, DEFAULT_PCRS)
    later.evidence_request(identity)
    assert later.judge(evidence).verdict is Verdict.UNTRUSTED


def test_evidence_is_not_judged_before_the_identity(answered: Any, grounds: Grounds) -> None:
    with pytest.raises(AppraisalError):
        Attestation(grounds, DEFAULT_PCRS).judge(answered[2])


@pytest.mark.parametrize("reader", ["parse_identity", "make_credential", "parse_evidence"])
def test_a_fault_of_the_verifier_in_reading_an_answer_is_refused_as_one(
    answered: Any, grounds: Grounds, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    def stumbles(*_words: Any) -> object:
        raise ZeroDivisionError("evil \x1b[2J")

    _attestation, identity, evidence = answered
    later = Attestation(grounds, DEFAULT_PCRS)
    monkeypatch.setattr(attestations, reader, stumbles)
    with pytest.raises(AppraisalError) as refused:
        later.evidence_request(identity)
        later.judge(evidence)
    assert refused.value.code == "verifier-failed"
    assert refused.value.reason == f"{FAULT} (ZeroDivisionError): keep the evidence, and report it"


HOSTILE: dict[str, Any] = {
    "activated": [None, 1, [], {}, "!", "A", "AAAA\n", base64.b64encode(bytes(65)).decode(), "A" * 10_000_000],
    "quote": [None, [], "x", {}, {"attest": "AAAA"}, {"attest": "AAAA", "signature": "AAAA", "more": 1}],
    "pcrs": [
        None,
        [],
        {"sha256": None},
        {"sha256": {"00": "00" * 32}},
        {"sha256": {"24": "00" * 32}},
        {"sha256": {"0": "00" * 31}},
        {"sha256": {"0": "AA" * 32}},
        {"sha256": {"0": 0}},
        {"md5": {}},
        {str(number): {} for number in range(100_000)},
    ],
    "anchor": ["x", 1, {"attest": 1, "signature": 2}],
    "firmware_log": ["x", 1, {}, base64.b64encode(b"not zlib").decode()],
    "userspace_log": [True, base64.b64encode(zlib.compress(b"x") + b"more").decode()],
    "userspace_log_complete": [None, 1, "true"],
    "token": [1, {}, "x" * 1_000_000],
    "hydration": [1, {}, {"hydrated": 2, "total": 1}, {"hydrated": True, "total": 1}, {"hydrated": -1, "total": 1}],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_field_of_another_form_is_refused(answered: Any, name: str) -> None:
    for value in HOSTILE[name]:
        with pytest.raises(AppraisalError) as refused:
            parse_evidence({**answered[2], name: value})
        assert refused.value.code == "malformed"
        assert len(refused.value.reason) < 200


@pytest.mark.parametrize("found", [None, 1, "x", [], [{}], {}, {"endorsement": 1}])
def test_an_answer_of_another_form_is_refused(found: Any) -> None:
    for parse in (parse_identity, parse_evidence):
        with pytest.raises(AppraisalError, match="malformed"):
            parse(found)


def deep(levels: int) -> Any:
    found: Any = None
    for _level in range(levels):
        found = [found]
    return found


@pytest.mark.parametrize("junk", [None, deep(950), {str(number): "x" * 1000 for number in range(1000)}])
def test_a_field_that_nobody_asked_for_is_refused(answered: Any, junk: Any) -> None:
    _attestation, identity, evidence = answered
    with pytest.raises(AppraisalError, match="does not belong there"):
        parse_identity({**identity, "junk": junk})
    with pytest.raises(AppraisalError, match="does not belong there"):
        parse_evidence({**evidence, "junk": junk})
    with pytest.raises(AppraisalError, match="does not belong there"):
        parse_evidence({**evidence, "hydration": {"hydrated": 1, "total": 1, "junk": junk}})


def test_a_log_that_unpacks_to_much_more_does_not_fill_memory(answered: Any) -> None:
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _mebibyte in range(128)) + packer.flush()
    text = base64.b64encode(bomb).decode()
    tracemalloc.start()
    with pytest.raises(AppraisalError, match="unpack"):
        parse_evidence({**answered[2], "firmware_log": text})
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * LOG_LIMIT


def test_a_token_that_is_not_one_is_refused(machine: Any) -> None:
    good = json.loads(machine.token)
    parse_token(machine.token)
    claims = json.loads(base64.b64decode(good["claims"]))

    def claimed(**changes: Any) -> dict[str, Any]:
        return {"claims": base64.b64encode(json.dumps({**claims, **changes}).encode()).decode()}

    bad: list[dict[str, Any]] = [
        {"type": "systemd-tpm2"},
        {"version": 2},
        {"version": True},
        {"claims": base64.b64encode(b"{}").decode()},
        {"more": 1},
        claimed(more=1),
        claimed(purpose="decoration"),
        claimed(volume_key_id="00"),
        claimed(volume="fde crypt\x1b[2J"),
        claimed(luks_uuid="../../etc"),
        claimed(root_hash=None),
        claimed(sector_size=True),
        claimed(anchor={"nv_index": "0x0180fde0"}),
    ]
    for changes in bad:
        with pytest.raises(AppraisalError):
            parse_token(json.dumps({**good, **changes}).encode())
    with pytest.raises(AppraisalError):
        parse_token(b'{"type":"cvm-fde",' + machine.token.lstrip()[1:])


answers = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20).map(rounds.encode),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_any_value_in_any_field_is_refused_or_judged(answered: Any, data: Any) -> None:
    attestation, identity, evidence = answered
    name = data.draw(st.sampled_from(sorted(evidence)))
    try:
        verdict = attestation.judge({**evidence, name: data.draw(answers)}).verdict
    except AppraisalError:
        return
    assert verdict in set(Verdict)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_a_changed_byte_is_never_trusted(answered: Any, data: Any) -> None:
    attestation, _identity, evidence = answered
    path = data.draw(
        st.sampled_from([("quote", "attest"), ("quote", "signature"), ("anchor", "attest"), ("anchor", "signature")])
    )
    raw = bytearray(base64.b64decode(evidence[path[0]][path[1]]))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    changed = {**evidence, path[0]: {**evidence[path[0]], path[1]: rounds.encode(bytes(raw))}}
    try:
        assert attestation.judge(changed).verdict is Verdict.UNTRUSTED
    except AppraisalError:
        return


@pytest.mark.parametrize(
    ("pcrs", "wrong"),
    [
        (DEFAULT_PCRS, None),
        ((4, 7, 9, 11, 12, 13, 14, 15), None),
        ((4, 7, 11, 12), "PCR 9, 13, 14, 15 must"),
        ((*DEFAULT_PCRS, 16), "reset"),
        ((*DEFAULT_PCRS, 24), "0 to 23"),
        ((*DEFAULT_PCRS, -1), "0 to 23"),
        ((*DEFAULT_PCRS, 4), "twice"),
    ],
)
def test_pcrs_that_prove_nothing_are_not_asked_for(pcrs: tuple[int, ...], wrong: str | None) -> None:
    found = check_pcrs(pcrs)
    assert (found is None) if wrong is None else wrong in (found or "")


def test_the_secret_of_an_attestation_is_not_in_what_the_machine_is_asked(machine: Any, grounds: Grounds) -> None:
    secret = os.urandom(32)
    given = iter((bytes(32), secret))
    attestation = Attestation(grounds, DEFAULT_PCRS, lambda _size: next(given))
    asked = json.dumps(attestation.evidence_request(rounds.identity(machine.sources)))
    assert base64.b64encode(secret).decode() not in asked
    assert secret.hex() not in asked
