# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Roads, ledger and audit over real TPMs: what is recorded of a machine, and what the ledger makes of the next one."""

from __future__ import annotations

import base64
import datetime
import json
from dataclasses import replace
from typing import Any, Callable

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.case import Grounds
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.judgement import (
    CertifiedAnchor,
    Result,
    Status,
    Verdict,
)
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.policy import Freshness, Policy, VolumeTerms
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.reference import parse_manifest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.choice import Allowed
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.first_use import Approval
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.trust import RoadName
from ansible_collections.cvm.fde.plugins.plugin_utils.attestation import Attestation
from ansible_collections.cvm.fde.plugins.plugin_utils.auditing import audit
from ansible_collections.cvm.fde.plugins.plugin_utils.case_file import Today
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.ledger import Ledger
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.records import Action, Decision, Identity, Kind
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger_checks import FRESHNESS, IDENTITY, UNIQUE_KEY
from ansible_collections.cvm.fde.plugins.plugin_utils.recording import Recorder
from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.asked import attest, status

PHASES = ("enter-initrd", "leave-initrd", "sysinit", "ready")
CERTIFICATE, PINNED, FIRST_USE = RoadName.EK_CERTIFICATE, RoadName.PINNED_EK, RoadName.FIRST_USE


@pytest.fixture(scope="module")
def other(make_machine: Callable[..., Any]) -> Any:
    return make_machine("other")


def allowing(grounds: Grounds, *roads: RoadName, **allowed: Any) -> Grounds:
    return replace(grounds, allowed=Allowed(roads, "web1", **allowed))


@pytest.fixture(scope="module")
def ek(honest: Attestation) -> str:
    assert honest.result.keys
    return honest.result.keys.ek


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

    then = grounds.now - datetime.timedelta(days=2)
    assert verdict(Approval("web1", ek, "ann", then)) is Verdict.TRUSTED
    assert verdict(Approval("web2", ek, "ann", then)) is Verdict.UNTRUSTED
    assert verdict(Approval("web1", "00" * 32, "ann", then)) is Verdict.UNTRUSTED
    assert verdict(Approval("web1", ek, "ann", grounds.now + datetime.timedelta(days=1))) is Verdict.UNTRUSTED


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
