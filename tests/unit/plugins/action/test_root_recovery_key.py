# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control node's half of root_recovery_key, run by Ansible over machines whose answers are honest or not."""

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

CHECKOUT = Path(__file__).resolve().parents[4]
UUID = "6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a001"
ENVELOPE = b"an envelope that nobody here can open"
TEXT = base64.b64encode(ENVELOPE).decode()
DIGEST = hashlib.sha256(ENVELOPE).hexdigest()


def made(content: Any = TEXT, luks_uuid: str = UUID) -> dict[str, Any]:
    return {"changed": True, "luks_uuid": luks_uuid, "escrow": {"digest": DIGEST}, "handover": content, "steps": ["x"]}


LATER = b"the envelope of a later key"
LEFT = {**made(), "more": True, "steps": ["finished", "rotated"]}
ROTATED = {
    **made(base64.b64encode(LATER).decode()),
    "escrow": {"digest": hashlib.sha256(LATER).hexdigest()},
    "more": False,
    "steps": ["rotated"],
}
#: What a machine answers to one round after the other.
ANSWERS: dict[str, tuple[Any, ...]] = {
    "honest": (made(), {"changed": True}),
    "has-one": ({"changed": False, "luks_uuid": UUID, "escrow": {"digest": DIGEST}, "steps": []}, {"failed": True}),
    "interrupted": (LEFT, {"changed": True}, ROTATED, {"changed": True}),
    "endless": (LEFT, {"changed": True}, LEFT, {"changed": True}, {"failed": True, "msg": "asked once more"}),
    "cut-again": (LEFT, {"changed": True}, {"failed": True, "msg": "its header cannot be read"}),
    "unconfirmed": (made(), {"failed": True, "msg": "its keyslot is gone"}),
    "refused": ({"failed": True, "msg": "its header was changed and not committed"}, {"failed": True}),
    "no-base64": (made("!"), {}),
    "no-text": (made([7]), {}),
    "too-large": (made(base64.b64encode(bytes(100_000)).decode()), {}),
    "outside": (made(luks_uuid="../../etc/passwd"), {"changed": True}),
}


def machine(folder: Path, name: str, answers: tuple[Any, ...]) -> dict[str, Any]:
    """Return a host whose Python prints these answers, one after the other, and keeps what it was given."""
    script = folder / f"{name}.sh"
    for number, answer in enumerate(answers, 1):
        (folder / f"{name}.{number}").write_text(json.dumps(answer))
    script.write_text(
        f"#!/bin/sh\ncd {folder}\nn=1; while [ -e {name}.asked.$n ]; do n=$((n + 1)); done\ncat > {name}.asked.$n\n"
        f"cat {name}.$n\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return {"ansible_connection": "local", "ansible_python_interpreter": str(script), "ansible_pipelining": True}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Run one task over all of them; return the folder and the results by host."""
    folder = tmp_path_factory.mktemp("root")
    (folder / "pem").write_text("a certificate, as far as the control node cares\n")
    escrow = {"certificates": [str(folder / "pem")], "directory": str(folder / "escrow")}
    keep = {"content": "{{ result | to_json }}", "dest": f"{folder}/{{{{ inventory_hostname }}}}.json", "mode": "0600"}
    tasks = [
        {"cvm.fde.root_recovery_key": {"escrow": escrow}, "register": "result", "ignore_errors": True},
        {
            "ansible.builtin.copy": keep,
            "delegate_to": "localhost",
            "vars": {"ansible_python_interpreter": sys.executable},
        },
    ]
    (folder / "play.json").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    hosts = {name: machine(folder, name, answers) for name, answers in ANSWERS.items()}
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", "hosts.json", "play.json"],
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
    files = {name: folder / f"{name}.json" for name in ANSWERS}
    assert all(file.exists() for file in files.values()), done.stdout[-4000:] + done.stderr[-2000:]
    return folder, {name: json.loads(file.read_text()) for name, file in files.items()}


def test_a_key_is_kept_and_then_confirmed(told: tuple[Path, dict[str, Any]]) -> None:
    folder, results = told
    kept = folder / "escrow" / f"honest-root-{UUID}.cms"
    assert kept.read_bytes() == ENVELOPE and kept.stat().st_mode & 0o777 == 0o600
    assert results["honest"]["escrow"] == {"digest": DIGEST, "place": str(kept)}
    assert "handover" not in results["honest"]
    assert DIGEST in (folder / "honest.asked.2").read_text(errors="replace")


def test_a_machine_with_a_key_is_asked_once(told: tuple[Path, dict[str, Any]]) -> None:
    folder, results = told
    assert results["has-one"]["changed"] is False and not results["has-one"].get("failed")
    assert not (folder / "has-one.asked.2").exists()


def test_what_an_interrupted_run_left_is_kept_before_a_new_key_takes_its_place(
    told: tuple[Path, dict[str, Any]],
) -> None:
    folder, results = told
    digest = hashlib.sha256(LATER).hexdigest()
    kept = folder / "escrow" / f"interrupted-root-{UUID}.cms"
    assert kept.read_bytes() == LATER and kept.with_name(f"{kept.name}.{DIGEST[:16]}").read_bytes() == ENVELOPE
    asked = [(folder / f"interrupted.asked.{number}").read_text(errors="replace") for number in (1, 2, 3, 4)]
    assert DIGEST in asked[1] and digest in asked[3]
    assert results["interrupted"]["escrow"]["digest"] == digest
    assert results["interrupted"]["steps"] == ["finished", "rotated"] and "more" not in results["interrupted"]


def test_a_machine_is_asked_for_two_keys_at_most(told: tuple[Path, dict[str, Any]]) -> None:
    folder, results = told
    assert not results["endless"].get("failed") and not (folder / "endless.asked.5").exists()


@pytest.mark.parametrize(
    "name", ["cut-again", "unconfirmed", "refused", "no-base64", "no-text", "too-large", "outside"]
)
def test_an_answer_that_is_not_right_fails_the_task(told: tuple[Path, dict[str, Any]], name: str) -> None:
    assert told[1][name]["failed"]


def test_no_machine_writes_outside_the_escrow(told: tuple[Path, dict[str, Any]]) -> None:
    names = {path.name for path in (told[0] / "escrow").rglob("*") if path.is_file()}
    expected = {f"{name}-root-{UUID}.cms" for name in ("honest", "unconfirmed", "interrupted", "endless", "cut-again")}
    assert names == {*expected, f"interrupted-root-{UUID}.cms.{DIGEST[:16]}"}
