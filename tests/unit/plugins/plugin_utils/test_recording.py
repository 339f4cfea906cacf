# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Roads, ledger and audit over real TPMs: what is recorded of a machine, and what the ledger makes of the next one."""

from __future__ import annotations

import base64
import datetime
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.tpm import rounds
from ansible_collections.cvm.fde.plugins.plugin_utils import recording
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.case import Grounds
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.endorsement import load_authorities
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.judgement import (
    CertifiedAnchor,
    Result,
    Status,
    Verdict,
)
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.policy import Freshness, Policy, VolumeTerms
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.reference import load_reference, parse_manifest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.choice import Allowed
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.first_use import Approval
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.trust import RoadName
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.rules.table import DEFAULT_PCRS
from ansible_collections.cvm.fde.plugins.plugin_utils.attestation import Attestation
from ansible_collections.cvm.fde.plugins.plugin_utils.auditing import Doubt, audit
from ansible_collections.cvm.fde.plugins.plugin_utils.case_file import MALFORMED_LIMIT, Today, judge_again
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.ledger import Ledger
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.records import Action, Decision, Identity, Kind
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.verification import verify
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger_checks import FRESHNESS, IDENTITY, UNIQUE_KEY
from ansible_collections.cvm.fde.plugins.plugin_utils.recording import Recorder
from ansible_collections.cvm.fde.plugins.plugin_utils.report import unjudged

PHASES = ("enter-initrd", "leave-initrd", "sysinit", "ready")
CERTIFICATE, PINNED, FIRST_USE = RoadName.EK_CERTIFICATE, RoadName.PINNED_EK, RoadName.FIRST_USE


@pytest.fixture(scope="module")
def grounds(signed: tuple[bytes, bytes, bytes], authority: Path) -> Grounds:
    now = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    reference = load_reference(*signed)
    return Grounds((reference,), tuple(load_authorities((authority / "ca.pem").read_bytes())), now)


@pytest.fixture(scope="module")
def signed(image: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, bytes]:
    """Manifest, signature and key."""
    manifest, key = image.signed_manifest(tmp_path_factory.mktemp("manifest"))
    return manifest.read_bytes(), manifest.with_name("manifest.json.sig").read_bytes(), key.read_bytes()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger.db")


@pytest.fixture(scope="module")
def other(make_machine: Callable[..., Any]) -> Any:
    return make_machine("other")


def attest(machine: Any, grounds: Grounds, **evidence: Any) -> Attestation:
    attestation = Attestation(grounds, DEFAULT_PCRS)
    asked = attestation.evidence_request(rounds.identity(machine.sources))
    request = rounds.Request(
        base64.b64decode(asked["nonce"]),
        {"sha256": tuple(asked["pcrs"])},
        base64.b64decode(asked["credential"]),
        base64.b64decode(asked["encrypted_seed"]),
    )
    attestation.judge({**rounds.evidence(machine.sources, request, machine.token), **evidence})
    return attestation


def allowing(grounds: Grounds, *roads: RoadName, **allowed: Any) -> Grounds:
    return replace(grounds, allowed=Allowed(roads, "web1", **allowed))


@pytest.fixture(scope="module")
def honest(machine: Any, grounds: Grounds) -> Attestation:
    return attest(machine, grounds)


@pytest.fixture(scope="module")
def ek(honest: Attestation) -> str:
    assert honest.result.keys
    return honest.result.keys.ek


@pytest.fixture
def record(ledger: Ledger, signed: tuple[bytes, bytes, bytes]) -> Callable[..., Result]:
    def run(attestation: Attestation, host: str = "web1", result: Any = None, **options: Any) -> Result:
        recorder = Recorder(ledger, host, **options)
        return recorder.judged(result or attestation.result, attestation.documents())[0]

    return run


def status(result: Result, name: str) -> Status:
    return next(check.status for check in result.checks if check.name == name)


# --- roads
# ----------------------------------------------------------------------------------------------------------


def test_the_default_road_makes_the_checks_that_it_always_made(honest: Attestation) -> None:
    names = [check.name for check in honest.result.checks]
    assert "endorsement_certificate" in names
    assert "road" not in names
    assert honest.result.claims["endorsement_key"] == honest.result.keys.ek


def test_a_pinned_key_is_trusted_without_any_authority(machine: Any, grounds: Grounds, ek: str) -> None:
    pinned = replace(allowing(grounds, PINNED, pins=("00" * 32, ek.upper())), authorities=())
    result = attest(machine, pinned).result
    assert (result.verdict, result.road) == (Verdict.TRUSTED, "pinned-ek")


def test_another_key_than_the_pinned_one_is_refused(machine: Any, grounds: Grounds) -> None:
    result = attest(machine, allowing(grounds, PINNED, pins=("00" * 32,))).result
    assert (result.verdict, result.road) == (Verdict.UNTRUSTED, "none")
    assert status(result, "road") is Status.FAILED


def test_a_pin_does_not_replace_the_proof_that_the_tpm_holds_the_key(machine: Any, grounds: Grounds, ek: str) -> None:
    lying = attest(machine, allowing(grounds, PINNED, pins=(ek,)), activated=base64.b64encode(bytes(32)).decode())
    assert lying.result.verdict is Verdict.UNTRUSTED
    assert lying.result.road == "none"
    assert lying.result.keys is None


def test_without_pin_approval_or_authority_nothing_is_known(machine: Any, grounds: Grounds) -> None:
    nothing = replace(allowing(grounds, CERTIFICATE, PINNED, FIRST_USE), authorities=())
    result = attest(machine, nothing).result
    assert (result.verdict, result.road) == (Verdict.UNKNOWN, "none")


def test_roads_are_alternatives_in_the_operators_order(machine: Any, grounds: Grounds, ek: str) -> None:
    both = attest(machine, allowing(grounds, PINNED, CERTIFICATE, pins=("00" * 32,))).result
    assert (both.verdict, both.road) == (Verdict.TRUSTED, "ek-certificate")
    first = attest(machine, allowing(grounds, PINNED, CERTIFICATE, pins=(ek,))).result
    assert first.road == "pinned-ek"


def test_a_road_that_no_machine_can_take_yet_leads_nowhere(machine: Any, grounds: Grounds) -> None:
    result = attest(machine, allowing(grounds, RoadName.GCP_AK_CERTIFICATE)).result
    assert (result.verdict, result.road) == (Verdict.UNKNOWN, "none")


def test_first_use_takes_the_approval_of_this_host_and_key_only(machine: Any, grounds: Grounds, ek: str) -> None:
    def verdict(approval: Approval) -> Verdict:
        return attest(machine, allowing(grounds, FIRST_USE, approval=approval)).result.verdict

    then = grounds.now - datetime.timedelta(hours=2)
    assert verdict(Approval("web1", ek, "ann", then)) is Verdict.TRUSTED
    assert verdict(Approval("web2", ek, "ann", then)) is Verdict.UNTRUSTED
    assert verdict(Approval("web1", "00" * 32, "ann", then)) is Verdict.UNTRUSTED
    assert verdict(Approval("web1", ek, "ann", grounds.now + datetime.timedelta(hours=1))) is Verdict.UNTRUSTED


# --- the ledger
# ----------------------------------------------------------------------------------------------------------


def test_a_host_that_was_never_enrolled_is_unknown_and_stays_so(
    honest: Attestation, ledger: Ledger, record: Callable[..., Result]
) -> None:
    for _time in range(2):
        result = record(honest)
        assert result.verdict is Verdict.UNKNOWN
        assert status(result, IDENTITY) is Status.UNKNOWN
    assert list(ledger.entries(kind=Kind.IDENTITY)) == []
    assert ledger.highest_anchor("web1", "fde-crypt") is None


def test_an_enrolled_host_is_trusted_and_every_verdict_is_kept(
    honest: Attestation, machine: Any, grounds: Grounds, ledger: Ledger, record: Callable[..., Result], ek: str
) -> None:
    assert record(honest, enrol=True).verdict is Verdict.TRUSTED
    assert record(attest(machine, grounds)).verdict is Verdict.TRUSTED
    (identity,) = ledger.entries(kind=Kind.IDENTITY)
    assert identity.record == Identity("web1", "ek-certificate", ek, honest.result.keys.ak)
    first, second = ledger.entries(kind=Kind.ATTESTATION)
    assert first.record.anchor is not None
    assert second.record.volume_key_id == machine.volume_key_id.hex()
    assert second.record.reference_set == "debian-forky"
    shared = {name for name in first.documents if first.documents[name] == second.documents[name]}
    assert shared == {"manifest", "manifest-signature", "policy", "identity", "firmware-log", "userspace-log", "token"}


def test_nothing_is_written_in_check_mode_but_the_verdict_is_the_same(
    honest: Attestation, ledger: Ledger, record: Callable[..., Result]
) -> None:
    assert record(honest, enrol=True, write=False).verdict is Verdict.TRUSTED
    Recorder(ledger, "web1", write=False).unjudged({"verdict": "unknown"})
    assert ledger.head().sequence == 0


def test_one_tpm_behind_two_hosts_makes_both_untrusted_until_it_is_approved(
    honest: Attestation, machine: Any, grounds: Grounds, ledger: Ledger, record: Callable[..., Result], ek: str
) -> None:
    record(honest, enrol=True)
    clone = record(attest(machine, grounds), "web2", enrol=True)
    assert clone.verdict is Verdict.UNTRUSTED
    assert status(clone, IDENTITY) is Status.FAILED
    ledger.append(Identity("web2", "ek-certificate", ek))
    assert record(attest(machine, grounds)).verdict is Verdict.UNTRUSTED
    ledger.decide(Decision("web2", Action.RETIRE_HOST, "ann", "renamed"))
    assert record(attest(machine, grounds)).verdict is Verdict.TRUSTED


def test_another_tpm_behind_a_known_host_is_untrusted_until_it_is_approved(
    honest: Attestation, other: Any, grounds: Grounds, ledger: Ledger, record: Callable[..., Result]
) -> None:
    record(honest, enrol=True)
    stranger = attest(other, grounds)
    assert stranger.result.verdict is Verdict.TRUSTED
    for options in ({}, {"enrol": True}):
        assert record(stranger, **options).verdict is Verdict.UNTRUSTED
    assert [entry.record.anchor for entry in ledger.entries(kind=Kind.ATTESTATION)][1:] == [None, None]
    ledger.decide(Decision("web1", Action.APPROVE_IDENTITY, "ann", "rebuilt", key=stranger.result.keys.ek))
    ledger.decide(Decision("web1", Action.RENEW_VOLUME, "ann", "rebuilt", volume="fde-crypt"))
    assert record(attest(other, grounds)).verdict is Verdict.TRUSTED


@pytest.mark.parametrize("part", ["generation", "state", "reset_count"])
def test_a_tpm_that_went_back_is_untrusted(
    honest: Attestation, machine: Any, grounds: Grounds, ledger: Ledger, record: Callable[..., Result], part: str
) -> None:
    now = honest.result.anchor
    assert now is not None
    ahead = replace(now, **{part: getattr(now, part) + 1})
    record(honest, enrol=True, result=replace(honest.result, anchor=ahead))
    result = record(attest(machine, grounds))
    assert result.verdict is Verdict.UNTRUSTED
    assert status(result, FRESHNESS) is Status.FAILED


def test_keys_and_anchor_that_were_not_proved_are_not_recorded(
    machine: Any, grounds: Grounds, ledger: Ledger, record: Callable[..., Result], honest: Attestation
) -> None:
    lying = attest(machine, grounds, activated=base64.b64encode(bytes(32)).decode())
    record(lying, "web2", enrol=True)
    record(attest(machine, replace(grounds, authorities=())), "web3", enrol=True)
    assert list(ledger.entries(kind=Kind.IDENTITY)) == []
    record(honest, enrol=True)
    record(honest, result=replace(honest.result, keys=None, anchor=CertifiedAnchor(2**64 - 1, 2, 9)))
    highest = ledger.highest_anchor("web1", "fde-crypt")
    assert highest is not None
    assert highest.generation == 1


def test_an_untrusted_machine_is_not_enrolled(
    machine: Any, grounds: Grounds, ledger: Ledger, record: Callable[..., Result]
) -> None:
    assert record(attest(machine, replace(grounds, strategy="overlay")), enrol=True).verdict is Verdict.UNTRUSTED
    assert list(ledger.entries(kind=Kind.IDENTITY)) == []


def test_first_use_is_recorded_then_approved_then_trusted(
    machine: Any, grounds: Grounds, ledger: Ledger, record: Callable[..., Result], ek: str
) -> None:
    bare = replace(allowing(grounds, FIRST_USE), authorities=())
    assert record(attest(machine, bare), enrol=True, first_use=True).verdict is Verdict.UNKNOWN
    (identity,) = ledger.entries(kind=Kind.IDENTITY)
    assert (identity.record.road, identity.record.ek) == ("first-use", ek)
    assert ledger.approval("web1") is None
    ledger.decide(Decision("web1", Action.APPROVE_IDENTITY, "ann", "compared with the console", key=ek))
    found = ledger.approval("web1")
    assert found is not None
    approval = Approval("web1", ek, "ann", found.recorded)
    result = record(attest(machine, replace(bare, allowed=replace(bare.allowed, approval=approval))), first_use=True)
    assert (result.verdict, result.road) == (Verdict.TRUSTED, "first-use")
    ledger.decide(Decision("web1", Action.RETIRE_HOST, "ann", "gone"))
    assert ledger.approval("web1") is None


@pytest.fixture(scope="module")
def demanding(grounds: Grounds) -> Grounds:
    """The grounds of an operator whose policy takes nothing for fresh that the ledger does not know."""
    return replace(grounds, policy=Policy(name="lab", freshness=Freshness.LEDGER))


def test_a_host_is_enrolled_under_a_policy_that_only_a_ledger_can_meet(
    machine: Any, demanding: Grounds, ledger: Ledger, record: Callable[..., Result]
) -> None:
    attestation = attest(machine, demanding)
    assert attestation.result.verdict is Verdict.UNKNOWN
    assert record(attestation, policy=demanding.policy).verdict is Verdict.UNKNOWN
    first = record(attest(machine, demanding), policy=demanding.policy, enrol=True)
    assert (first.verdict, first.freshness) == (Verdict.TRUSTED, Freshness.LEDGER)
    assert ledger.register().hosts() == {"web1"}
    assert record(attest(machine, demanding), policy=demanding.policy).verdict is Verdict.TRUSTED


def test_a_host_that_is_not_enrolled_is_not_said_to_be_known(
    machine: Any, grounds: Grounds, ledger: Ledger, record: Callable[..., Result]
) -> None:
    refused = record(attest(machine, replace(grounds, strategy="overlay")), enrol=True)
    assert status(refused, IDENTITY) is Status.UNKNOWN
    assert refused.freshness is Freshness.HEADER


def test_first_use_waits_for_approval_under_the_same_policy(
    machine: Any, demanding: Grounds, ledger: Ledger, record: Callable[..., Result]
) -> None:
    bare = replace(allowing(demanding, FIRST_USE), authorities=())
    options = {"policy": demanding.policy, "enrol": True, "first_use": True}
    assert record(attest(machine, bare), **options).verdict is Verdict.UNKNOWN
    assert ledger.register().hosts() == {"web1"}


def test_a_tpm_that_nobody_vouches_for_locks_out_no_volume_key(
    honest: Attestation, machine: Any, grounds: Grounds, ledger: Ledger, record: Callable[..., Result]
) -> None:
    assert honest.result.claims["volume_key_id"] is not None
    record(attest(machine, replace(grounds, authorities=())), "liar")
    assert record(honest, enrol=True).verdict is Verdict.TRUSTED


# --- machines that keep nothing
# ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def immutable(image: Any) -> Any:
    """The next image of the same builder, of the strategy that keeps nothing."""
    return type(image)(image, "immutable")


@pytest.fixture(scope="module")
def both(demanding: Grounds, image: Any, immutable: Any) -> Grounds:
    """Grounds with a set of either image, and a policy that demands all that a ledger can give."""
    manifests = (immutable.manifest(strategy="ephemeral"), image.manifest())
    return replace(demanding, references=tuple(parse_manifest(json.dumps(one).encode()) for one in manifests))


@pytest.fixture(scope="module")
def bare(make_machine: Callable[..., Any], immutable: Any) -> Any:
    """A machine that was booted from the image which keeps nothing."""
    machine = make_machine("bare")
    machine.token = b""
    machine.boot(immutable, first=False, volume=False)
    return machine


def attest_bare(machine: Any, grounds: Grounds, **evidence: Any) -> Attestation:
    """Ask a machine without a volume, which has no evidence of one and no anchor that belongs to it."""
    return attest(machine, grounds, **{"token": None, "anchor": None, **evidence})


def test_a_fleet_that_keeps_nothing_is_enrolled_and_attested_with_a_ledger(
    bare: Any, both: Grounds, ledger: Ledger, record: Callable[..., Result], today: Today
) -> None:
    stranger = record(attest_bare(bare, both), policy=both.policy)
    assert (stranger.verdict, status(stranger, IDENTITY)) == (Verdict.UNKNOWN, Status.UNKNOWN)
    for options in ({"enrol": True}, {}):
        result = record(attest_bare(bare, both), policy=both.policy, **options)
        assert (result.verdict, result.freshness) == (Verdict.TRUSTED, Freshness.DATA)
    assert [check.reason for check in result.checks if check.name in (FRESHNESS, UNIQUE_KEY)] == [
        "the machine keeps nothing that could have gone back",
        "the machine keeps nothing, so it has no volume key",
    ]
    entry = list(ledger.entries(kind=Kind.ATTESTATION))[-1]
    assert (entry.record.volume, entry.record.volume_key_id, entry.record.anchor) == (None, None, None)
    assert entry.record.reference_set == "immutable"
    assert audit(ledger, Today(), whole_history=True).sound
    with pytest.raises(FdeError, match="no volume fde-crypt of this host"):
        ledger.decide(Decision("web1", Action.RENEW_VOLUME, "ann", "there is none", volume="fde-crypt"))


def test_a_tpm_behind_two_hosts_that_keep_nothing_is_noticed(
    bare: Any, both: Grounds, record: Callable[..., Result]
) -> None:
    record(attest_bare(bare, both), policy=both.policy, enrol=True)
    second = record(attest_bare(bare, both), "web2", policy=both.policy, enrol=True)
    assert (second.verdict, status(second, IDENTITY)) == (Verdict.UNTRUSTED, Status.FAILED)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("hidden", [("token",), ("token", "anchor")])
def test_a_machine_whose_image_has_a_volume_does_not_pass_for_one_that_keeps_nothing(
    make_machine: Callable[..., Any],
    both: Grounds,
    image: Any,
    immutable: Any,
    ledger: Ledger,
    record: Callable[..., Result],
    order: int,
    hidden: tuple[str, ...],
) -> None:
    """It hides its volume, or never opened it; the set of an image that keeps nothing is among those given."""
    grounds = replace(both, references=both.references[::order])
    machine = make_machine("pretender")
    for opened in (True, False):
        machine.boot(image, first=False, volume=opened)
        shown = attest(machine, grounds, **dict.fromkeys(hidden))
        result = record(shown, policy=grounds.policy, enrol=True)
        assert result.verdict is Verdict.UNTRUSTED
        assert "no_volume" not in {check.name for check in result.checks}
        assert result.claims["strategy"] is None
        values = shown_values(shown)
        values["11"] = immutable.pcr_11[":".join(PHASES)].hex()
        lying = attest(machine, grounds, **dict.fromkeys(hidden), pcrs={"sha256": values})
        assert status(lying.result, "quote_digest") is Status.FAILED
        assert record(lying, policy=grounds.policy, enrol=True).verdict is Verdict.UNTRUSTED
    assert ledger.register().hosts() == set()


def shown_values(attestation: Attestation) -> dict[str, str]:
    """Return the PCRs that a machine showed."""
    values: dict[str, str] = json.loads(attestation.documents()["evidence"])["pcrs"]["sha256"]
    return values


def test_a_host_that_keeps_nothing_for_a_while_does_not_make_its_volume_forgotten(
    make_machine: Callable[..., Any],
    both: Grounds,
    image: Any,
    immutable: Any,
    ledger: Ledger,
    record: Callable[..., Result],
) -> None:
    machine = make_machine("twofold")
    first = attest(machine, both)
    assert first.result.anchor is not None
    ahead = replace(first.result.anchor, generation=first.result.anchor.generation + 1)
    record(first, policy=both.policy, enrol=True, result=replace(first.result, anchor=ahead))
    machine.boot(immutable, first=False, volume=False)
    assert record(attest_bare(machine, both), policy=both.policy).verdict is Verdict.TRUSTED
    only_clone = replace(both, strategy="clone")
    assert status(attest_bare(machine, only_clone).result, "strategy") is Status.FAILED
    machine.boot(image, first=False)
    back = record(attest(machine, both), policy=both.policy)
    assert (back.verdict, status(back, FRESHNESS)) == (Verdict.UNTRUSTED, Status.FAILED)


def test_a_volume_left_on_the_disk_of_a_machine_that_keeps_nothing_is_noticed(
    machine: Any, bare: Any, both: Grounds, record: Callable[..., Result]
) -> None:
    left = attest_bare(bare, both, token=base64.b64encode(machine.token).decode())
    result = record(left, policy=both.policy, enrol=True)
    assert (result.verdict, status(result, "no_volume")) == (Verdict.UNTRUSTED, Status.FAILED)


def test_a_key_that_was_not_proved_is_not_called_unique(
    machine: Any, grounds: Grounds, record: Callable[..., Result]
) -> None:
    hidden = attest(machine, grounds, token=None)
    result = record(hidden)
    assert (result.claims["volume_key_id"], status(result, UNIQUE_KEY)) == (None, Status.UNKNOWN)
    # Where no evidence of a volume is demanded, nothing is asked of its key.
    lenient = Policy(volume=VolumeTerms(evidence=False))
    result = record(attest(machine, replace(grounds, policy=lenient), token=None), policy=lenient, enrol=True)
    assert (result.verdict, status(result, UNIQUE_KEY)) == (Verdict.TRUSTED, Status.WAIVED)


# --- judged again
# ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def today(signed: tuple[bytes, bytes, bytes], grounds: Grounds) -> Today:
    return Today([signed[2]], grounds.authorities)


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
    assert status(without.result, "recoveries") is Status.FAILED
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
