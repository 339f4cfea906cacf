# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two fresh instances of one image convince the verifier of themselves, and of nothing else."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.case import Grounds
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.endorsement import load_authorities
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.judgement import Result, Verdict
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.reference import load_reference
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.rules.table import DEFAULT_PCRS
from ansible_collections.cvm.fde.plugins.plugin_utils.attestation import Attestation
from ansible_collections.cvm.fde.tests.lab.ansible import LOCAL, inventory, playbook
from ansible_collections.cvm.fde.tests.lab.guest import Guest
from ansible_collections.cvm.fde.tests.lab.keys import keys
from ansible_collections.cvm.fde.tests.lab.sealed import Sealed

ASK = str(Path(__file__).with_name("ask.yml"))


@pytest.fixture
def grounds(sealed: Sealed) -> Grounds:
    signature = sealed.manifest.with_suffix(".json.sig").read_bytes()
    reference = load_reference(sealed.manifest.read_bytes(), signature, keys().public("manifest").read_bytes())
    authorities = tuple(load_authorities(keys().ek_authority.read_bytes()))
    return Grounds(references=(reference,), authorities=authorities, now=datetime.datetime.now(datetime.timezone.utc))


def ask(guest: Guest, request: dict[str, Any], folder: Path) -> Any:
    """Return a guest's answer to one round."""
    hosts = inventory(folder / "hosts.json", {"fleet": {guest.name: guest.inventory()}, "here": {"localhost": LOCAL}})
    answer = folder / "answer.json"
    playbook(ASK, hosts, {"request": request, "answer": str(answer)}, log=folder / "ask.log")
    return json.loads(answer.read_text())


def failed(result: Result) -> set[str]:
    return {check.name for check in result.checks if check.status.value == "failed"}


@pytest.fixture(scope="module")
def report(fleet: list[Guest], sealed: Sealed, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the playbook ``attest`` reports, by host; it fails unless every host is trusted."""
    folder = tmp_path_factory.mktemp("report")
    hosts = inventory(folder / "hosts.json", {"fleet": {guest.name: guest.inventory() for guest in fleet}})
    variables = {**sealed.variables(), "fde_report_path": str(folder / "report.json")}
    playbook("cvm.fde.attest", hosts, variables, log=folder / "attest.log")
    return {host["host"]: host for host in json.loads((folder / "report.json").read_text())["hosts"]}


def test_every_instance_is_trusted_by_every_check(report: dict[str, dict[str, Any]], fleet: list[Guest]) -> None:
    assert {host: entry["verdict"] for host, entry in report.items()} == {guest.name: "trusted" for guest in fleet}
    assert {check["status"] for entry in report.values() for check in entry["checks"]} == {"passed"}


def test_instances_of_one_image_have_volume_keys_of_their_own(report: dict[str, dict[str, Any]]) -> None:
    first, second = report.values()
    assert first["root_hash"] == second["root_hash"]
    assert first["volume_key_id"] != second["volume_key_id"]


def test_an_answer_to_another_nonce_is_refused(fleet: list[Guest], grounds: Grounds, tmp_path: Path) -> None:
    honest, replayed = Attestation(grounds, DEFAULT_PCRS), Attestation(grounds, DEFAULT_PCRS)
    identity = ask(fleet[0], honest.identity_request(), tmp_path)
    answer = ask(fleet[0], honest.evidence_request(identity), tmp_path)
    assert honest.judge(answer).verdict is Verdict.TRUSTED
    replayed.evidence_request(identity)
    result = replayed.judge(answer)
    assert result.verdict is Verdict.UNTRUSTED
    assert {"quote_nonce", "credential_activation"} <= failed(result)


def test_a_quote_from_the_other_guests_tpm_is_refused(fleet: list[Guest], grounds: Grounds, tmp_path: Path) -> None:
    claimed, relay = Attestation(grounds, DEFAULT_PCRS), Attestation(grounds, DEFAULT_PCRS)
    request = claimed.evidence_request(ask(fleet[0], claimed.identity_request(), tmp_path))
    other = relay.evidence_request(ask(fleet[1], relay.identity_request(), tmp_path))
    # The second guest answers the question that was meant for the first; only the credential is one it can open.
    result = claimed.judge(ask(fleet[1], {**other, "nonce": request["nonce"]}, tmp_path))
    assert result.verdict is Verdict.UNTRUSTED
    assert {"quote_signature", "credential_activation"} <= failed(result)
