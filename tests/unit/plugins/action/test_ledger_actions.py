# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Enrolment, attestation with a ledger, decisions and audit, run by Ansible over machines with TPMs of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.ledger import Ledger
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.records import Kind
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.verification import verify
from ansible_collections.cvm.fde.tests.unit.plugins.conftest import UUID

CHECKOUT = Path(__file__).resolve().parents[4]
PLAYBOOKS = CHECKOUT / "playbooks"


@dataclass
class Fleet:
    """Hosts with the options of all playbooks, and a ledger that may not be there yet."""

    folder: Path
    values: dict[str, Any]
    hosts: dict[str, dict[str, Any]]

    @property
    def path(self) -> Path:
        return self.folder / "ledger.db"

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.path)

    def run(self, playbook: Path, *options: str, **extra: Any) -> tuple[int, str]:
        (self.folder / "inventory.json").write_text(json.dumps({"all": {"hosts": self.hosts}}))
        done = subprocess.run(
            [Path(sys.executable).parent / "ansible-playbook", "-i", self.folder / "inventory.json", playbook]
            + ["-e", json.dumps({**self.values, **extra}), *options],
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "ANSIBLE_LOCAL_TEMP": str(self.folder / "tmp"),
                "ANSIBLE_HOME": str(self.folder / "home"),
                "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / "build" / "collections"),
            },
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def play(self, *tasks: dict[str, Any], **extra: Any) -> tuple[int, str]:
        path = self.folder / "play.json"
        path.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": list(tasks)}]))
        return self.run(path, **extra)

    def report(self) -> dict[str, Any]:
        hosts = json.loads((self.folder / "report.json").read_text())["hosts"]
        return {host["host"]: host for host in hosts}


def variables(machine: Any) -> dict[str, Any]:
    sources = {
        "tcti": machine.tcti,
        "firmware_log": str(machine.firmware_log),
        "userspace_log": str(machine.userspace_log),
        "header": str(machine.write_header()),
    }
    return {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        **{f"attest_{name}": value for name, value in sources.items()},
        **{f"enrol_{name}": value for name, value in sources.items()},
    }


@pytest.fixture(scope="module")
def machines(make_machine: Callable[..., Any]) -> list[dict[str, Any]]:
    return [variables(make_machine(f"fleet{number}")) for number in range(2)]


@pytest.fixture
def fleet(tmp_path: Path, image: Any, authority: Path, machines: list[dict[str, Any]]) -> Fleet:
    manifest, key = image.signed_manifest(tmp_path)
    values = {
        "fde_manifest": str(manifest),
        "fde_manifest_key": str(key),
        "fde_manifest_keys": [str(key)],
        "fde_endorsement_ca": [str(authority / "ca.pem")],
        "fde_ledger": str(tmp_path / "ledger.db"),
        "fde_report_path": str(tmp_path / "report.json"),
    }
    return Fleet(tmp_path, values, {f"web{number}": dict(found) for number, found in enumerate(machines)})


@pytest.fixture
def enrolled(fleet: Fleet) -> Fleet:
    status, output = fleet.run(PLAYBOOKS / "enrol.yml", fde_create_ledger=True)
    assert status == 0, output
    return fleet


def test_a_ledger_is_made_only_when_that_is_asked_for(fleet: Fleet) -> None:
    for playbook in ("enrol.yml", "attest.yml", "audit.yml"):
        status, output = fleet.run(PLAYBOOKS / playbook)
        assert status != 0
        assert "there is no ledger here" in " ".join(output.split())
    status, output = fleet.run(PLAYBOOKS / "enrol.yml", "--check", fde_create_ledger=True)
    assert status == 0, output
    assert "changed=1" in output
    assert not fleet.path.exists()


def test_hosts_are_enrolled_once_attested_often_and_audited(enrolled: Fleet) -> None:
    status, output = enrolled.run(PLAYBOOKS / "enrol.yml")
    assert status == 0, output
    assert "changed=1" not in output
    head = str(enrolled.ledger.head())
    status, output = enrolled.run(PLAYBOOKS / "attest.yml", "--forks", "8", fde_serial=1)
    assert status == 0, output
    assert set(enrolled.report()) == set(enrolled.hosts)
    assert {host["verdict"] for host in enrolled.report().values()} == {"trusted"}
    checks = [check["name"] for check in enrolled.report()["web0"]["checks"]]
    assert checks[-4:] == ["identity", "anchor_freshness", "unique_volume_key", "freshness"]
    assert len(list(enrolled.ledger.entries(kind=Kind.ATTESTATION))) == 6
    assert len(list(enrolled.ledger.entries(kind=Kind.IDENTITY))) == 2
    assert verify(enrolled.ledger).sound
    status, output = enrolled.run(PLAYBOOKS / "audit.yml", fde_ledger_head=head, fde_history="all")
    assert status == 0, output
    assert "6 attestations judged again" in output


def test_a_policy_that_only_a_ledger_can_meet_is_met_from_enrolment_to_audit(fleet: Fleet) -> None:
    policy = fleet.folder / "policy.yml"
    policy.write_text("version: 1\nname: lab\nfreshness: ledger\n")
    for playbook, extra in (
        ("enrol.yml", {"fde_create_ledger": True}),
        ("attest.yml", {}),
        ("audit.yml", {"fde_history": "all"}),
    ):
        status, output = fleet.run(PLAYBOOKS / playbook, fde_policy=str(policy), **extra)
        assert status == 0, output
    assert {host["freshness"] for host in fleet.report().values()} == {"ledger"}
    assert fleet.ledger.register().hosts() == set(fleet.hosts)
    assert "4 attestations judged again" in output


@pytest.fixture
def escrowing(fleet: Fleet) -> Callable[..., dict[str, Any]]:
    """Let one host answer for its root volume what a real one would; return what the playbook is told of escrow."""
    certificate = fleet.folder / "escrow.pem"
    certificate.write_bytes(Path(fleet.values["fde_endorsement_ca"][0]).read_bytes())
    escrow = {"certificates": [str(certificate)], "directory": str(fleet.folder / "escrow")}

    def answering(digest: Optional[str]) -> dict[str, Any]:
        fleet.hosts = {"web0": fleet.hosts["web0"]}
        known = None if digest is None else {"digest": digest}
        answer = {"changed": digest is None, "luks_uuid": UUID, "escrow": known, "steps": [], "diff": {}}
        (fleet.folder / "answer").write_text(json.dumps(answer))
        host = fleet.folder / "host"
        # It has a TPM and no root volume.
        host.write_text(
            f"#!/bin/sh\nmodule=$(mktemp)\ncat > $module\nif grep -q root_recovery_round $module\n"
            f"then mv $module {fleet.folder}/asked; cat {fleet.folder}/answer\n"
            f'else {sys.executable} "$@" < $module; rm $module\nfi\n'
        )
        host.chmod(0o755)
        fleet.hosts["web0"]["ansible_python_interpreter"] = str(host)
        return {"fde_create_ledger": True, "fde_escrow": escrow, "fde_operator": "ann"}

    return answering


def asked_in_check_mode(fleet: Fleet) -> bool:
    return bool(re.search(r"_ansible_check_mode\W+true", (fleet.folder / "asked").read_text(errors="replace")))


@pytest.mark.parametrize("digest", [None, "ab" * 32], ids=["no key yet", "a key already"])
def test_enrolment_with_escrow_in_check_mode_leaves_nothing_behind(
    fleet: Fleet, escrowing: Callable[..., dict[str, Any]], digest: Optional[str]
) -> None:
    status, output = fleet.run(PLAYBOOKS / "enrol.yml", "--check", **escrowing(digest))
    assert status == 0, output
    assert asked_in_check_mode(fleet)
    assert not fleet.path.exists()
    assert not (fleet.folder / "escrow").exists()


def test_check_mode_says_of_an_enrolled_host_whether_its_escrow_would_be_recorded(
    fleet: Fleet, escrowing: Callable[..., dict[str, Any]]
) -> None:
    escrow = escrowing("ab" * 32)
    status, output = fleet.run(PLAYBOOKS / "enrol.yml", fde_create_ledger=True)
    assert status == 0, output
    head = fleet.ledger.head()
    status, output = fleet.run(PLAYBOOKS / "enrol.yml", "--check", **escrow)
    assert (status, "changed=1" in output) == (0, True), output
    assert fleet.ledger.head() == head
    status, output = fleet.run(PLAYBOOKS / "enrol.yml", **escrow)
    assert (status, "changed=1" in output) == (0, True), output
    (decision,) = (entry.record for entry in fleet.ledger.entries(kind=Kind.DECISION))
    assert (decision.host, decision.key) == ("web0", "ab" * 32)
    head = fleet.ledger.head()
    status, output = fleet.run(PLAYBOOKS / "enrol.yml", "--check", **escrow)
    assert (status, "changed=0" in output) == (0, True), output
    assert fleet.ledger.head() == head


def test_an_audit_in_check_mode_is_an_audit(enrolled: Fleet) -> None:
    before = enrolled.path.read_bytes()
    status, output = enrolled.run(PLAYBOOKS / "audit.yml", "--check")
    assert status == 0, output
    assert "2 attestations judged again" in output
    assert "changed=0" in output
    status, output = enrolled.run(PLAYBOOKS / "audit.yml", "--check", fde_ledger_head=f"9:{'ab' * 32}")
    assert status != 0
    assert '"sound": false' in output
    assert enrolled.path.read_bytes() == before


@pytest.mark.parametrize("serial", [1, "100%"])
def test_a_host_that_fails_or_is_gone_stops_no_other(fleet: Fleet, serial: Any) -> None:
    gone = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_connection": "ssh"}
    broken = {**fleet.hosts["web1"], "enrol_tcti": "swtpm:path=/nonexistent"}
    # The first batches hold nobody else.
    fleet.hosts = {"a-gone": gone, "b-broken": broken, **fleet.hosts}
    status, output = fleet.run(PLAYBOOKS / "enrol.yml", fde_create_ledger=True, fde_serial=serial)
    assert status != 0
    assert fleet.ledger.register().hosts() == {"web0", "web1"}
    recap = {line.split()[0]: line for line in output.partition("PLAY RECAP")[2].splitlines() if ":" in line}
    assert {name: "failed=1" in line for name, line in recap.items()} == {
        "a-gone": True,
        "b-broken": True,
        "web0": False,
        "web1": False,
    }
    assert "the machine did not answer" in " ".join(output.split())


def test_under_limit_only_the_named_hosts_are_enrolled_and_no_other_is_missed(fleet: Fleet) -> None:
    status, output = fleet.run(PLAYBOOKS / "enrol.yml", "--limit", "web0", fde_create_ledger=True)
    assert status == 0, output
    assert fleet.ledger.register().hosts() == {"web0"}
    assert fleet.run(PLAYBOOKS / "enrol.yml", "--limit", "web1")[0] == 0
    status, output = fleet.run(PLAYBOOKS / "attest.yml", "--limit", "web1")
    assert status == 0, output
    assert set(fleet.report()) == {"web1"}
    status, output = fleet.run(PLAYBOOKS / "audit.yml", "--limit", "web1")
    assert status == 0, output
    words = "".join(output.split())
    assert '"missing":[],"moved":[],"new":[]' in words


def test_two_hosts_that_swapped_their_machines_are_untrusted_until_an_operator_decides(enrolled: Fleet) -> None:
    enrolled.hosts["web1"], enrolled.hosts["web2"] = enrolled.hosts["web0"], enrolled.hosts["web1"]
    status, output = enrolled.run(PLAYBOOKS / "attest.yml")
    assert status != 0, output
    assert {name: host["verdict"] for name, host in enrolled.report().items()} == {
        "web0": "untrusted",
        "web1": "untrusted",
        "web2": "untrusted",
    }
    status, output = enrolled.run(PLAYBOOKS / "audit.yml")
    assert status != 0
    assert "holds key" in output


def test_first_use_waits_for_a_decision(fleet: Fleet) -> None:
    fleet.hosts = {"web0": fleet.hosts["web0"]}
    first = {"fde_roads": ["first-use"], "fde_endorsement_ca": []}
    status, output = fleet.run(PLAYBOOKS / "enrol.yml", fde_create_ledger=True, **first)
    assert status != 0
    assert "no operator has approved" in " ".join(output.split())
    (identity,) = fleet.ledger.entries(kind=Kind.IDENTITY)
    decision = {"ledger": str(fleet.path), "decision": "approve-identity", "operator": "ann", "reason": "compared it"}
    wrong = {"cvm.fde.decision": {**decision, "key": "00" * 32}}
    assert fleet.play(wrong)[0] != 0
    right = {"cvm.fde.decision": {**decision, "key": identity.record.ek}}
    for changed in ("changed=1", "changed=0"):
        status, output = fleet.play(right)
        assert status == 0, output
        assert changed in output
    status, output = fleet.run(PLAYBOOKS / "attest.yml", **first)
    assert status == 0, output
    assert fleet.report()["web0"]["road"] == "first-use"


def attesting(fleet: Fleet, register: str = "attest_result") -> dict[str, Any]:
    """Return a task that attests each host by the authorities that a variable names for it."""
    options = {name: f"{{{{ attest_{name} }}}}" for name in ("tcti", "firmware_log", "userspace_log", "header")}
    return {
        "cvm.fde.attest": {
            **options,
            "manifest": fleet.values["fde_manifest"],
            "manifest_key": fleet.values["fde_manifest_key"],
            "endorsement_ca": "{{ authorities[inventory_hostname] }}",
            "require": "nothing",
        },
        "register": register,
    }


def saying(words: str, condition: str) -> dict[str, Any]:
    return {"ansible.builtin.debug": {"msg": f"{words} {{{{ inventory_hostname }}}}"}, "when": condition}


def test_a_task_can_be_kept_for_trusted_hosts(enrolled: Fleet) -> None:
    known = {"web0": enrolled.values["fde_endorsement_ca"], "web1": []}
    status, output = enrolled.play(
        saying("too early for", "inventory_hostname is cvm.fde.trusted"),
        attesting(enrolled),
        saying("secret of", "inventory_hostname is cvm.fde.trusted"),
        saying("by name", "inventory_hostname is cvm.fde.trusted(attest_result)"),
        saying("also", "attest_result is cvm.fde.trusted"),
        saying("another's", "'web0' is cvm.fde.trusted"),
        authorities=known,
    )
    assert status == 0, output
    assert "too early for" not in output
    for words in ("secret of", "by name", "also"):
        assert f"{words} web0" in output
        assert f"{words} web1" not in output
    assert "another's web1" in output


def test_the_role_and_the_condition_fit_together(enrolled: Fleet) -> None:
    role = {
        "ansible.builtin.include_role": {"name": "cvm.fde.attest"},
        "vars": {"attest_require": "nothing", "attest_endorsement_ca": "{{ authorities[inventory_hostname] }}"},
    }
    known = {"web0": enrolled.values["fde_endorsement_ca"], "web1": []}
    status, output = enrolled.play(
        role, saying("secret of", "inventory_hostname is cvm.fde.trusted"), authorities=known
    )
    assert status == 0, output
    assert "secret of web0" in output
    assert "secret of web1" not in output


def test_a_host_that_passes_the_questions_on_gets_no_secret_and_neither_does_the_other(fleet: Fleet) -> None:
    fleet.hosts["relay"] = dict(fleet.hosts["web0"])
    status, output = fleet.play(
        attesting(fleet),
        saying("each for itself was trusted:", "attest_result.verdict == 'trusted'"),
        saying("secret of", "inventory_hostname is cvm.fde.trusted"),
        saying("by its result", "attest_result is cvm.fde.trusted"),
        authorities=dict.fromkeys(fleet.hosts, fleet.values["fde_endorsement_ca"]),
    )
    assert status == 0, output
    for host in fleet.hosts:
        assert f"each for itself was trusted: {host}" in output
        assert (f"secret of {host}" in output) is (host == "web1")
        assert (f"by its result {host}" in output) is (host == "web1")


@pytest.mark.parametrize("attested_before", [False, True])
def test_a_host_cannot_plant_a_verdict_among_its_facts(fleet: Fleet, attested_before: bool) -> None:
    # What any module prints may bring facts, and Ansible makes variables of them: this one looks like a good result.
    entry = {"host": "web1", "verdict": "trusted", "checks": [{"name": "quote_nonce", "status": "passed"}]}
    planted = {"attest_result": {"verdict": "trusted", "failed": False, "changed": False, "report": entry}}
    liar = fleet.folder / "liar"
    liar.write_text(f"#!/bin/sh\ncat >/dev/null 2>&1 </dev/null\necho '{json.dumps({'ansible_facts': planted})}'\n")
    liar.chmod(0o755)
    fleet.hosts["web1"]["ansible_python_interpreter"] = str(liar)
    before = [attesting(fleet)] if attested_before else []
    status, output = fleet.play(
        *before,
        {"ansible.builtin.ping": {}},
        saying("it came through for", "ansible_facts.attest_result is defined and attest_result.verdict is defined"),
        saying("secret of", "inventory_hostname is cvm.fde.trusted"),
        {
            "cvm.fde.fleet_report": {
                "hosts": ["web0", "web1"],
                "variable": "attest_result",
                "path": fleet.values["fde_report_path"],
                "require": "nothing",
            },
            "run_once": True,
        },
        authorities=dict.fromkeys(fleet.hosts, fleet.values["fde_endorsement_ca"]),
    )
    assert status == 0, output
    assert fleet.report()["web1"]["verdict"] == "unknown"
    assert fleet.report()["web0"]["verdict"] == ("trusted" if attested_before else "unknown")
    assert "it came through for web1" in output
    assert "secret of web1" not in output
    assert ("secret of web0" in output) is attested_before


def test_a_ledger_is_exported_and_imported_by_tasks(enrolled: Fleet) -> None:
    path = enrolled.folder / "ledger.jsonl"
    copy = {"ledger": str(enrolled.folder / "copy.db"), "path": str(path), "state": "imported"}
    tasks = [
        {
            "cvm.fde.ledger_transfer": {"ledger": str(enrolled.path), "path": str(path), "state": "exported"},
            "run_once": True,
            "register": "exported",
        },
        {"cvm.fde.ledger_transfer": {**copy, "head": "{{ exported.head }}"}, "run_once": True},
    ]
    for status, changed in ((0, "changed=2"), (0, "changed=0")):
        assert (outcome := enrolled.play(*tasks))[0] == status, outcome[1]
        assert changed in outcome[1]
    assert Ledger(enrolled.folder / "copy.db").head() == enrolled.ledger.head()
    status, output = enrolled.play({"cvm.fde.ledger_transfer": {**copy, "ledger": str(enrolled.path), "head": "x"}})
    assert status != 0
    assert "a head is the number of the last entry" in " ".join(output.split())


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "pin without road": ({"pinned_ek": ["00" * 32]}, "roads does not allow"),
    "bad pin": ({"roads": ["pinned-ek"], "pinned_ek": ["{{ 'xyz' }}"]}, "64 hexadecimal digits"),
    "collateral without road": (
        {"tdx_collateral": {"tcb_info": ["a"], "enclave_identity": "b", "issuer_chain": "c"}},
        "roads does not allow the road azure-tdx",
    ),
    "no collateral": (
        {
            "roads": ["azure-tdx"],
            "tdx_collateral": {"tcb_info": ["/nothing"], "enclave_identity": "b", "issuer_chain": "/proc/self/status"},
        },
        "/proc/self/status: the file",
    ),
    "no road": ({"roads": []}, "no road is allowed"),
    "another road": ({"roads": ["a-friends-word"]}, "value of roads must be"),
    "first use without ledger": ({"roads": ["first-use"]}, "first-use needs approvals"),
    "another ledger": ({"ledger": "mysql://db/fde"}, "neither the path of a file"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_of_the_operator_is_an_error_with_a_remedy(fleet: Fleet, name: str) -> None:
    changes, message = MISTAKES[name]
    fleet.hosts = {"web0": fleet.hosts["web0"]}
    options = {"manifest": fleet.values["fde_manifest"], "manifest_key": fleet.values["fde_manifest_key"]}
    status, output = fleet.play({"cvm.fde.attest": {**options, **changes}})
    assert status != 0
    assert message in " ".join(output.split())
