# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two fresh instances of one image convince the verifier of themselves, and of nothing else."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.boot.kernel_inputs import load_options
from ansible_collections.cvm.fde.plugins.module_utils.disk.gpt import ESP, read_table
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.case import Grounds
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.endorsement import load_authorities
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.event_log import parse as parse_log
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.judgement import Result, Verdict
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.reference import PHASE_READY, load_reference
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.rules.table import DEFAULT_PCRS
from ansible_collections.cvm.fde.plugins.plugin_utils.attestation import Attestation
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.ledger import Ledger
from ansible_collections.cvm.fde.tests.lab.ansible import LOCAL, inventory, playbook
from ansible_collections.cvm.fde.tests.lab.guest import Guest
from ansible_collections.cvm.fde.tests.lab.keys import keys
from ansible_collections.cvm.fde.tests.lab.machine import secure_boot_contents
from ansible_collections.cvm.fde.tests.lab.process import run
from ansible_collections.cvm.fde.tests.lab.sealed import SVN, Sealed
from ansible_collections.cvm.fde.tests.lab.upkeep import assert_nothing_left

#: The first version of systemd that measures a separator.
OS_SEPARATOR_SINCE = 261
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


def test_an_instance_remembers_the_security_version_of_its_image(fleet: list[Guest]) -> None:
    told = [json.loads(guest.ssh("/usr/lib/cvm-fde/agent.pyz status").stdout)["anchor"]["svn"] for guest in fleet]
    assert told == [SVN, SVN]


def test_no_program_of_the_boot_is_left_with_a_key_in_memory_or_in_run(fleet: list[Guest]) -> None:
    for guest in fleet:
        assert_nothing_left(guest)


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


# --- what a real guest's TPM holds, beside what its kernel image alone says


@pytest.fixture(scope="module")
def computed(sealed: Sealed, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``reference_values`` computes from the kernel image on the sealed disk and the lab's variables."""
    folder = tmp_path_factory.mktemp("computed")
    with sealed.image.open("rb") as disk:
        (esp,) = read_table(disk, sealed.image.stat().st_size, "the sealed image").of_type(ESP)
    uki, dest = folder / "linux.efi", folder / "set.json"
    run(["mcopy", "-i", f"{sealed.image}@@{esp.offset}", "::/EFI/BOOT/BOOTX64.EFI", uki])
    variables = [{"variable": name, "content": str(file)} for name, file in secure_boot_contents(keys()).items()]
    play = [
        {
            "hosts": "localhost",
            "gather_facts": False,
            "tasks": [
                {
                    "cvm.fde.reference_values": {
                        "uki": str(uki),
                        "secure_boot_certificate": str(keys().certificate("db")),
                        "secure_boot_variables": variables,
                        "dest": str(dest),
                        "key": str(keys().key("manifest")),
                    }
                }
            ],
        }
    ]
    book = folder / "play.json"
    book.write_text(json.dumps(play))
    playbook(str(book), inventory(folder / "hosts.json", {"here": {"localhost": LOCAL}}), log=folder / "play.log")
    found: dict[str, Any] = json.loads(dest.read_text())
    return found


def test_a_guest_holds_what_its_kernel_image_alone_says(fleet: list[Guest], computed: dict[str, Any]) -> None:
    script = "for p in 4 7 11 12 13 14; do echo $p $(cat /sys/class/tpm/tpm0/pcr-sha256/$p); done"
    held = dict(line.lower().split() for line in fleet[0].ssh(script).stdout.splitlines())
    expected = computed["pcrs"]["sha256"]
    assert held.pop("11") == expected["11"][PHASE_READY]
    # The values before and after systemd's separator, which comes in the initrd: one of them is past, or never comes.
    version = re.match(r"systemd (\d+)", fleet[0].ssh("systemctl --version").stdout)
    assert version is not None
    assert held == {pcr: expected[pcr][int(version[1]) >= OS_SEPARATOR_SINCE] for pcr in held}


def test_the_kernel_measured_the_command_line_of_its_image(fleet: list[Guest]) -> None:
    raw = fleet[0].ssh("base64 -w0 /sys/kernel/security/tpm0/binary_bios_measurements").stdout
    log = parse_log(base64.b64decode(raw))
    assert log is not None
    command_line = load_options(fleet[0].ssh("cat /proc/cmdline").stdout.encode())
    options, _initrd = [event.digests["sha256"] for event in log.events if event.pcr == 9]
    assert options == hashlib.sha256(command_line).digest()


def test_a_fleet_is_enrolled_with_its_recovery_keys_attested_and_audited(
    fleet: list[Guest], sealed: Sealed, tmp_path: Path
) -> None:
    hosts = inventory(tmp_path / "hosts.json", {"fleet": {guest.name: guest.inventory() for guest in fleet}})
    run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=escrow", "-days", "2"]
        + ["-keyout", tmp_path / "escrow.key", "-out", tmp_path / "escrow.pem"]
    )
    policy = tmp_path / "policy.yml"
    policy.write_text("version: 1\nname: lab\nfreshness: ledger\nvolume: {maximum_recoveries: 0}\n")
    variables = {
        **sealed.variables(),
        "fde_ledger": str(tmp_path / "ledger.db"),
        "fde_policy": str(policy),
        "fde_report_path": str(tmp_path / "report.json"),
    }
    escrow = {"certificates": [str(tmp_path / "escrow.pem")], "directory": str(tmp_path / "escrow")}
    enrolling = {**variables, "fde_create_ledger": True, "fde_escrow": escrow, "fde_operator": "lab"}
    playbook("cvm.fde.enrol", hosts, enrolling, log=tmp_path / "enrol.log")
    envelopes = sorted((tmp_path / "escrow").iterdir())
    assert len(envelopes) == len(fleet)
    key = ["-inkey", tmp_path / "escrow.key"]
    assert "recovery" in run(["openssl", "cms", "-decrypt", "-inform", "DER", "-in", envelopes[0], *key])

    playbook("cvm.fde.attest", hosts, variables, log=tmp_path / "attest.log")
    found = json.loads((tmp_path / "report.json").read_text())["hosts"]
    assert {host["verdict"] for host in found} == {"trusted"}
    assert {host["freshness"] for host in found} == {"ledger"}
    assert all(host["anchor"]["generation"] > 1 for host in found)

    auditing = {**variables, "fde_manifest_keys": [str(keys().public("manifest"))]}
    playbook("cvm.fde.audit", hosts, auditing, log=tmp_path / "audit.log")
    ledger = Ledger(tmp_path / "ledger.db")
    digests = {hashlib.sha256(envelope.read_bytes()).hexdigest() for envelope in envelopes}
    recorded = {guest.name: ledger.escrowed(guest.name, "fde-crypt") for guest in fleet}
    assert {entry.record.key for entry in recorded.values() if entry is not None} == digests
