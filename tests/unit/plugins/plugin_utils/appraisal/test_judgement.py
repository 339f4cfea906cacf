# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The judgement of a whole machine."""

from __future__ import annotations

import base64
import copy
import datetime
import hashlib
import json
import struct
import subprocess
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.tpm import anchor as anchors
from ansible_collections.cvm.fde.plugins.module_utils.tpm import rounds
from ansible_collections.cvm.fde.plugins.module_utils.tpm.esys import opened, tss
from ansible_collections.cvm.fde.plugins.module_utils.tpm.keys import EK_ECC_CERTIFICATE, EK_RSA_CERTIFICATE, primary
from ansible_collections.cvm.fde.plugins.module_utils.tpm.templates import EK_ECC_P256
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal import judgement
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.case import Case, Challenge, Grounds
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.credential import make_credential
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.ear import attestation_result
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.endorsement import load_authorities
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import FAULT
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.evidence import parse_evidence, parse_identity
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.judgement import Status, Verdict
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.policy import (
    Freshness,
    HardwareTerms,
    Policy,
    SetTerms,
    VolumeTerms,
)
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.reference import Reference, parse_manifest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.trust import digest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.rules.table import DEFAULT_PCRS, PARTS, RULES
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import parse_public, parse_quote
from ansible_collections.cvm.fde.tests.unit.plugins.conftest import timeless, write_index
from cryptography.hazmat.primitives.asymmetric import ec

NONCE = bytes(range(32))
SECRET = bytes(range(32, 64))

#: What is read of a machine's answers, and the check that needs it first.
PARTS_OF_A_CASE = {
    "endorsement": {"endorsement_key"},
    "attestation": {"attestation_key"},
    "quote": {"quote_signature"},
    "replay": {"log_replay"},
    "certification": {"anchor_signature"},
    "anchor": {"anchor_state"},
    "creation": {"evidence_signature"},
    "creation_quote": {"evidence_signature"},
    "creation_replay": {"evidence_replay"},
    "origin": {"evidence_phase"},
    "recovery": {"recoveries"},
    "recovered_by": {"recovery_phase"},
    "recovery_replay": {"recovery_replay"},
}


@dataclass
class Answers:
    """What a machine sent in both rounds, still as JSON, so that tests can change it on the way."""

    identity: dict[str, Any]
    evidence: dict[str, Any]
    challenge: Challenge
    grounds: Grounds

    def appraise(self) -> judgement.Result:
        return judgement.appraise(
            parse_identity(self.identity), parse_evidence(self.evidence), self.challenge, self.grounds
        )

    def change(self, **evidence: Any) -> Answers:
        return replace(self, evidence={**copy.deepcopy(self.evidence), **evidence})

    def change_token(self, **fields: Any) -> Answers:
        token = json.loads(base64.b64decode(self.evidence["token"]))
        return self.change(token=rounds.encode(json.dumps({**token, **fields}).encode()))

    def token(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(base64.b64decode(self.evidence["token"]))
        return found


def ask(machine: Any, grounds: Grounds, nonce: bytes = NONCE, pcrs: tuple[int, ...] = DEFAULT_PCRS) -> Answers:
    """Hold both rounds with a machine."""
    identity = rounds.identity(machine.sources)
    parsed = parse_identity(identity)
    name = parse_public(parsed.attestation).name
    credential = make_credential(parse_public(parsed.endorsement), name, SECRET)
    request = rounds.Request(nonce, {"sha256": pcrs}, credential.blob, credential.secret)
    evidence = rounds.evidence(machine.sources, request, machine.token)
    json.dumps(evidence)
    return Answers(identity, evidence, Challenge(nonce, SECRET, {"sha256": frozenset(pcrs)}, grounds.now), grounds)


@pytest.fixture(scope="session")
def grounds(image: Any, authority: Path, tomorrow: datetime.datetime) -> Grounds:
    reference = parse_manifest(json.dumps(image.manifest()).encode())
    return Grounds((reference,), load_authorities((authority / "ca.pem").read_bytes()), tomorrow)


@pytest.fixture(scope="session")
def good(machine: Any, grounds: Grounds) -> Answers:
    return ask(machine, grounds)


def failed(result: judgement.Result) -> set[str]:
    return {check.name for check in result.checks if check.status is Status.FAILED}


def reason(result: judgement.Result, name: str) -> str:
    return next(check.reason for check in result.checks if check.name == name)


def test_a_machine_after_its_first_boot_is_trusted(good: Answers, machine: Any, image: Any) -> None:
    result = good.appraise()
    assert [(check.name, check.reason) for check in result.checks if check.status is not Status.PASSED] == []
    assert result.verdict is Verdict.TRUSTED
    assert result.road == "ek-certificate"
    assert result.claims["volume_key_id"] == machine.volume_key_id.hex()
    assert result.claims["root_hash"] == image.root_hash
    assert result.claims["secure_boot"] is True
    assert result.claims["anchor"] == {
        "state": "ready",
        "generation": 1,
        "complete": False,
        "recoveries": 0,
        "refusals": 0,
        "last_refusal": None,
        "matches": True,
    }


def give_ecc_endorsement_key(machine: Any, authority: Path) -> None:
    """Replace the certificate of the machine's RSA endorsement key by one of its ECC key, by the same authority."""
    with opened(machine.tcti) as esys:
        with primary(esys, EK_ECC_P256) as key:
            point = parse_public(key.public).key.public_numbers()
        words = ["swtpm_localca", "--tpm2", "--type", "ek", "--ek", f"x={point.x:064x},y={point.y:064x},id=secp256r1"]
        words += ["--dir", str(machine.folder), "--vmid", "ecc", "--tpm-spec-family", "2.0", "--tpm-spec-level", "0"]
        words += ["--tpm-spec-revision", "164", "--logfile", str(machine.folder / "ca.log")]
        words += ["--tpm-manufacturer", "id:00001014", "--tpm-model", "swtpm", "--tpm-version", "id:20191023"]
        words += ["--configfile", str(authority / "localca.conf"), "--optsfile", str(authority / "localca.options")]
        subprocess.run(words, check=True)
        certificate = (machine.folder / "ek.cert").read_bytes()
        esys.nv_undefine_space(esys.tr_from_tpmpublic(EK_RSA_CERTIFICATE), tss.ESYS_TR.PLATFORM)
        write_index(esys, EK_ECC_CERTIFICATE, certificate)


def test_a_machine_whose_endorsement_key_is_ecc_is_trusted_by_its_certificate(
    make_machine: Callable[..., Any], authority: Path, grounds: Grounds
) -> None:
    machine = make_machine("ecc")
    give_ecc_endorsement_key(machine, authority)
    answers = ask(machine, grounds)
    endorsement = parse_public(base64.b64decode(answers.identity["endorsement"]))
    assert isinstance(endorsement.key, ec.EllipticCurvePublicKey)
    result = answers.appraise()
    assert [(check.name, check.reason) for check in result.checks if check.status is not Status.PASSED] == []
    assert (result.verdict, result.road) == (Verdict.TRUSTED, "ek-certificate")
    assert result.claims["endorsement_key"] == digest(endorsement.key)
    guessed = answers.change(activated=flip(answers.evidence["activated"]))
    assert failed(guessed.appraise()) == {"credential_activation"}
    rsa = ask(make_machine("rsa"), grounds).identity["endorsement_certificate"]
    borrowed = replace(answers, identity={**answers.identity, "endorsement_certificate": rsa}).appraise()
    assert failed(borrowed) == {"endorsement_certificate"}


def test_it_is_trusted_again_after_a_reboot(make_machine: Callable[..., Any], grounds: Grounds, image: Any) -> None:
    machine = make_machine("rebooted")
    machine.boot(image, first=False)
    result = ask(machine, grounds).appraise()
    assert result.verdict is Verdict.TRUSTED
    history = next(check for check in result.checks if check.name == "evidence_history")
    assert history.reason == "the TPM was reset 1 times since"


def test_every_check_is_reported_in_the_order_of_judgement(good: Answers) -> None:
    assert [check.name for check in good.appraise().checks] == [rule.name for rule in RULES]


def test_a_rule_rests_only_on_rules_that_come_before_it() -> None:
    seen: set[str] = set()
    for rule in RULES:
        assert set(rule.needs) <= seen, rule.name
        seen.add(rule.name)


def test_an_answer_to_another_nonce_is_refused(good: Answers) -> None:
    old = replace(good, challenge=replace(good.challenge, nonce=bytes(32)))
    result = old.appraise()
    assert result.verdict is Verdict.UNTRUSTED
    assert "quote_nonce" in failed(result)
    assert "anchor_signature" in failed(result)


def test_the_quote_of_another_machine_is_refused(
    good: Answers, make_machine: Callable[..., Any], grounds: Grounds
) -> None:
    other = ask(make_machine("other"), grounds)
    result = good.change(quote=other.evidence["quote"], pcrs=other.evidence["pcrs"]).appraise()
    assert failed(result) == {"quote_signature"}
    assert result.verdict is Verdict.UNTRUSTED


def test_an_attestation_key_of_another_tpm_cannot_be_activated(
    good: Answers, make_machine: Callable[..., Any], grounds: Grounds
) -> None:
    other = ask(make_machine("relay"), grounds)
    mixed = replace(other, identity={**good.identity, "attestation": other.identity["attestation"]})
    mixed = mixed.change(activated=rounds.encode(bytes(32)))
    assert "credential_activation" in failed(mixed.appraise())


def test_a_machine_that_is_known_by_another_endorsement_key_is_refused(good: Answers) -> None:
    stranger = replace(good, grounds=replace(good.grounds, endorsement_key="0" * 64))
    result = stranger.appraise()
    assert "endorsement_key" in failed(result)
    assert result.road == "none"


def test_a_certificate_with_a_date_of_no_calendar_costs_the_machine_its_trust_and_nothing_more(good: Answers) -> None:
    bad = timeless(parse_public(base64.b64decode(good.identity["endorsement"])).key)
    result = replace(good, identity={**good.identity, "endorsement_certificate": rounds.encode(bad)}).appraise()
    assert (result.verdict, failed(result)) == (Verdict.UNTRUSTED, {"endorsement_certificate"})
    assert reason(result, "endorsement_certificate") == "the certificate cannot be read"


@pytest.mark.parametrize("part", sorted(PARTS_OF_A_CASE))
def test_an_error_of_the_verifier_itself_fails_the_check_and_tells_nothing(
    recovered: Answers, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def stumbles(_case: Case) -> object:
        raise ZeroDivisionError("evil \x1b[2J")

    monkeypatch.setattr(Case, part, property(stumbles))
    result = recovered.appraise()
    assert result.verdict in (Verdict.UNTRUSTED, Verdict.UNEXPLAINED)
    assert failed(result) & PARTS_OF_A_CASE[part]
    assert {reason(result, name) for name in failed(result)} == {
        f"{FAULT} (ZeroDivisionError): keep the evidence, and report it"
    }


def test_without_an_authority_the_verdict_is_unknown(good: Answers) -> None:
    result = replace(good, grounds=replace(good.grounds, authorities=())).appraise()
    assert (result.verdict, failed(result)) == (Verdict.UNKNOWN, set())


def test_without_an_endorsement_certificate_the_verdict_is_unknown(good: Answers) -> None:
    result = replace(good, identity={**good.identity, "endorsement_certificate": None}).appraise()
    assert (result.verdict, failed(result)) == (Verdict.UNKNOWN, set())


def test_an_expired_certificate_is_refused(good: Answers) -> None:
    later = replace(good.grounds, now=good.grounds.now + datetime.timedelta(days=365 * 40))
    asked = replace(good.challenge, made=later.now)
    assert failed(replace(good, grounds=later, challenge=asked).appraise()) == {"endorsement_certificate"}


def test_a_certificate_of_another_authority_is_refused(good: Answers, tmp_path: Path, request: Any) -> None:
    conftest = request.config.pluginmanager.getplugin(str(Path(__file__).parents[2] / "conftest.py"))
    other = conftest.make_authority(tmp_path / "other")
    grounds = replace(good.grounds, authorities=load_authorities((other / "ca.pem").read_bytes()))
    assert failed(replace(good, grounds=grounds).appraise()) == {"endorsement_certificate"}


def without(attributes: int, add: int = 0) -> Callable[[bytes], bytes]:
    def change(public: bytes) -> bytes:
        bits = int.from_bytes(public[4:8], "big") & ~attributes | add
        return public[:4] + bits.to_bytes(4, "big") + public[8:]

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(without(1 << 16), "may sign what the TPM did not make", id="unrestricted"),
        pytest.param(without(0, add=1 << 17), "can decrypt", id="decrypts"),
        pytest.param(without(1 << 1), "may sign what the TPM did not make", id="duplicable"),
        pytest.param(without(1 << 5), "was not made in the TPM", id="imported"),
        pytest.param(without(1 << 10), "not made from this collection's template", id="other-template"),
    ],
)
def test_an_attestation_key_with_other_attributes_is_refused(
    good: Answers, change: Callable[[bytes], bytes], reason: str
) -> None:
    public = change(base64.b64decode(good.identity["attestation"]))
    result = replace(good, identity={**good.identity, "attestation": rounds.encode(public)}).appraise()
    check = next(check for check in result.checks if check.name == "attestation_key")
    assert check.status is Status.FAILED
    assert reason in check.reason
    assert result.verdict is Verdict.UNTRUSTED


def flip(text: str, place: int = -1) -> str:
    data = bytearray(base64.b64decode(text))
    data[place] ^= 1
    return rounds.encode(bytes(data))


def changed_values(good: Answers, change: Callable[[dict[str, str]], None]) -> Answers:
    values = dict(good.evidence["pcrs"]["sha256"])
    change(values)
    return good.change(pcrs={"sha256": values})


def swap(values: dict[str, str]) -> None:
    values["4"], values["7"] = values["7"], values["4"]


BAD: dict[str, tuple[Callable[[Answers], Answers], set[str]]] = {
    "a flipped signature": (
        lambda good: good.change(
            quote={**good.evidence["quote"], "signature": flip(good.evidence["quote"]["signature"])}
        ),
        {"quote_signature"},
    ),
    "a flipped statement": (
        lambda good: good.change(quote={**good.evidence["quote"], "attest": flip(good.evidence["quote"]["attest"])}),
        {"quote_signature"},
    ),
    "two PCR values swapped": (lambda good: changed_values(good, swap), {"quote_digest"}),
    "a PCR value dropped": (
        lambda good: changed_values(good, lambda values: values.pop("9") and None),
        {"quote_digest"},
    ),
    "a PCR value added": (
        lambda good: changed_values(good, lambda values: values.update({"10": "00" * 32})),
        {"quote_digest"},
    ),
    "a second bank": (
        lambda good: good.change(pcrs={**good.evidence["pcrs"], "sha1": {"0": "00" * 20}}),
        {"quote_digest"},
    ),
    "a secret that is not the one": (
        lambda good: good.change(activated=flip(good.evidence["activated"])),
        {"credential_activation"},
    ),
    "no anchor": (lambda good: good.change(anchor=None), {"anchor_signature"}),
    "the quote in place of the anchor's certification": (
        lambda good: good.change(anchor=good.evidence["quote"]),
        {"anchor_signature"},
    ),
    "a flipped certification of the anchor": (
        lambda good: good.change(
            anchor={**good.evidence["anchor"], "signature": flip(good.evidence["anchor"]["signature"])}
        ),
        {"anchor_signature"},
    ),
    "a header that was changed and not committed": (
        lambda good: good.change(header=hashlib.sha256(b"another header").hexdigest()),
        {"header_committed"},
    ),
    "a header of zeros, which is pinned as the next one of no change": (
        lambda good: good.change(header="00" * 32),
        {"header_committed"},
    ),
    "no evidence": (lambda good: good.change(token=None), {"evidence_signature"}),
    "other claims": (
        lambda good: good.change_token(
            claims=rounds.encode(base64.b64decode(good.token()["claims"]).replace(b'"clone"', b'"copy"'))
        ),
        {"evidence_claims"},
    ),
    "the present quote in place of the creation's": (
        lambda good: good.change_token(quote=good.evidence["quote"], pcrs=good.evidence["pcrs"]),
        {"evidence_claims", "evidence_pcrs"},
    ),
    "an evidence token with a field too many": (
        lambda good: good.change_token(extra=1),
        {"evidence_signature"},
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_evidence_that_was_changed_on_the_way_is_refused(good: Answers, name: str) -> None:
    change, expected = BAD[name]
    result = change(good).appraise()
    assert failed(result) == expected
    assert result.verdict is Verdict.UNTRUSTED


def test_the_header_on_the_disk_is_the_pinned_one_or_nothing_is_said_of_it(good: Answers) -> None:
    for header, expected in (
        (hashlib.sha256(b"header").hexdigest(), "the header on the disk is the one that the anchor pins"),
        (None, "the machine says nothing of the header on its disk"),
    ):
        result = good.change(header=header).appraise()
        assert result.verdict is Verdict.TRUSTED and reason(result, "header_committed") == expected


def test_a_quote_over_other_pcrs_is_refused(machine: Any, grounds: Grounds) -> None:
    answers = ask(machine, grounds, pcrs=(0, 4, 7, 12, 13, 15, 16))
    asked = replace(
        answers, challenge=replace(answers.challenge, selection={"sha256": frozenset((0, 4, 7, 11, 12, 13, 15))})
    )
    result = asked.appraise()
    assert "quote_selection" in failed(result)
    assert result.verdict is Verdict.UNTRUSTED


def logs(good: Answers, firmware: bytes | None = None, userspace: bytes | None = None) -> Answers:
    changes: dict[str, Any] = {}
    if firmware is not None:
        changes["firmware_log"] = rounds.encode(zlib.compress(firmware)) if firmware else None
    if userspace is not None:
        changes["userspace_log"] = rounds.encode(zlib.compress(userspace)) if userspace else None
    return good.change(**changes)


def test_a_machine_without_a_firmware_log_is_unknown(good: Answers) -> None:
    result = logs(good, firmware=b"").appraise()
    assert (result.verdict, failed(result)) == (Verdict.UNKNOWN, set())


def test_a_machine_without_systemds_log_is_unknown(good: Answers) -> None:
    result = logs(good, userspace=b"").appraise()
    assert (result.verdict, failed(result)) == (Verdict.UNKNOWN, set())


def test_an_incomplete_log_of_systemd_is_unknown(good: Answers) -> None:
    result = good.change(userspace_log_complete=False).appraise()
    assert (result.verdict, failed(result)) == (Verdict.UNKNOWN, set())


def test_a_log_from_which_a_record_was_dropped_leaves_a_pcr_unexplained(good: Answers, machine: Any) -> None:
    records = machine.userspace_log.read_bytes().split(b"\x1e")[1:]
    shorter = b"".join(b"\x1e" + text for text in records if b"sysinit" not in text)
    result = logs(good, userspace=shorter).appraise()
    assert result.verdict is Verdict.UNEXPLAINED
    check = next(check for check in result.checks if check.name == "log_replay")
    assert check.reason == "the logs do not lead to PCR 11"


def test_a_pcr_without_any_event_that_is_not_zero_is_named(make_machine: Callable[..., Any], grounds: Grounds) -> None:
    machine = make_machine("ima")
    with opened(machine.tcti) as esys:
        machine_log = machine.userspace_log.read_bytes()
        machine.measure(esys, 8, "silent", "unseen")
        machine.userspace_log.write_bytes(machine_log)
    result = ask(machine, grounds).appraise()
    assert result.verdict is Verdict.UNEXPLAINED
    assert {check.reason for check in result.checks if check.status is Status.FAILED} == {
        "the logs do not lead to PCR 8"
    }


def test_a_payload_that_was_changed_while_its_digest_was_kept_is_refused(good: Answers, machine: Any) -> None:
    raw = machine.firmware_log.read_bytes()
    place = raw.index("SecureBoot".encode("utf-16-le"))
    changed = raw[:place] + "SecureBooT".encode("utf-16-le") + raw[place + 20 :]
    result = logs(good, firmware=changed).appraise()
    assert failed(result) == {"secure_boot"}
    assert result.verdict is Verdict.UNTRUSTED


def test_a_machine_that_started_without_secure_boot_is_refused(
    make_machine: Callable[..., Any], grounds: Grounds
) -> None:
    result = ask(make_machine("insecure", secure_boot=False), grounds).appraise()
    assert {"secure_boot", "pcr_7", "evidence_boot"} <= failed(result)
    assert result.claims["secure_boot"] is False


def test_without_a_reference_for_pcr_7_the_signers_certificate_decides(good: Answers, image: Any) -> None:
    manifest = image.manifest()
    del manifest["pcrs"]["sha256"]["7"]
    reference = parse_manifest(json.dumps(manifest).encode())
    assert replace(good, grounds=replace(good.grounds, references=(reference,))).appraise().verdict is Verdict.TRUSTED
    manifest["secure_boot"]["signer_sha256"] = "0" * 64
    other = parse_manifest(json.dumps(manifest).encode())
    assert "pcr_7" in failed(replace(good, grounds=replace(good.grounds, references=(other,))).appraise())


@pytest.mark.parametrize("pcr", ["4", "7", "12", "13", "14"])
def test_a_pcr_value_that_the_manifest_does_not_list_is_refused(good: Answers, image: Any, pcr: str) -> None:
    manifest = copy.deepcopy(image.manifest())
    manifest["pcrs"]["sha256"][pcr] = ["11" * 32]
    reference = parse_manifest(json.dumps(manifest).encode())
    result = replace(good, grounds=replace(good.grounds, references=(reference,))).appraise()
    # The quote of the volume's creation does not cover PCR 13 and 14.
    assert failed(result) == {f"pcr_{pcr}"} | ({"evidence_boot"} if pcr not in ("13", "14") else set())


def test_an_initrd_that_the_logs_do_not_tell_of_is_noticed(
    make_machine: Callable[..., Any], grounds: Grounds, request: Any
) -> None:
    conftest = request.config.pluginmanager.getplugin(str(Path(__file__).parents[2] / "conftest.py"))
    answers = ask(make_machine("handed", initrd=b"the image's initrd and one more archive"), grounds)
    # What a stub hands over may hold a secret of the machine: no value is demanded, but the log must lead to it.
    assert answers.appraise().verdict is Verdict.TRUSTED
    assert "log_replay" in failed(logs(answers, firmware=conftest.FirmwareEvents().log()).appraise())


def test_the_keys_of_a_shim_are_refused_unless_the_manifest_lists_them(
    make_machine: Callable[..., Any], grounds: Grounds, image: Any
) -> None:
    machine = make_machine("shim")
    with opened(machine.tcti) as esys:
        machine.measure(esys, 14, "shim", "MokList")
    answers = ask(machine, grounds)
    result = answers.appraise()
    assert failed(result) == {"pcr_14"}
    assert "machine owner keys" in next(check for check in result.checks if check.name == "pcr_14").reason
    manifest = copy.deepcopy(image.manifest())
    manifest["pcrs"]["sha256"]["14"] = [answers.evidence["pcrs"]["sha256"]["14"]]
    reference = parse_manifest(json.dumps(manifest).encode())
    assert replace(answers, grounds=replace(grounds, references=(reference,))).appraise().verdict is Verdict.TRUSTED


def test_a_system_extension_is_refused_unless_the_manifest_lists_it(
    make_machine: Callable[..., Any], grounds: Grounds, image: Any
) -> None:
    machine = make_machine("extended")
    with opened(machine.tcti) as esys:
        machine.measure(esys, 13, "sysext", "an extension")
    answers = ask(machine, grounds)
    assert failed(answers.appraise()) == {"pcr_13"}
    manifest = copy.deepcopy(image.manifest())
    manifest["pcrs"]["sha256"]["13"] = [answers.evidence["pcrs"]["sha256"]["13"]]
    reference = parse_manifest(json.dumps(manifest).encode())
    assert replace(answers, grounds=replace(grounds, references=(reference,))).appraise().verdict is Verdict.TRUSTED


def test_another_image_is_refused(good: Answers, request: Any) -> None:
    conftest = request.config.pluginmanager.getplugin(str(Path(__file__).parents[2] / "conftest.py"))
    manifest = conftest.Image().manifest()
    manifest["root"]["hash"] = "22" * 32
    manifest["pcrs"]["sha256"]["11"] = dict.fromkeys(manifest["pcrs"]["sha256"]["11"], "33" * 32)
    reference = parse_manifest(json.dumps(manifest).encode())
    result = replace(good, grounds=replace(good.grounds, references=(reference,))).appraise()
    assert {"pcr_11", "anchor_policy", "evidence_phase"} <= failed(result)


def test_a_volume_that_was_opened_with_another_key_is_refused(
    make_machine: Callable[..., Any], grounds: Grounds, image: Any
) -> None:
    machine = make_machine("swapped")
    machine.volume_key = bytes(64)
    machine.boot(image, first=False)
    result = ask(machine, grounds).appraise()
    assert failed(result) == {"volume_key"}
    assert result.verdict is Verdict.UNTRUSTED


def test_the_public_id_of_a_key_does_not_pass_for_its_measurement(
    make_machine: Callable[..., Any], grounds: Grounds, image: Any, request: Any
) -> None:
    conftest = request.config.pluginmanager.getplugin(str(Path(__file__).parents[2] / "conftest.py"))
    machine = make_machine("relabelled")
    genuine, machine.volume_key = machine.volume_key_id, bytes(64)
    machine.boot(image, first=False)
    # Root of the other volume extends the id, which is no secret, and says of the real measurement that it is not one.
    with opened(machine.tcti) as esys:
        machine.measure(esys, 15, "volume-key", f"cryptsetup:fde-crypt:{conftest.UUID}", genuine)
    records = machine.userspace_log.read_bytes().split(b"\x1e")[1:]
    place = next(number for number, text in enumerate(records) if json.loads(text)["pcr"] == 15)
    other = {**json.loads(records[place]), "content": {"string": "something", "eventType": "machine-id"}}
    records[place] = json.dumps(other).encode() + b"\n"
    machine.userspace_log.write_bytes(b"".join(b"\x1e" + text for text in records))
    result = ask(machine, grounds).appraise()
    assert failed(result) == {"volume_key"}
    assert reason(result, "volume_key") == "the first measurement in PCR 15 is not that of this volume"
    assert result.verdict is Verdict.UNTRUSTED


def test_a_second_key_of_the_volume_is_refused(
    make_machine: Callable[..., Any], grounds: Grounds, request: Any
) -> None:
    conftest = request.config.pluginmanager.getplugin(str(Path(__file__).parents[2] / "conftest.py"))
    machine = make_machine("twice")
    with opened(machine.tcti) as esys:
        machine.measure(esys, 15, "volume-key", f"cryptsetup:fde-crypt:{conftest.UUID}", bytes(32))
    result = ask(machine, grounds).appraise()
    assert failed(result) == {"volume_key"}
    assert reason(result, "volume_key") == "the key of this volume was measured 2 times instead of once"


def test_a_key_that_the_firmware_claims_to_have_measured_is_refused(good: Answers, machine: Any) -> None:
    event = struct.pack("<IIIH", 15, 0xD, 1, 0xB) + machine.volume_key_id + struct.pack("<I", 0)
    texts = machine.userspace_log.read_bytes().split(b"\x1e")[1:]
    rest = b"".join(b"\x1e" + text for text in texts if json.loads(text)["pcr"] != 15)
    result = logs(good, firmware=machine.firmware_log.read_bytes() + event, userspace=rest).appraise()
    assert failed(result) == {"volume_key"}
    assert reason(result, "volume_key") == "the firmware measured something into PCR 15"


def test_a_system_that_replays_the_phases_of_the_image_cannot_write_the_anchor(
    make_machine: Callable[..., Any], grounds: Grounds, image: Any, request: Any
) -> None:
    conftest = request.config.pluginmanager.getplugin(str(Path(__file__).parents[2] / "conftest.py"))
    machine = make_machine("replayed")
    machine.start()
    evil = anchors.Anchor(anchors.State.READY, volume_key_id=bytes(32), generation=9)
    with opened(machine.tcti) as esys:
        conftest._extend(esys, 7, bytes(32))
        for pcr, _kind, _data, digest in conftest.FirmwareEvents().events:
            if pcr == 11:
                conftest._extend(esys, pcr, digest)
        conftest._extend(esys, 11, hashlib.sha256(b"enter-initrd").digest())
        with pytest.raises(Exception, match="policy"):
            anchors.write(esys, image.key, image.policies, evil)
        # It can make one of its own, which has another Name.
        anchors.define(esys, image.key)
        anchors.write(esys, image.key, image.policies, evil)
    machine.boot(image, first=False)
    result = ask(machine, grounds).appraise()
    assert failed(result) == {"anchor_policy"}
    assert result.verdict is Verdict.UNTRUSTED


def test_a_machine_is_named_only_by_a_pin_that_it_proved_to_have(good: Answers) -> None:
    unpinned = good.appraise()
    assert (unpinned.verdict, unpinned.claims["identity"]) == (Verdict.TRUSTED, "unpinned")
    pin = str(unpinned.claims["endorsement_key"])
    pinned = replace(good, grounds=replace(good.grounds, endorsement_key=pin))
    assert pinned.appraise().claims["identity"] == "pinned"
    stolen = replace(pinned, challenge=replace(good.challenge, secret=bytes(32))).appraise()
    assert (stolen.claims["identity"], stolen.claims["endorsement_key"]) == ("unpinned", None)


def test_an_attestation_key_is_claimed_only_once_it_signed(good: Answers) -> None:
    shown = digest(parse_public(base64.b64decode(good.identity["attestation"])).key)
    assert good.appraise().claims["attestation_key"] == shown
    old = replace(good, challenge=replace(good.challenge, nonce=bytes(32)))
    assert old.appraise().claims["attestation_key"] is None


def test_a_volume_that_was_not_opened_in_this_boot_is_refused(good: Answers, machine: Any) -> None:
    other = hashlib.sha256(b"x").digest()
    # A log that replays but speaks of another volume.
    text = machine.userspace_log.read_bytes().replace(b"cryptsetup:fde-crypt", b"cryptsetup:fde-other")
    result = logs(good, userspace=text).appraise()
    assert failed(result) == {"volume_key"}
    assert other.hex() not in json.dumps(dict(result.claims))


def test_an_anchor_that_was_never_made_ready_is_refused(
    make_machine: Callable[..., Any], grounds: Grounds, image: Any
) -> None:
    machine = make_machine("unfinished")
    with opened(machine.tcti) as esys:
        anchors.write(esys, image.key, image.policies, anchors.Anchor(anchors.State.INITIALIZING))
    assert failed(ask(machine, grounds).appraise()) == {"anchor_state"}


def test_an_expected_strategy_that_is_not_the_images_is_refused(good: Answers) -> None:
    result = replace(good, grounds=replace(good.grounds, strategy="overlay")).appraise()
    assert failed(result) == {"strategy"}


# --- the policy


def judged_by(good: Answers, policy: Policy) -> judgement.Result:
    return replace(good, grounds=replace(good.grounds, policy=policy)).appraise()


def test_a_waived_check_decides_nothing_and_keeps_its_reason(good: Answers, image: Any) -> None:
    manifest = copy.deepcopy(image.manifest())
    manifest["pcrs"]["sha256"]["13"] = ["11" * 32]
    changed = replace(good, grounds=replace(good.grounds, references=(parse_manifest(json.dumps(manifest).encode()),)))
    assert failed(changed.appraise()) == {"pcr_13"}
    result = judged_by(changed, Policy(waived_checks=frozenset(("pcr_13",))))
    assert result.verdict is Verdict.TRUSTED
    check = next(check for check in result.checks if check.name == "pcr_13")
    assert check.status is Status.WAIVED
    assert "does not have a value that the manifest lists" in check.reason
    assert attestation_result(result, Policy(), good.grounds.now)["submods"]["boot"]["ear.status"] == "warning"


def test_what_rests_on_a_waived_check_is_not_judged(good: Answers) -> None:
    result = judged_by(logs(good, firmware=b""), Policy(waived_checks=frozenset(("firmware_log",))))
    assert result.verdict is Verdict.UNKNOWN


def test_a_machine_without_a_firmware_log_is_judged_by_values_alone_where_a_policy_says_so(good: Answers) -> None:
    names = ("firmware_log", "log_replay", "secure_boot", "volume_key")
    result = judged_by(logs(good, firmware=b""), Policy(waived_checks=frozenset(names)))
    assert result.verdict is Verdict.TRUSTED
    assert {check.name for check in result.checks if check.status is Status.WAIVED} == set(names)


def test_without_evidence_a_volume_is_trusted_only_where_a_policy_says_so(good: Answers) -> None:
    bare = good.change(token=None)
    assert bare.appraise().verdict is Verdict.UNTRUSTED
    lenient = Policy(volume=VolumeTerms(evidence=False))
    assert judged_by(bare, lenient).verdict is Verdict.TRUSTED


def test_an_answer_that_came_late_is_refused(good: Answers) -> None:
    asked = replace(good.challenge, made=good.grounds.now - datetime.timedelta(seconds=301))
    assert failed(replace(good, challenge=asked).appraise()) == {"evidence_age"}
    early = replace(good.challenge, made=good.grounds.now + datetime.timedelta(seconds=1))
    assert failed(replace(good, challenge=early).appraise()) == {"evidence_age"}


def test_a_tpm_that_lost_power_is_trusted_unless_a_policy_wants_its_clock(
    make_machine: Callable[..., Any], grounds: Grounds, image: Any
) -> None:
    machine = make_machine("power-cut")
    machine.boot(image, first=False)
    after = ask(machine, grounds)
    assert not parse_quote(base64.b64decode(after.evidence["quote"]["attest"])).clock.safe
    assert after.appraise().verdict is Verdict.TRUSTED
    result = judged_by(after, Policy(safe_clock=True))
    assert failed(result) == {"evidence_age"}
    assert reason(result, "evidence_age").startswith("the TPM lost power")


def test_a_policy_that_demands_hardware_trusts_nothing_without_a_report(good: Answers) -> None:
    result = judged_by(good, Policy(hardware=HardwareTerms(products=frozenset(("Milan",)))))
    assert (result.verdict, failed(result)) == (Verdict.UNKNOWN, set())


def test_a_tpm_of_older_firmware_than_demanded_is_refused(good: Answers) -> None:
    assert failed(judged_by(good, Policy(minimum_tpm_firmware=1 << 63))) == {"hardware"}


def test_a_level_of_freshness_that_only_a_ledger_reaches_is_unknown_without_one(good: Answers) -> None:
    assert good.appraise().freshness is Freshness.HEADER
    result = judged_by(good, Policy(freshness=Freshness.LEDGER))
    assert (result.verdict, failed(result)) == (Verdict.UNKNOWN, set())


def test_a_strategy_that_the_policy_does_not_accept_is_refused(good: Answers) -> None:
    terms = VolumeTerms(strategies=frozenset(("overlay",)))
    assert failed(judged_by(good, Policy(volume=terms))) == {"strategy"}


def test_the_set_that_matches_is_found_among_several(good: Answers, image: Any, request: Any) -> None:
    conftest = request.config.pluginmanager.getplugin(str(Path(__file__).parents[2] / "conftest.py"))
    other = conftest.Image().manifest(name="other")
    other["pcrs"]["sha256"]["11"] = dict.fromkeys(other["pcrs"]["sha256"]["11"], "33" * 32)
    references = (parse_manifest(json.dumps(other).encode()), *good.grounds.references)
    result = replace(good, grounds=replace(good.grounds, references=references)).appraise()
    assert result.verdict is Verdict.TRUSTED
    assert result.claims["image"] == result.claims["made_by"] == "debian-forky"


def twin(good: Answers, name: str, **changes: Any) -> Reference:
    """Return a set of the same kernel image as the one that runs."""
    return replace(good.grounds.references[0], name=name, **changes)


OTHER_VALUE = frozenset((b"\1" * 32,))
REVOKED = Policy(sets=(SetTerms("debian-forky"), SetTerms("twin", revoked=True)))
BOTH_ORDERS = pytest.mark.parametrize("order", [1, -1], ids=["first", "last"])


def beside(answers: Answers, order: int, *twins: Reference, policy: Policy | None = None) -> judgement.Result:
    """Judge by more sets, before or behind those that were given."""
    references = (*twins, *answers.grounds.references)[::order]
    judged = replace(answers.grounds, references=references, policy=policy or Policy())
    return replace(answers, grounds=judged).appraise()


@BOTH_ORDERS
@pytest.mark.parametrize("pcr", ["pcr_4", "pcr_7", "pcr_12", "pcr_13", "pcr_14"])
@pytest.mark.parametrize("policy", [Policy(), REVOKED], ids=["given", "revoked"])
def test_a_set_of_the_same_image_that_was_booted_otherwise_does_not_describe_the_machine(
    good: Answers, order: int, pcr: str, policy: Policy
) -> None:
    result = beside(good, order, twin(good, "twin", **{pcr: OTHER_VALUE}), policy=policy)
    if policy is REVOKED and pcr in ("pcr_13", "pcr_14"):
        # The evidence of the volume's making says nothing of these: it may have been made by the revoked one.
        assert failed(result) == {"evidence_phase"}
        return
    assert (result.verdict, result.claims["image"]) == (Verdict.TRUSTED, "debian-forky")
    assert result.claims["made_by"] == "debian-forky"


@BOTH_ORDERS
def test_a_revoked_set_that_describes_the_machine_refuses_it_beside_any_other(good: Answers, order: int) -> None:
    result = beside(good, order, twin(good, "twin"), policy=REVOKED)
    assert (result.verdict, failed(result)) == (Verdict.UNTRUSTED, {"reference_set", "evidence_phase"})
    assert reason(result, "reference_set") == "the reference set twin is revoked"


@BOTH_ORDERS
def test_what_a_policy_waives_does_not_save_from_a_revoked_set(good: Answers, order: int) -> None:
    waiving = replace(REVOKED, waived_checks=frozenset(("pcr_7",)))
    result = beside(good, order, twin(good, "twin", pcr_7=OTHER_VALUE), policy=waiving)
    assert (result.verdict, failed(result)) == (Verdict.UNTRUSTED, {"reference_set"})


@BOTH_ORDERS
@pytest.mark.parametrize("log", ["honest", "none", "another"])
def test_no_log_saves_from_a_revoked_set_that_is_known_by_its_signer(good: Answers, order: int, log: str) -> None:
    answers = good if log == "honest" else logs(good, firmware=b"" if log == "none" else b"garbage")
    result = beside(answers, order, twin(good, "twin", pcr_7=None), policy=REVOKED)
    assert result.verdict is Verdict.UNTRUSTED
    assert reason(result, "reference_set") == "the reference set twin is revoked"


@BOTH_ORDERS
def test_sets_of_the_same_image_are_told_apart_by_the_signer_that_the_log_names(good: Answers, order: int) -> None:
    mine, other = twin(good, "mine", pcr_7=None), twin(good, "other", pcr_7=None, signer="0" * 64)
    alone = replace(good, grounds=replace(good.grounds, references=()))
    result = beside(alone, order, mine, other)
    assert (result.verdict, result.claims["image"]) == (Verdict.TRUSTED, "mine")


@BOTH_ORDERS
def test_a_set_past_its_end_does_not_stand_in_the_way_of_one_that_is_valid(good: Answers, order: int) -> None:
    result = beside(good, order, twin(good, "twin", not_after=good.grounds.now - datetime.timedelta(days=1)))
    assert (result.verdict, result.claims["image"]) == (Verdict.TRUSTED, "debian-forky")
    unnamed = beside(good, order, twin(good, "twin"), policy=Policy(sets=(SetTerms("debian-forky"),)))
    assert (unnamed.verdict, unnamed.claims["image"]) == (Verdict.TRUSTED, "debian-forky")


@BOTH_ORDERS
def test_a_machine_that_no_set_of_its_image_describes_is_refused(good: Answers, order: int) -> None:
    alone = replace(good, grounds=replace(good.grounds, references=()))
    result = beside(alone, order, *(twin(good, name, pcr_7=OTHER_VALUE) for name in ("one", "two")))
    assert failed(result) == {"pcr_7", "evidence_boot"}


def updated(image: Any, **changes: Any) -> Reference:
    """Return the set of an image that made the volume and does not run any more: only its initrd's PCR 11 is known."""
    manifest = copy.deepcopy(image.manifest(name="before", **changes))
    ready = "enter-initrd:leave-initrd:sysinit:ready"
    manifest["pcrs"]["sha256"]["11"][ready] = "44" * 32
    return parse_manifest(json.dumps(manifest).encode())


def test_a_volume_of_the_image_before_an_update_is_judged_by_that_image(good: Answers, image: Any) -> None:
    after = copy.deepcopy(image.manifest(name="after", root={"hash": "22" * 32}))
    after["pcrs"]["sha256"]["11"]["enter-initrd"] = "55" * 32
    references = (parse_manifest(json.dumps(after).encode()), updated(image))
    both = replace(good, grounds=replace(good.grounds, references=references))
    result = both.appraise()
    assert result.verdict is Verdict.TRUSTED
    assert (result.claims["image"], result.claims["made_by"]) == ("after", "before")
    assert [reference.name for reference in result.references] == ["after", "before"]
    revoked = Policy(sets=(SetTerms("after"), SetTerms("before", revoked=True)))
    assert "evidence_phase" in failed(judged_by(both, revoked))
    alone = replace(good, grounds=replace(good.grounds, references=references[:1]))
    assert "evidence_phase" in failed(alone.appraise())


# --- a volume that was recovered


@pytest.fixture(scope="module")
def recovered(make_machine: Callable[..., Any], grounds: Grounds, image: Any) -> Answers:
    """The answers of a machine whose volume was recovered under the next image and runs under its own again."""
    return recovered_on(make_machine("recovered-well"), grounds, image)


def recovered_on(machine: Any, grounds: Grounds, image: Any, **recovery: Any) -> Answers:
    second = type(image)(image, "second")
    machine.recover(second, **recovery)
    machine.boot(image, first=False)
    references = (*grounds.references, parse_manifest(json.dumps(second.manifest()).encode()))
    answers = ask(machine, replace(grounds, references=references))
    return answers.change(recovery=rounds.encode(machine.recovery))


def recovering_set(recovered: Answers, **changes: Any) -> Answers:
    """Replace the set of the image that recovered."""
    first, second = recovered.grounds.references
    return replace(recovered, grounds=replace(recovered.grounds, references=(first, replace(second, **changes))))


def with_logs(recovered: Answers, firmware: str, userspace: str) -> Answers:
    token = json.loads(base64.b64decode(recovered.evidence["recovery"]))
    token.update(firmware_log=firmware, userspace_log=userspace)
    return recovered.change(recovery=rounds.encode(json.dumps(token).encode()))


def test_a_recovery_in_a_boot_that_is_as_good_as_the_first_is_trusted(recovered: Answers) -> None:
    result = recovered.appraise()
    assert result.verdict is Verdict.TRUSTED, [check for check in result.checks if check.status is not Status.PASSED]
    assert "last after rolled-back" in reason(result, "recoveries")
    assert reason(result, "recovery_phase") == "it was recovered in the initrd of second"


def test_a_volume_that_was_recovered_more_often_than_is_allowed_is_not_trusted(
    make_machine: Callable[..., Any], good: Answers, grounds: Grounds, image: Any
) -> None:
    def allowed(answers: Answers, most: Optional[int]) -> Any:
        return judged_by(answers, Policy(volume=VolumeTerms(maximum_recoveries=most)))

    twice = recovered_on(make_machine("recovered-twice"), grounds, image, times=2)
    for most in (0, 1):
        result = allowed(twice, most)
        assert (result.verdict, failed(result)) == (Verdict.UNTRUSTED, {"recoveries"})
        assert reason(result, "recoveries") == "the volume was opened by its recovery key 2 times"
    for most in (2, 3, None):
        assert allowed(twice, most).verdict is Verdict.TRUSTED
    assert allowed(good, 0).verdict is Verdict.TRUSTED


@pytest.mark.parametrize(
    ("terms", "why"),
    [
        ((SetTerms("debian-forky"), SetTerms("second", revoked=True)), "the reference set second is revoked"),
        ((SetTerms("debian-forky"),), "the policy does not name the reference set second"),
    ],
)
def test_a_recovery_by_an_image_that_is_not_accepted_is_refused(
    recovered: Answers, terms: tuple[SetTerms, ...], why: str
) -> None:
    result = judged_by(recovered, Policy(sets=terms))
    assert (result.verdict, failed(result)) == (Verdict.UNTRUSTED, {"recovery_phase"})
    assert reason(result, "recovery_phase") == why


def test_a_recovery_by_an_image_past_its_end_is_trusted_as_its_creation_would_be(recovered: Answers) -> None:
    ended = SetTerms("second", not_after=recovered.grounds.now - datetime.timedelta(days=1))
    assert judged_by(recovered, Policy(sets=(SetTerms("debian-forky"), ended))).verdict is Verdict.TRUSTED


def test_a_recovery_by_an_image_that_is_not_known_is_refused(recovered: Answers) -> None:
    alone = replace(recovered, grounds=replace(recovered.grounds, references=recovered.grounds.references[:1]))
    result = alone.appraise()
    assert failed(result) == {"recovery_phase"}
    assert reason(result, "recovery_phase") == "it was not recovered in the initrd of an image that is known"


def test_a_recovery_from_another_root_is_refused(recovered: Answers) -> None:
    result = recovering_set(recovered, root_hash="22" * 32).appraise()
    assert failed(result) == {"recovery_phase"}
    assert reason(result, "recovery_phase") == "the root is another than the manifest's"


def test_a_recovery_by_another_kernel_image_is_refused(
    make_machine: Callable[..., Any], grounds: Grounds, image: Any
) -> None:
    result = recovered_on(make_machine("evil-kernel"), grounds, image, kernel=b"another, of the same signer").appraise()
    assert (result.verdict, failed(result)) == (Verdict.UNTRUSTED, {"recovery_boot"})
    assert reason(result, "recovery_boot") == "PCR 4 does not have a value that the manifest lists"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"pcr_7": frozenset((bytes(32),))}, "PCR 7 does not have a value that the manifest lists"),
        ({"pcr_7": None, "signer": "0" * 64}, "the image was not admitted by the certificate that the manifest names"),
        ({"pcr_12": frozenset((b"\1" * 32,))}, "PCR 12 does not have a value that the manifest lists"),
    ],
)
def test_a_recovery_in_a_boot_that_was_not_as_its_set_says_is_refused(
    recovered: Answers, changes: dict[str, Any], why: str
) -> None:
    result = recovering_set(recovered, **changes).appraise()
    assert (result.verdict, failed(result)) == (Verdict.UNTRUSTED, {"recovery_boot"})
    assert reason(result, "recovery_boot").startswith(why)


def test_a_recovery_whose_logs_do_not_explain_it_is_not_trusted(recovered: Answers) -> None:
    garbage = rounds.encode(zlib.compress(b"garbage"))
    result = with_logs(recovered, garbage, garbage).appraise()
    assert (result.verdict, failed(result)) == (Verdict.UNEXPLAINED, {"recovery_replay"})
    creation = recovered.token()
    result = with_logs(recovered, creation["firmware_log"], creation["userspace_log"]).appraise()
    assert (result.verdict, failed(result)) == (Verdict.UNEXPLAINED, {"recovery_replay"})
    assert reason(result, "recovery_replay") == "the logs do not lead to PCR 11"
    nothing = rounds.encode(zlib.compress(b""))
    assert with_logs(recovered, nothing, nothing).appraise().verdict is Verdict.UNKNOWN


def test_a_recovery_is_judged_by_values_alone_where_a_policy_says_so(recovered: Answers) -> None:
    nothing = rounds.encode(zlib.compress(b""))
    waived = frozenset(("recovery_replay", "recovery_boot"))
    result = judged_by(with_logs(recovered, nothing, nothing), Policy(waived_checks=waived))
    assert result.verdict is Verdict.TRUSTED


@BOTH_ORDERS
@pytest.mark.parametrize(("revoked", "verdict"), [(False, Verdict.TRUSTED), (True, Verdict.UNTRUSTED)])
@pytest.mark.parametrize("changes", [{}, {"pcr_7": OTHER_VALUE}], ids=["alike", "booted otherwise"])
def test_sets_of_the_image_that_recovered_are_told_apart_in_the_same_way(
    recovered: Answers, order: int, revoked: bool, verdict: Verdict, changes: dict[str, Any]
) -> None:
    sets = (SetTerms("debian-forky"), SetTerms("second"), SetTerms("twin", revoked=revoked))
    another = replace(recovered.grounds.references[1], name="twin", **changes)
    result = beside(recovered, order, another, policy=Policy(sets=sets))
    assert result.verdict is (Verdict.TRUSTED if changes else verdict)
    assert failed(result) == ({"recovery_phase"} if revoked and not changes else set())


def test_an_ephemeral_machine_must_show_no_volume(good: Answers, image: Any) -> None:
    reference = parse_manifest(json.dumps(image.manifest(strategy="ephemeral")).encode())
    shown = replace(good, grounds=replace(good.grounds, references=(reference,)))
    assert failed(shown.appraise()) == {"no_volume"}
    names = [check.name for check in shown.appraise().checks]
    assert not {"anchor_state", "evidence_claims", "volume_key"} & set(names)


def test_an_ephemeral_machine_is_trusted_by_what_it_booted(
    make_machine: Callable[..., Any], grounds: Grounds, image: Any
) -> None:
    machine = make_machine("ephemeral")
    machine.token = None
    machine.boot(image, first=False, volume=False)
    reference = parse_manifest(json.dumps(image.manifest(strategy="ephemeral")).encode())
    result = ask(machine, replace(grounds, references=(reference,))).appraise()
    assert result.verdict is Verdict.TRUSTED
    assert result.freshness is Freshness.DATA
    assert result.claims["volume_key_id"] is None
    assert (result.claims["strategy"], result.claims["root_hash"]) == ("ephemeral", image.root_hash)


def test_the_result_has_a_status_for_each_part_and_names_the_policy(good: Answers) -> None:
    found = attestation_result(good.appraise(), good.grounds.policy, good.grounds.now)
    assert {part: sub["ear.status"] for part, sub in found["submods"].items()} == dict.fromkeys(PARTS, "affirming")
    assert found["exp"] - found["iat"] == Policy().valid_for
    assert found["submods"]["tpm"]["ear.appraisal-policy-id"] == f"default@sha256:{Policy().digest}"
    other = replace(good, grounds=replace(good.grounds, endorsement_key="0" * 64)).appraise()
    found = attestation_result(other, Policy(), good.grounds.now)
    assert found["submods"]["tpm"]["ear.status"] == "contraindicated"
    assert found["submods"]["tpm"]["ear.trustworthiness-vector"]["instance-identity"] == 96
    json.dumps(found)
