# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run of the playbook over ssh: an honest host among hosts that flood, stall, lie and replay.

Whatever they do, the honest one is trusted, each of them is not and by its own reason, and the control node stays as
small as the documentation says.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Optional

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.tpm import rounds
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.credential import make_credential
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.rules.table import DEFAULT_PCRS
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import parse_public
from ansible_collections.cvm.fde.plugins.plugin_utils.asking import ANSWER_LIMIT, MEMORY_LIMIT
from ansible_collections.cvm.fde.tests.lab.process import run
from ansible_collections.cvm.fde.tests.unit.plugins.conftest import timeless

from .guests import FOLDER, HONEST, PYTHON, SshGuest
from .watch import MIB, Run, watched

CHECKOUT = Path(__file__).resolve().parents[2]
PLAYBOOK = CHECKOUT / "playbooks/attest.yml"
FORKS = 6
#: Seconds for hosts that never come to an end.
PATIENCE = 12
#: What a judgement itself may take, and what is imported for it.
JUDGEMENT = 64 * MIB

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="hosts in namespaces of their own need root")


@dataclass(frozen=True)
class Attack:
    """What a host prints for Python, what it keeps for that, whether it has a TPM, and what must become of it."""

    python: str
    verdict: str
    reason: str
    files: Callable[[dict[str, Any]], dict[str, bytes]] = lambda _recorded: {}
    tpm: bool = False
    endless: bool = False
    #: What the host runs in place of every command.
    command: str = ""
    #: Whether Ansible is left to look for the host's Python.
    looked_for: bool = False


def printing(*answers: object) -> Callable[[dict[str, Any]], dict[str, bytes]]:
    """Let a host answer its rounds by these: text as it is, and ``identity`` by a recorded identity."""

    def files(recorded: dict[str, Any]) -> dict[str, bytes]:
        texts = (json.dumps({"answer": recorded["identity"]}) if text == "identity" else text for text in answers)
        return {f"answer-{number}": str(text).encode() for number, text in enumerate(texts)}

    return files


def twisting(make: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[dict[str, Any]], dict[str, bytes]]:
    """Let a host replace fields of its honest evidence."""
    program = (Path(__file__).parent / "twist.py").read_bytes()
    return lambda recorded: {"twist.py": program, "twist.json": json.dumps(make(recorded)).encode()}


def said_twice(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return systemd's log with a record that says its PCR twice: readers differ in which one counts."""
    log = zlib.decompress(base64.b64decode(recorded["evidence"]["userspace_log"]))
    first, rest = log.split(b"\n", 1)
    twice = first.replace(b"{", b'{"pcr": 23, ', 1) + b"\n" + rest
    return {"userspace_log": base64.b64encode(zlib.compress(twice)).decode()}


def of_another(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return all that another machine once proved."""
    names = ("quote", "pcrs", "anchor", "token", "firmware_log", "userspace_log")
    return {name: recorded["evidence"][name] for name in names}


def bomb() -> str:
    """Return a log that unpacks to a gigabyte."""
    packer = zlib.compressobj(9)
    block = bytes(MIB)
    packed = b"".join([*(packer.compress(block) for _block in range(1024)), packer.flush()])
    return base64.b64encode(packed).decode()


#: Takes the module and prints the next of the files that were left for this.
_RECORDED = f"""cat > /dev/null
n=$(cat /run/asked 2>/dev/null || echo 0)
echo $((n + 1)) > /run/asked
cat {FOLDER}/answer-$n"""
_TWISTED = f"{PYTHON} | {PYTHON} {FOLDER}/twist.py {FOLDER}/twist.json"
_EVIDENCE = {"activated": "AA==", "quote": {"attest": "AA==", "signature": "AA=="}, "pcrs": {}}
_SHOUT = r"""cat > /dev/null
head -c 20000000 /dev/zero | tr '\0' 'U' >&2; printf '\033[2J' >&2"""
_MORE = "the machine sent more than an answer can have"
_LATE = "the machine did not answer: it took longer than it was given"

ATTACKS: dict[str, Attack] = {
    "flood": Attack("cat > /dev/null; exec yes", "untrusted", _MORE),
    "complaints": Attack("cat > /dev/null; exec yes >&2", "untrusted", _MORE),
    "crumbs": Attack("cat > /dev/null; printf '{\"answer\": ['; exec yes '[],[],{},[],'", "untrusted", _MORE),
    "large": Attack(
        f"cat > /dev/null; printf '{{\"answer\": \"'; head -c {5 * MIB} /dev/zero | tr '\\0' A; printf '\"}}'",
        "untrusted",
        _MORE,
    ),
    "full": Attack(
        _RECORDED,
        "untrusted",
        "firmware_log of the evidence is not compressed by zlib",
        printing("identity", json.dumps({"answer": {**_EVIDENCE, "firmware_log": "A" * (ANSWER_LIMIT - 1024)}})),
    ),
    "deep": Attack(
        _RECORDED,
        "untrusted",
        "the machine's answer is not JSON",
        printing('{"answer": ' + "[" * 10**6 + "]" * 10**6 + "}"),
    ),
    "types": Attack(
        _RECORDED,
        "untrusted",
        "endorsement of the identity is not text",
        printing('{"answer": {"endorsement": 1, "attestation": []}}'),
    ),
    "two": Attack(_RECORDED, "untrusted", "the machine's answer is not JSON", printing('{"answer": 1}\n{"answer": 2}')),
    "planted": Attack(
        _RECORDED,
        "untrusted",
        "endorsement of the identity is not text",
        printing(
            '{"answer": {}, "warnings": ["\\u001b[2Jevil"], "ansible_facts": {"evil": 1}, "_ansible_no_log": true, '
            '"exception": "evil", "deprecations": [{"msg": "evil"}], "stdout": 5, "invocation": "evil"}'
        ),
    ),
    "failing": Attack(
        _RECORDED,
        "unknown",
        "did not answer: {{ 7 * 7 }}xxx",
        printing('{"failed": true, "msg": "{{ 7 * 7 }}' + "x" * 9**6 + '"}'),
    ),
    "bomb": Attack(
        _RECORDED,
        "untrusted",
        "firmware_log of the evidence does not unpack",
        printing("identity", json.dumps({"answer": {**_EVIDENCE, "firmware_log": bomb()}})),
    ),
    "replayed": Attack(
        _RECORDED,
        "untrusted",
        "quote_nonce: the quote answers another nonce",
        lambda recorded: printing("identity", json.dumps({"answer": recorded["evidence"]}))(recorded),
    ),
    "another": Attack(
        _TWISTED, "untrusted", "quote_signature: the signature was not made", twisting(of_another), tpm=True
    ),
    "twice": Attack(
        _TWISTED,
        "untrusted",
        "userspace_log: the record 1 of systemd's log has an object with the same name twice",
        twisting(said_twice),
        tpm=True,
    ),
    "timeless": Attack(
        _TWISTED,
        "untrusted",
        "endorsement_certificate: the certificate cannot be read",
        # Read long before anybody looks whose it is.
        twisting(lambda _recorded: {"endorsement_certificate": rounds.encode(timeless())}),
        tpm=True,
    ),
    "silent": Attack("exec sleep infinity", "unknown", _LATE, endless=True),
    "dripping": Attack("cat > /dev/null; while printf ' '; do sleep 0.5; done", "unknown", _LATE, endless=True),
    # Every command, that is: also the one that makes a temporary folder.
    "shell": Attack("exit 1", "untrusted", _MORE, command="exec yes"),
    "nowhere": Attack(
        "exit 1",
        "untrusted",
        _MORE,
        command="printf 'FOUND\\n/'; head -c 1000000 /dev/zero | tr '\\0' P; printf '\\nENDFOUND\\n'",
        looked_for=True,
    ),
    "unreachable": Attack(f"{_SHOUT}\nexit 255", "unknown", "the host could not be asked"),
}


@dataclass
class Attested:
    """The one run, and its report by host."""

    run: Run
    hosts: dict[str, dict[str, Any]]
    seconds: float
    leftovers: list[str]

    def reasons(self, host: str) -> str:
        checks = self.hosts[host]["checks"]
        return "\n".join(f"{check['name']}: {check['reason']}" for check in checks if check["status"] != "passed")


def recorded_of(machine: Any) -> dict[str, Any]:
    """Return both honest answers of a machine to a nonce of long ago."""
    identity = rounds.identity(machine.sources)
    keys = [parse_public(base64.b64decode(identity[name])) for name in ("endorsement", "attestation")]
    credential = make_credential(keys[0], keys[1].name, bytes(32))
    request = rounds.Request(bytes(32), {"sha256": DEFAULT_PCRS}, credential.blob, credential.secret)
    return {"identity": identity, "evidence": rounds.evidence(machine.sources, request, machine.token)}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, make_machine: Callable[..., Any]) -> Iterator[dict[str, SshGuest]]:
    """All hosts, each with an sshd of its own."""
    folder = tmp_path_factory.mktemp("fleet")
    key = folder / "key"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])
    recorded = recorded_of(make_machine("once"))
    guests = {"honest": SshGuest(folder / "honest", key, HONEST, make_machine("honest"))}
    for name, attack in ATTACKS.items():
        machine = make_machine(name) if attack.tpm else None
        guests[name] = SshGuest(folder / name, key, attack.python, machine, attack.files(recorded), attack.command)
    try:
        for number, guest in enumerate(guests.values(), 1):
            guest.start(f"127.0.1.{number}")
        for guest in guests.values():
            guest.wait()
        yield guests
    finally:
        for guest in guests.values():
            guest.stop()


@pytest.fixture(scope="module")
def attested(
    tmp_path_factory: pytest.TempPathFactory, fleet: dict[str, SshGuest], image: Any, authority: Path
) -> Attested:
    """The playbook, run once over all of them."""
    folder = tmp_path_factory.mktemp("run")
    manifest, key = image.signed_manifest(folder)
    hosts = {name: guest.variables() for name, guest in fleet.items()}
    for name, attack in ATTACKS.items():
        hosts[name]["fde_pipelining"] = attack.looked_for or not attack.command
        if attack.looked_for:
            hosts[name].pop("ansible_python_interpreter")
        hosts[name]["attest_timeout"] = PATIENCE if attack.endless else 240
    (folder / "inventory.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    values = {
        "fde_manifest": str(manifest),
        "fde_manifest_key": str(key),
        "fde_endorsement_ca": [str(authority / "ca.pem")],
        "fde_report_path": str(folder / "report.json"),
    }
    # A socket's path may have 108 characters.
    sockets = Path(f"/tmp/fde-hostile-{os.getpid()}")
    environment = {
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_HOME": str(folder / "home"),
        # Of the connection, which honest hosts make while the others flood this machine.
        "ANSIBLE_TIMEOUT": "60",
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(sockets),
    }
    program = Path(sys.executable).parent / "ansible-playbook"
    words = [program, "-i", folder / "inventory.json", "--forks", FORKS, PLAYBOOK, "-e", json.dumps(values)]
    started = time.monotonic()
    found = watched(words, environment, folder / "log")
    seconds = time.monotonic() - started
    leftovers = _clients(fleet, sockets)
    shutil.rmtree(sockets, ignore_errors=True)
    report = folder / "report.json"
    assert report.exists(), found.output[-4000:]
    entries = json.loads(report.read_text())["hosts"]
    return Attested(found, {entry["host"]: entry for entry in entries}, seconds, leftovers)


def _clients(fleet: dict[str, SshGuest], sockets: Path) -> list[str]:
    """Return the command lines of ssh that still talk with a host; those that only keep a connection are Ansible's
    own habit.
    """
    ports = {f"Port={guest.port}".encode() for guest in fleet.values()}
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        line = _read(path) or b""
        words = line.split(b"\0")
        if words[0].endswith(b"ssh") and ports & set(words) and str(sockets).encode() not in words[0]:
            found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found


def _read(path: Path) -> Optional[bytes]:
    try:
        return path.read_bytes()
    except OSError:
        return None


def test_the_honest_host_is_trusted_and_no_other(attested: Attested) -> None:
    assert set(attested.hosts) == {"honest", *ATTACKS}
    assert attested.hosts["honest"]["verdict"] == "trusted", attested.reasons("honest")
    assert [name for name, host in attested.hosts.items() if host["verdict"] == "trusted"] == ["honest"]
    assert attested.run.status != 0


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_host_is_refused_by_its_own_reason(attested: Attested, name: str) -> None:
    assert attested.hosts[name]["verdict"] == ATTACKS[name].verdict, attested.reasons(name)
    assert ATTACKS[name].reason in attested.reasons(name)


def test_no_host_writes_on_the_operator_s_terminal(attested: Attested) -> None:
    assert "\x1b" not in attested.run.output
    assert "evil" not in attested.run.output
    assert all(letter * 1000 not in attested.run.output for letter in "UP")
    assert len(attested.run.output) < 100_000


def test_no_host_makes_the_control_node_larger_than_is_said(attested: Attested) -> None:
    assert len(attested.run.workers) > len(ATTACKS)
    largest = attested.run.main + MEMORY_LIMIT + JUDGEMENT
    assert max(attested.run.workers.values()) < largest
    assert attested.run.main < 256 * MIB


def test_nothing_goes_on_after_the_run(attested: Attested) -> None:
    assert attested.leftovers == []
