# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Audits: what was recorded is judged again, by what was kept, and what is kept is little and honest."""

from __future__ import annotations

import base64
import datetime
import json
import random
from dataclasses import replace
from typing import Any, Callable

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.tpm import rounds
from ansible_collections.cvm.fde.plugins.plugin_utils import recording
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.case import Grounds
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.judgement import Result, Status, Verdict
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.policy import Policy
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.reference import parse_manifest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.rules.table import DEFAULT_PCRS
from ansible_collections.cvm.fde.plugins.plugin_utils.attestation import Attestation
from ansible_collections.cvm.fde.plugins.plugin_utils.auditing import Doubt, audit
from ansible_collections.cvm.fde.plugins.plugin_utils.case_file import MALFORMED_LIMIT, Today, judge_again
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.ledger import Ledger
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.records import Action, Decision, Identity, Kind
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.verification import verify
from ansible_collections.cvm.fde.plugins.plugin_utils.recording import Recorder
from ansible_collections.cvm.fde.plugins.plugin_utils.report import unjudged
from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.asked import attest, status


def test_a_verdict_is_reached_again_from_the_ledger(
    honest: Attestation, ledger: Ledger, record: Callable[..., Result], today: Today
) -> None:
    record(honest, enrol=True)
    found = audit(ledger, today, ledger.head(), ["web1", "web9"])
    assert (found.sound, found.judged, found.findings) == (True, 1, ())
    assert found.inventory.new == ("web9",)
    assert audit(ledger, Today(), hosts=[]).inventory.missing == ("web1",)


@pytest.mark.parametrize(
    ("document", "later", "verdict"),
    [
        ("policy", ("platform_authorities",), Verdict.TRUSTED),
        ("policy", ("platform_authorities", "appraisal_policy"), Verdict.TRUSTED),
        ("challenge", ("banks",), Verdict.TRUSTED),
        # How old the answer was is asked now, and was not kept then.
        ("challenge", ("banks", "made"), Verdict.UNKNOWN),
    ],
)
def test_what_an_earlier_version_kept_is_judged_again(
    honest: Attestation, today: Today, document: str, later: tuple[str, ...], verdict: Verdict
) -> None:
    documents = honest.documents()
    written = json.loads(documents[document])
    assert set(later) <= set(written)
    documents[document] = json.dumps({name: written[name] for name in written if name not in later}).encode()
    result = judge_again(documents, today)
    assert result.verdict is verdict
    left = {check.name for check in result.checks if check.status is not Status.PASSED}
    assert left <= {"evidence_age", "freshness"}


def test_an_authority_that_is_trusted_no_more_shows_in_an_audit(
    honest: Attestation, ledger: Ledger, record: Callable[..., Result], today: Today
) -> None:
    record(honest, enrol=True)
    assert [finding.doubt for finding in audit(ledger, replace(today, authorities=())).findings] == [Doubt.VERDICT]
    assert not audit(ledger, replace(today, manifest_keys=())).sound


def test_a_copied_attestation_and_a_false_record_show_in_an_audit(
    honest: Attestation, ledger: Ledger, record: Callable[..., Result], today: Today
) -> None:
    record(honest, enrol=True)
    *_earlier, entry = ledger.entries(host="web1", kind=Kind.ATTESTATION)
    documents = ledger.documents(entry)
    ledger.append(replace(entry.record, root_hash="00" * 32), documents)
    ledger.append(replace(entry.record, host="web2"), {})
    doubts = {finding.doubt for finding in audit(ledger, today, whole_history=True).findings}
    assert doubts == {Doubt.COPIED, Doubt.RECORD, Doubt.VERDICT}


def test_old_evidence_with_another_time_beside_it_is_found_by_its_nonce(
    honest: Attestation, ledger: Ledger, record: Callable[..., Result], today: Today
) -> None:
    """Nobody signed when a challenge was made and answered: whoever writes the ledger can say another time."""
    record(honest, enrol=True)
    (entry,) = ledger.entries(kind=Kind.ATTESTATION)
    documents = ledger.documents(entry)
    later = json.loads(documents["challenge"])
    for name in ("made", "judged"):
        moment = datetime.datetime.fromisoformat(later[name]) + datetime.timedelta(days=30)
        later[name] = moment.isoformat()
    ledger.append(entry.record, {**documents, "challenge": json.dumps(later).encode()})
    assert [(doubt.doubt, doubt.sequence) for doubt in audit(ledger, today).findings] == [
        (Doubt.COPIED, entry.sequence + 1)
    ]


def test_a_host_that_was_retired_is_not_stale_unless_it_came_back(
    honest: Attestation, machine: Any, grounds: Grounds, ledger: Ledger, record: Callable[..., Result], today: Today
) -> None:
    record(honest, enrol=True)
    later = replace(
        today, policy=Policy(), now=datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=2)
    )
    assert [doubt.doubt for doubt in audit(ledger, later).findings] == [Doubt.STALE]
    ledger.decide(Decision("web1", Action.RETIRE_HOST, "ann", "decommissioned"))
    assert audit(ledger, later).sound
    record(attest(machine, grounds), enrol=True)
    assert [doubt.doubt for doubt in audit(ledger, later).findings] == [Doubt.STALE]


def test_a_volume_of_one_image_recovered_under_another_and_run_by_a_third_is_judged_again(
    make_machine: Callable[..., Any], grounds: Grounds, image: Any, ledger: Ledger, record: Callable[..., Result]
) -> None:
    conftest_image = type(image)
    second, third = conftest_image(image, "second"), conftest_image(image, "third")
    machine = make_machine("recovered")
    machine.recover(second)
    machine.boot(third, first=False)
    references = [parse_manifest(json.dumps(one.manifest()).encode()) for one in (third, image, second)]
    shown = {"recovery": base64.b64encode(machine.recovery).decode()}
    of_all = replace(grounds, references=tuple(references))
    attestation = attest(machine, of_all, **shown)
    assert attestation.result.verdict is Verdict.TRUSTED
    assert [one.name for one in attestation.result.references] == ["third", "debian-forky", "second"]
    record(attestation, enrol=True)
    assert audit(ledger, Today()).findings == ()
    without = attest(machine, replace(of_all, references=tuple(references[:2])), **shown)
    assert status(without.result, "recovery_phase") is Status.FAILED
    # The same image may have made the volume and run now.
    machine.boot(image, first=False)
    again = attest(machine, of_all, **shown)
    assert again.result.verdict is Verdict.TRUSTED
    assert set(again.documents()) >= {"manifest", "manifest-of-recovery"}
    assert "manifest-of-origin" not in again.documents()
    assert judge_again(again.documents(), Today()).verdict is Verdict.TRUSTED


def test_an_audit_knows_what_the_ledger_knew_when_it_judged(
    machine: Any, demanding: Grounds, ledger: Ledger, record: Callable[..., Result], today: Today
) -> None:
    record(attest(machine, demanding), policy=demanding.policy, enrol=True)
    record(attest(machine, demanding), policy=demanding.policy)
    now = datetime.datetime.now(datetime.timezone.utc)
    for judged_by in (today, replace(today, policy=demanding.policy, now=now)):
        found = audit(ledger, judged_by, whole_history=True)
        assert (found.sound, found.judged, found.findings) == (True, 2, ())
    # What was decided later changes nothing of what was known then.
    ledger.decide(Decision("web1", Action.RENEW_VOLUME, "ann", "new disk", volume="fde-crypt"))
    ledger.append(Identity("web2", "ek-certificate", "ab" * 32))
    assert audit(ledger, today, whole_history=True).findings == ()


def test_an_audit_doubts_a_trusted_verdict_that_the_ledger_itself_contradicts(
    honest: Attestation, machine: Any, grounds: Grounds, ledger: Ledger, record: Callable[..., Result], today: Today
) -> None:
    assert honest.result.anchor is not None
    ahead = replace(honest.result.anchor, generation=honest.result.anchor.generation + 1)
    record(honest, enrol=True, result=replace(honest.result, anchor=ahead))
    back = attest(machine, grounds)
    assert record(back).verdict is Verdict.UNTRUSTED
    *_earlier, entry = ledger.entries(host="web1", kind=Kind.ATTESTATION)
    assert audit(ledger, today).findings == ()
    ledger.append(replace(entry.record, verdict="trusted"), attest(machine, grounds).documents())
    (doubt,) = audit(ledger, today).findings
    assert doubt.doubt is Doubt.VERDICT
    assert "the TPM went back" in doubt.cause


def test_what_was_not_trusted_is_judged_again_as_well_and_counted_honestly(
    honest: Attestation, machine: Any, grounds: Grounds, ledger: Ledger, record: Callable[..., Result], today: Today
) -> None:
    record(honest, "web0")
    record(attest(machine, replace(grounds, authorities=())), "web1")
    recorder = Recorder(ledger, "web2")
    recorder.unjudged(unjudged("web2", Status.UNKNOWN, "the machine did not answer"))
    found = audit(ledger, today)
    assert (found.sound, found.judged, found.unjudged, found.changes) == (True, 2, 1, ())
    # By a policy that does not ask who it is, the first was good enough.
    lenient = replace(Policy(), waived_checks=frozenset(("identity", "anchor_freshness")))
    (change,) = audit(ledger, replace(today, policy=lenient)).changes
    assert (change.host, change.recorded, change.now) == ("web0", "unknown", "trusted")


def malformed(machine: Any, grounds: Grounds, answer: Any) -> tuple[Attestation, AppraisalError]:
    """Ask a machine whose second answer is another one."""
    attestation = Attestation(grounds, DEFAULT_PCRS)
    attestation.evidence_request(rounds.identity(machine.sources))
    with pytest.raises(AppraisalError) as caught:
        attestation.judge(answer)
    return attestation, caught.value


@pytest.mark.parametrize(
    ("answer", "judged"), [({"quote": 1}, 1), ([1, "x"], 1), (None, 1), ({"quote": '"' * 5_000_000}, 0)]
)
def test_answers_that_cannot_be_read_are_kept_within_bounds(
    machine: Any, grounds: Grounds, ledger: Ledger, today: Today, answer: Any, judged: int
) -> None:
    attestation, error = malformed(machine, grounds, answer)
    documents = attestation.documents_of_unreadable(attestation.unreadable())
    assert len(documents["answers"]) < MALFORMED_LIMIT + 1024
    Recorder(ledger, "web1").unjudged(unjudged("web1", Status.FAILED, error.reason), documents)
    found = audit(ledger, today)
    assert (found.sound, found.judged, found.unjudged, found.changes) == (True, judged, 1 - judged, ())
    if judged:
        with pytest.raises(AppraisalError, match=error.code):
            judge_again(documents, today)


def test_a_host_that_is_not_trusted_fills_no_ledger(
    machine: Any, grounds: Grounds, ledger: Ledger, today: Today, record: Callable[..., Result], monkeypatch: Any
) -> None:
    limit = 300_000
    monkeypatch.setattr(recording, "DAILY_LIMIT", limit)

    for number in range(40):
        attestation, error = malformed(machine, grounds, {"quote": random.Random(number).randbytes(50_000).hex()})
        documents = attestation.documents_of_unreadable(attestation.unreadable())
        Recorder(ledger, "web1").unjudged(unjudged("web1", Status.FAILED, error.reason), documents)
    entries = list(ledger.entries())
    assert len(entries) == 40
    kept = [entry for entry in entries if "answers" in entry.documents]
    assert 3 < len(kept) < 10
    left = ledger.documents(entries[-1])
    assert set(left) == {"omitted", "result"}
    assert set(json.loads(left["omitted"])["documents"]) >= {"answers", "challenge"}
    assert verify(ledger).sound
    found = audit(ledger, today, whole_history=True)
    assert (found.judged, found.unjudged) == (len(kept), 40 - len(kept))
    # Another host has its own share, a verdict that was reached is treated alike, and one of trust is always kept.
    lying = attest(machine, replace(grounds, authorities=()))
    record(lying, "web1")
    record(lying, "web2")
    assert [set(entry.documents) & {"omitted", "evidence"} for entry in list(ledger.entries())[-2:]] == [
        {"omitted"},
        {"evidence"},
    ]
    record(attest(machine, grounds), "web1", enrol=True)
    *_earlier, latest = ledger.entries(host="web1", kind=Kind.ATTESTATION)
    assert (latest.record.verdict, "evidence" in latest.documents) == ("trusted", True)


def test_an_answer_that_was_no_json_is_kept_as_it_was_printed(grounds: Grounds, today: Today) -> None:
    attestation = Attestation(grounds, DEFAULT_PCRS)
    for printed in ("{not JSON\x1b[2J", "\udcff", "x" * 4_000_000):
        documents = attestation.documents_of_unreadable(attestation.unreadable(printed))
        assert len(documents["answers"]) < MALFORMED_LIMIT + 1024
        with pytest.raises(AppraisalError):
            judge_again(documents, today)


def test_answers_that_a_later_reader_understands_are_judged_by_it(machine: Any, grounds: Grounds, today: Today) -> None:
    # As if a field of today had been unknown when they came.
    attestation = attest(machine, grounds)
    documents = attestation.documents_of_unreadable(attestation.unreadable())
    assert judge_again(documents, today).verdict is Verdict.TRUSTED


@pytest.mark.parametrize("name", ["manifest", "manifest-signature", "challenge", "policy", "identity", "evidence"])
@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{}", b'{"version":1}', b"\xff", b"[" * 100_000])
def test_a_document_that_was_tampered_with_is_refused(
    honest: Attestation, signed: tuple[bytes, bytes, bytes], today: Today, name: str, content: bytes
) -> None:
    documents = {**honest.documents(), name: content}
    with pytest.raises(AppraisalError):
        judge_again(documents, today)


def test_a_challenge_without_its_time_zone_or_with_other_pcrs_is_refused(
    honest: Attestation, signed: tuple[bytes, bytes, bytes], today: Today
) -> None:
    documents = honest.documents()
    challenge = json.loads(documents["challenge"])
    for changes in ({"judged": "2026-11-24T00:00:00"}, {"pcrs": [True]}, {"pcrs": 7}, {"nonce": 1}, {"more": 1}):
        changed = json.dumps({**challenge, **changes}).encode()
        with pytest.raises(AppraisalError):
            judge_again({**documents, "challenge": changed}, today)


@pytest.mark.parametrize(
    "more", [{"more": "A" * 20_000_000}, {"hydration": {"hydrated": 1, "total": 2, "x": "B" * 100}}]
)
def test_an_answer_with_more_than_was_asked_for_is_not_kept(
    machine: Any, grounds: Grounds, more: dict[str, Any]
) -> None:
    with pytest.raises(AppraisalError, match="does not belong there"):
        attest(machine, grounds, **more)


def test_what_is_kept_of_an_answer_is_small(machine: Any, grounds: Grounds, signed: tuple[bytes, bytes, bytes]) -> None:
    documents = attest(machine, grounds).documents()
    assert sum(map(len, documents.values())) < 1_000_000
    assert judge_again(documents, Today()).verdict is Verdict.TRUSTED
