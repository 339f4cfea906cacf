# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action and the playbook, run by Ansible over machines that are honest, hostile or gone."""

from __future__ import annotations

import base64
import json
import os
import re
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.tpm import rounds
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import parse_public
from ansible_collections.cvm.fde.tests.unit.plugins.conftest import timeless

CHECKOUT = Path(__file__).resolve().parents[4]
PLAYBOOK = CHECKOUT / "playbooks" / "attest.yml"
TWIST = CHECKOUT / "tests" / "hostile" / "twist.py"

#: What a hostile guest prints in place of the module's result.
HOSTILE: dict[str, Callable[[], bytes]] = {
    "garbage": lambda: b"\x1b[2J no JSON \xff",
    "megabytes": lambda: json.dumps({"answer": {"endorsement": "A" * 20_000_000}}).encode(),
    "deep": lambda: b'{"answer": {"endorsement": ' + b"[" * 900 + b"]" * 900 + b"}}",
    "unasked": lambda: json.dumps({"answer": {"endorsement": "AA==", "attestation": "AA==", "more": 1}}).encode(),
    "types": lambda: json.dumps({"answer": {"endorsement": 1, "attestation": None}}).encode(),
    "failing": lambda: json.dumps({"failed": True, "msg": "\x1b[31m" + "{{ 7 * 7 }}" + "x" * 5000}).encode(),
    "facts": lambda: json.dumps(
        {"answer": {}, "ansible_facts": {"planted": 1}, "add_host": {"host_name": "evil"}}
    ).encode(),
    "verdict": lambda: json.dumps({"verdict": "trusted", "report": {"verdict": "trusted"}, "failed": False}).encode(),
}


@dataclass
class Run:
    """What a run of Ansible left behind."""

    status: int
    output: str
    report: Optional[dict[str, Any]]
    #: Where evidence is kept, if it is.
    kept: Path

    def host(self, name: str) -> dict[str, Any]:
        assert self.report is not None, self.output
        return next(host for host in self.report["hosts"] if host["host"] == name)

    def failure(self, name: str) -> str:
        """Return the message of the first task that failed on a host."""
        found = re.search(rf"^fatal: \[{name}\]: FAILED! => (.*)$", self.output, re.MULTILINE)
        assert found is not None, self.output
        message: str = json.loads(found[1])["msg"]
        return message


def variables(machine: Any) -> dict[str, Any]:
    return {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "attest_tcti": machine.tcti,
        "attest_firmware_log": str(machine.firmware_log),
        "attest_userspace_log": str(machine.userspace_log),
        "attest_header": str(machine.write_header()),
    }


def hostile(folder: Path, name: str, output: bytes) -> dict[str, Any]:
    """Return a host whose Python prints what we like, whatever module it is given."""
    answer, interpreter = folder / f"{name}.out", folder / f"{name}.sh"
    answer.write_bytes(output)
    interpreter.write_text(f"#!/bin/sh\ncat >/dev/null 2>&1 </dev/null\ncat {answer}\n")
    interpreter.chmod(interpreter.stat().st_mode | stat.S_IXUSR)
    return {"ansible_connection": "local", "ansible_python_interpreter": str(interpreter)}


def play(folder: Path, image: Any, authority: Path, hosts: dict[str, Any], *options: str, **extra: Any) -> Run:
    """Run the playbook over ``hosts``."""
    manifest, key = image.signed_manifest(folder)
    (folder / "inventory.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    values = {
        "fde_manifest": str(manifest),
        "fde_manifest_key": str(key),
        "fde_endorsement_ca": [str(authority / "ca.pem")],
        "fde_report_path": str(folder / "report.json"),
        **extra,
    }
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", folder / "inventory.json", PLAYBOOK]
        + ["-e", json.dumps(values), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"), "ANSIBLE_HOME": str(folder / "home")},
        check=False,
    )
    report = folder / "report.json"
    found = json.loads(report.read_text()) if report.exists() else None
    return Run(done.returncode, done.stdout + done.stderr, found, folder / "evidence")


@pytest.fixture(scope="module")
def mixed(
    tmp_path_factory: pytest.TempPathFactory, image: Any, authority: Path, make_machine: Callable[..., Any]
) -> Run:
    """One run over an honest machine, several hostile ones, and one that is not there."""
    folder = tmp_path_factory.mktemp("mixed")
    hosts = {"honest": variables(make_machine("honest"))}
    hosts.update({name: hostile(folder, name, make()) for name, make in HOSTILE.items()})
    hosts["gone"] = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_connection": "ssh"}
    return play(folder, image, authority, hosts, attest_evidence_dir=str(folder / "evidence"))


def test_hosts_that_fail_stop_no_other_but_the_run_fails(mixed: Run) -> None:
    assert mixed.status != 0
    assert mixed.report is not None, mixed.output
    assert {host["host"] for host in mixed.report["hosts"]} == {"honest", "gone", *HOSTILE}
    assert [host["host"] for host in mixed.report["hosts"] if host["verdict"] == "trusted"] == ["honest"]


def test_the_table_is_printed(mixed: Run) -> None:
    assert any(line.startswith("honest") and "trusted" in line for line in mixed.output.splitlines())


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("garbage", "unknown"),
        ("megabytes", "untrusted"),
        ("deep", "untrusted"),
        ("types", "untrusted"),
        ("unasked", "untrusted"),
        ("failing", "unknown"),
        ("facts", "untrusted"),
        ("verdict", "unknown"),
        ("gone", "unknown"),
    ],
)
def test_a_hostile_host_gets_its_verdict_with_a_reason(mixed: Run, name: str, verdict: str) -> None:
    host = mixed.host(name)
    assert host["verdict"] == verdict
    (check,) = host["checks"]
    assert check["name"] == "answers"
    assert 0 < len(check["reason"]) < 300
    assert check["reason"].isprintable()


def test_what_came_in_place_of_an_answer_is_kept(mixed: Run) -> None:
    kept = {path.stem: json.loads(path.read_text()) for path in mixed.kept.iterdir()}
    assert set(kept) == {"honest", "deep", "types", "unasked", "facts"}
    assert kept["types"]["answers"]["identity"] == json.loads(HOSTILE["types"]())["answer"]
    assert kept["deep"]["answers"]["printed"].encode() == HOSTILE["deep"]()[: len(kept["deep"]["answers"]["printed"])]
    assert all(path.stat().st_size < 300_000 for path in mixed.kept.iterdir())


def test_a_hostile_host_plants_nothing(mixed: Run) -> None:
    assert "\x1b[2J" not in mixed.output
    assert "\x1b[31m" not in mixed.output
    assert "evil" not in json.dumps(mixed.report)
    assert "49" not in mixed.host("failing")["checks"][0]["reason"]


def test_evidence_is_kept_for_its_owner_only(
    tmp_path: Path, image: Any, authority: Path, make_machine: Callable[..., Any]
) -> None:
    machine = make_machine("kept")
    run = play(
        tmp_path, image, authority, {"a/../b": variables(machine)}, attest_evidence_dir=str(tmp_path / "evidence")
    )
    assert run.status == 0, run.output
    (path,) = (tmp_path / "evidence").iterdir()
    assert path.name == "a%2F..%2Fb.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text())["verdict"] == "trusted"


def test_check_mode_attests_and_writes_nothing(
    tmp_path: Path, image: Any, authority: Path, make_machine: Callable[..., Any]
) -> None:
    kept = tmp_path / "evidence"
    hosts = {"checked": variables(make_machine("checked"))}
    run = play(tmp_path, image, authority, hosts, "--check", attest_evidence_dir=str(kept))
    assert run.status == 0, run.output
    assert run.report is None
    assert not kept.exists()
    assert "trusted" in run.output


def twisted(folder: Path, machine: Any, **answers: str) -> dict[str, Any]:
    """Return a host that replaces some of its honest answers."""
    changes, interpreter = folder / "twist.json", folder / "twisted.sh"
    changes.write_text(json.dumps(answers))
    interpreter.write_text(f'#!/bin/sh\n{sys.executable} "$@" | {sys.executable} {TWIST} {changes}\n')
    interpreter.chmod(0o755)
    return {**variables(machine), "ansible_python_interpreter": str(interpreter)}


@pytest.mark.parametrize("serial", [1, "100%"])
def test_a_certificate_with_a_date_of_no_calendar_stops_no_other_host(
    tmp_path: Path, image: Any, authority: Path, machine: Any, make_machine: Callable[..., Any], serial: Any
) -> None:
    other = make_machine("evil")
    shown = parse_public(base64.b64decode(rounds.identity(other.sources)["endorsement"]))
    evil = twisted(tmp_path, other, endorsement_certificate=rounds.encode(timeless(shown.key)))
    run = play(tmp_path, image, authority, {"a-evil": evil, "b-honest": variables(machine)}, fde_serial=serial)
    assert run.status != 0
    assert run.host("b-honest")["verdict"] == "trusted"
    failed = [check for check in run.host("a-evil")["checks"] if check["status"] == "failed"]
    assert [(check["name"], check["reason"]) for check in failed] == [
        ("endorsement_certificate", "the certificate cannot be read")
    ]


@pytest.mark.parametrize("serial", [1, "100%"])
@pytest.mark.parametrize("require", ["trusted", "nothing"])
def test_a_host_that_fails_is_reported_and_stops_no_other(
    tmp_path: Path, image: Any, authority: Path, machine: Any, serial: Any, require: str
) -> None:
    # The first batches hold nobody else.
    broken = {**variables(machine), "attest_manifest": "/nonexistent"}
    hosts = {"a-broken": broken, "b-broken": dict(broken), "c-honest": variables(machine)}
    run = play(tmp_path, image, authority, hosts, fde_serial=serial, fde_require=require)
    assert run.status != 0
    assert run.host("c-honest")["verdict"] == "trusted"
    for name in ("a-broken", "b-broken"):
        assert run.host(name)["verdict"] == "unknown"
        (check,) = run.host(name)["checks"]
        assert check["name"] == "answers"
        assert "its attestation failed: " in check["reason"]
        assert "/nonexistent: it cannot be read" in check["reason"]


def test_another_expectation_fails_the_run_unless_nothing_is_required(
    tmp_path: Path, image: Any, authority: Path, make_machine: Callable[..., Any]
) -> None:
    hosts = {"known": variables(make_machine("known"))}
    other = play(tmp_path, image, authority, hosts, attest_endorsement_key="00" * 32)
    assert other.status != 0
    assert other.host("known")["verdict"] == "untrusted"
    lenient = play(tmp_path, image, authority, hosts, attest_endorsement_key="00" * 32, fde_require="nothing")
    assert lenient.status == 0


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "key": (
        {"attest_manifest_key": "{CA}"},
        "{MANIFEST}: the manifest was not signed by the given key. Seal the image again, or name the right files",
    ),
    "manifest": (
        {"attest_manifest": "/nonexistent"},
        "/nonexistent: it cannot be read: No such file or directory. Name a file on the control node",
    ),
    "authority": (
        {"attest_endorsement_ca": ["{KEY}"]},
        "{KEY}: the file holds no certificate in PEM form. Name a file with certificates in PEM form",
    ),
    "pcrs": (
        {"attest_pcrs": [0, 4, 7, 9, 11, 12, 13, 14]},
        "pcrs: PCR 15 must be among them. Leave the option out to ask for all that matter",
    ),
}


def test_a_mistake_of_the_operator_is_an_error_with_a_remedy(
    tmp_path: Path, image: Any, authority: Path, machine: Any
) -> None:
    paths = {"{CA}": authority / "ca.pem", "{KEY}": tmp_path / "manifest.pem", "{MANIFEST}": tmp_path / "manifest.json"}

    def named(text: str) -> str:
        for word, path in paths.items():
            text = text.replace(word, str(path))
        return text

    common = variables(machine)
    hosts = {name: {**common, **json.loads(named(json.dumps(changes)))} for name, (changes, _) in MISTAKES.items()}
    run = play(tmp_path, image, authority, hosts)
    assert run.status != 0
    for name, (_, message) in MISTAKES.items():
        # Ansible adds the cause.
        assert run.failure(name).startswith(named(message))


def test_platforms_have_authorities_of_their_own(tmp_path: Path, image: Any, authority: Path, machine: Any) -> None:
    """Files are read and names are known for each road; a machine of no cloud lacks what the road needs."""
    common = {**variables(machine), "attest_roads": ["azure-snp"]}
    hosts = {
        "mistaken": {**common, "attest_platform_ca": {"azure_snp": [str(tmp_path / "manifest.pem")]}},
        "misspelt": {**common, "attest_platform_ca": {"azure-snp": []}},
        "asked": {**common, "attest_platform_ca": {"azure_snp": [str(authority / "ca.pem")]}},
    }
    run = play(tmp_path, image, authority, hosts)
    no_certificate = "the file holds no certificate in PEM form. Name a file with certificates in PEM form"
    assert run.failure("mistaken").startswith(f"{tmp_path / 'manifest.pem'}: {no_certificate}")
    assert run.failure("misspelt").endswith(
        "platform_ca.azure-snp. Supported parameters include: aws_nitrotpm, azure_snp, azure_tdx, gcp_ak_certificate."
    )
    assert run.host("asked")["verdict"] == "unknown"
