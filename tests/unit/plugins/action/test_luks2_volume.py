# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control node's half of luks2_volume, run by Ansible over machines whose answers are honest or not."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.cvm.fde.plugins.action.luks2_volume import OPTIONS, _check_silent, _given
from ansible_collections.cvm.fde.plugins.module_utils.volume.options import ARGUMENTS

CHECKOUT = Path(__file__).resolve().parents[4]
UUID = "6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a001"
PASSPHRASE = "only for its owner"
ENVELOPE = b"an envelope that nobody here can open"
TEXT = base64.b64encode(ENVELOPE).decode()


def handing_over(content: Any = TEXT, **other: Any) -> dict[str, Any]:
    digest = hashlib.sha256(ENVELOPE).hexdigest()
    return {
        "changed": True,
        "volumes": [{"name": "data", "uuid": UUID, "handover": {"content": content, "digest": digest}, **other}],
    }


#: What a machine answers to the first round; the second is answered by the second entry.
ANSWERS: dict[str, tuple[Any, Any]] = {
    "honest": (handing_over(), {"changed": False}),
    "nothing-new": ({"changed": False, "volumes": [{"name": "data", "handover": None}]}, {"failed": True}),
    "unconfirmed": (handing_over(), {"failed": True, "msg": "another recovery key was escrowed"}),
    "no-base64": (handing_over("!"), {}),
    "no-text": (handing_over(7), {}),
    "too-large": (handing_over(base64.b64encode(bytes(100_000)).decode()), {}),
    "outside": (handing_over(name="../../../outside"), {"changed": False}),
    "no-uuid": (handing_over(uuid="../../../etc/passwd"), {"changed": False}),
    "no-canonical-uuid": (handing_over(uuid=UUID.upper()), {"changed": False}),
    "not-asked-for": (handing_over(name="other"), {"changed": False}),
    # Another host is called db-1, and its volume data.
    "db": (handing_over(name="1-data"), {"changed": False}),
    "no-volume": ({"volumes": "all"}, {}),
    # One volume's key cannot be stored, and the run itself was cut short: the other one's is stored all the same.
    "half": (
        {
            "failed": True,
            "msg": "/srv/b: it cannot be mounted",
            "volumes": [
                {"name": "spare", "uuid": UUID, "handover": {"content": "!"}},
                handing_over()["volumes"][0],
            ],
        },
        {"changed": False},
    ),
    "talkative": ({"changed": False, "volumes": [], "note": f"I was told {PASSPHRASE}"}, {}),
}


def machine(folder: Path, name: str, answers: tuple[Any, Any]) -> dict[str, Any]:
    """Return a host whose Python prints these answers, one after the other, and keeps what it was given."""
    script = folder / f"{name}.sh"
    for number, answer in enumerate(answers, 1):
        (folder / f"{name}.{number}").write_text(json.dumps(answer))
    script.write_text(
        f"#!/bin/sh\ncd {folder}\n[ -e {name}.asked ] && n=2 || n=1\nprintf $n > {name}.asked\ncat {name}.$n\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return {"ansible_connection": "local", "ansible_python_interpreter": str(script), "ansible_pipelining": True}


def certificate(folder: Path) -> str:
    """Make a certificate for recovery keys and return its path."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=escrow"),
            *("-keyout", "key", "-out", "pem"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return str(folder / "pem")


def play(folder: Path, escrow: dict[str, Any], answers: dict[str, tuple[Any, Any]]) -> tuple[dict[str, Any], str]:
    """Run one task over machines; return the results by host, and all that Ansible printed."""
    volume = {
        "name": "data",
        "device": "/dev/vdb",
        "mount": {"path": "/srv"},
        "unlock": [{"method": "recovery"}, {"method": "passphrase", "passphrase": PASSPHRASE}],
    }
    keep = {"content": "{{ result | to_json }}", "dest": f"{folder}/{{{{ inventory_hostname }}}}.json", "mode": "0600"}
    spare = {**volume, "name": "spare", "device": "/dev/vdc", "mount": {"path": "/spare"}}
    tasks = [
        {
            "cvm.fde.luks2_volume": {"volumes": [volume, spare], "escrow": escrow},
            "register": "result",
            "ignore_errors": True,
        },
        {
            "ansible.builtin.copy": keep,
            "delegate_to": "localhost",
            "vars": {"ansible_python_interpreter": sys.executable},
        },
    ]
    (folder / "play.json").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    hosts = {name: machine(folder, name, given) for name, given in answers.items()}
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-vvv", "-i", "hosts.json", "play.json"],
        cwd=folder,
        env={
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / "build/collections"),
            "ANSIBLE_LOCAL_TEMP": str(folder / "local"),
            "ANSIBLE_REMOTE_TEMP": str(folder / "remote"),
            "ANSIBLE_LOCALHOST_WARNING": "false",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    files = {name: folder / f"{name}.json" for name in answers}
    assert all(file.exists() for file in files.values()), done.stdout[-4000:] + done.stderr[-2000:]
    return {name: json.loads(file.read_text()) for name, file in files.items()}, done.stdout + done.stderr


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """Run the task over all of them, with a directory for the keys."""
    folder = tmp_path_factory.mktemp("volumes")
    escrow = {"certificates": [certificate(folder)], "directory": str(folder / "escrow" / "keys")}
    return folder, *play(folder, escrow, ANSWERS)


#: A user's own plugin: a store that is a file, and that another user may have broken.
PLUGIN = """
import json, pathlib
from ansible.plugins.lookup import LookupBase

class LookupModule(LookupBase):
    def run(self, terms, variables=None, store=None, broken=False, escrow=None, **belonging):
        path = pathlib.Path(store, terms[0])
        if escrow is not None:
            path.write_text(json.dumps({"escrow": escrow, "asked_for": variables["inventory_hostname"], **belonging}))
            return []
        found = json.loads(path.read_text())["escrow"]
        return ["" if broken else found]
"""


@pytest.mark.parametrize("broken", [False, True], ids=["sound", "broken"])
def test_a_lookup_plugin_of_the_users_stores_recovery_keys(tmp_path: Path, broken: bool) -> None:
    for name in ("lookup_plugins", "store"):
        (tmp_path / name).mkdir()
    (tmp_path / "lookup_plugins/shelf.py").write_text(PLUGIN)
    options = {"store": str(tmp_path / "store"), "broken": broken}
    escrow = {"certificates": [certificate(tmp_path)], "store_with": "shelf", "options": options}
    results, output = play(tmp_path, escrow, {"honest": ANSWERS["honest"]})
    stored = json.loads((tmp_path / "store" / f"honest-data-{UUID}.cms").read_text())
    belonging = {"host": "honest", "volume": "data", "luks_uuid": UUID}
    assert stored == {"escrow": TEXT, "asked_for": "honest", **belonging}
    # What does not come back as it was is never confirmed.
    assert (tmp_path / "honest.asked").read_text() == ("1" if broken else "2")
    if broken:
        assert results["honest"]["failed"] and "reads back otherwise" in results["honest"]["msg"]
    else:
        assert results["honest"]["volumes"][0]["escrow"]["place"] == f"shelf:honest-data-{UUID}.cms"
    assert PASSPHRASE not in output


def test_a_lookup_plugin_that_is_not_there_is_named(tmp_path: Path) -> None:
    escrow = {"certificates": [certificate(tmp_path)], "store_with": "nobody.made.this"}
    results, _output = play(tmp_path, escrow, {"honest": ANSWERS["honest"]})
    assert results["honest"]["failed"] and "no such lookup plugin" in results["honest"]["msg"]


def test_a_recovery_key_is_kept_and_then_confirmed(told: tuple[Path, dict[str, Any], str]) -> None:
    folder, results, _output = told
    kept = folder / "escrow" / "keys" / f"honest-data-{UUID}.cms"
    assert kept.read_bytes() == ENVELOPE and kept.stat().st_mode & 0o777 == 0o600
    [volume] = results["honest"]["volumes"]
    assert volume["escrow"] == {
        "digest": hashlib.sha256(ENVELOPE).hexdigest(),
        "confirmed": True,
        "place": str(kept),
    }
    assert "handover" not in volume


def test_nothing_is_confirmed_when_nothing_was_handed_over(told: tuple[Path, dict[str, Any], str]) -> None:
    assert not told[1]["nothing-new"].get("failed")


@pytest.mark.parametrize("name", ["unconfirmed", "no-base64", "no-text", "too-large", "talkative"])
def test_an_answer_that_is_not_right_fails_the_task(told: tuple[Path, dict[str, Any], str], name: str) -> None:
    assert told[1][name]["failed"]


def test_what_can_be_stored_is_stored_though_another_key_or_the_run_itself_failed(
    told: tuple[Path, dict[str, Any], str],
) -> None:
    folder, results, _output = told
    failed = results["half"]
    assert failed["failed"] and "/srv/b: it cannot be mounted" in failed["msg"] and "volume spare" in failed["msg"]
    assert (folder / "escrow" / "keys" / f"half-data-{UUID}.cms").read_bytes() == ENVELOPE
    # The machine was told.
    assert (folder / "half.asked").read_text() == "2"


def test_no_machine_writes_outside_the_escrow(told: tuple[Path, dict[str, Any], str]) -> None:
    folder, _results, _output = told
    names = {path.name for path in (folder / "escrow").rglob("*") if path.is_file()}
    assert names == {
        f"honest-data-{UUID}.cms",
        f"unconfirmed-data-{UUID}.cms",
        f"half-data-{UUID}.cms",
    }


@pytest.mark.parametrize("name", ["outside", "no-uuid", "no-canonical-uuid", "not-asked-for", "db"])
def test_a_machine_hands_over_the_keys_of_its_own_volumes_only(
    told: tuple[Path, dict[str, Any], str], name: str
) -> None:
    folder, results, _output = told
    assert results[name]["failed"] and "its recovery key was not stored" in results[name]["msg"]
    # Nothing was confirmed.
    assert (folder / f"{name}.asked").read_text() == "1"


@pytest.mark.parametrize("secret", ["only for its owner", 'it\'s \\ "quoted"', "für\tNiemand"])
def test_a_secret_is_recognised_wherever_it_comes_back(secret: str) -> None:
    for told in ({"note": f"<{secret}>"}, {"volumes": [{"name": secret}]}, {"diff": {secret: None}}):
        with pytest.raises(AnsibleActionFail, match="returned a secret") as failed:
            _check_silent(told, [secret])
        assert secret not in str(failed.value)
    _check_silent({"note": secret[:-1]}, [secret])


def test_no_secret_is_printed_however_much_is_asked_for(told: tuple[Path, dict[str, Any], str]) -> None:
    _folder, results, output = told
    assert PASSPHRASE not in output and PASSPHRASE not in json.dumps(results)


@pytest.mark.parametrize(
    "unlock_with", [{"recovery_key": "a key"}, {"passphrase": PASSPHRASE}, {"key_file": "/run/key"}]
)
def test_the_module_accepts_whatever_the_task_accepts(unlock_with: dict[str, str]) -> None:
    """Both halves check the options; the module sees them after the first check has filled in what was left out."""
    volume = {"name": "data", "device": "/dev/vdb", "mount": {"path": "/srv"}, "unlock_with": unlock_with}
    volume["unlock"] = [{"method": "tpm2", "pcrs": [7]}]
    checked = ArgumentSpecValidator(OPTIONS).validate({"volumes": [volume]})
    assert checked.error_messages == []
    brought = {"host": "web1", "certificates": [], "agent": "/run/agent.pyz"}
    second = ArgumentSpecValidator(ARGUMENTS).validate({**_given(checked.validated_parameters), **brought})
    assert second.error_messages == []
    assert second.validated_parameters["volumes"] == checked.validated_parameters["volumes"]
