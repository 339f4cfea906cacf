# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module itself, as Ansible starts it: what check mode foretells is what happens, and no secret leaves it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import archive
from owner import Owner

MIB = 1 << 20
PASSPHRASE = "correct horse battery staple"
MODULE = "ansible_collections.cvm.fde.plugins.modules.luks2_volume"


@dataclass
class Target:
    """A machine on which the module is run, and all that it lets anybody see."""

    directory: Path
    owner: Owner
    seen: list[str] = field(default_factory=list)

    def run(self, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
        """Run the module and return its result."""
        given = self.directory / "arguments.json"
        options = {"_ansible_check_mode": check, "_ansible_diff": True, "_ansible_module_name": "cvm.fde.luks2_volume"}
        brought = {
            "host": "db1",
            "agent": str(self.directory / "agent.pyz"),
            "certificates": [self.owner.certificate().decode()],
            "tpm2_device": self.owner.tcti,
        }
        given.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": {**brought, **arguments, **options}}))
        environment = {**os.environ, "PYTHONPATH": f"{self.directory}/lib:{os.environ['PYTHONPATH']}"}
        with journal() as told:
            done = subprocess.run(
                ["python3", "-m", MODULE, str(given)], env=environment, capture_output=True, text=True, check=False
            )
        self.seen += [done.stdout, done.stderr, *told]
        assert done.stdout.strip().startswith("{"), done.stdout + done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result


@contextlib.contextmanager
def journal() -> Iterator[list[str]]:
    """Take the place of syslog, and yield what it is told; it is all there once that is over."""
    told: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind("/dev/log")

        # Read while it is written: the kernel lets a program wait that finds ten messages there.
        def listen() -> None:
            while message := log.recv(1 << 16):
                told.append(message.decode())

        listener = threading.Thread(target=listen)
        listener.start()
        try:
            yield told
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
                end.sendto(b"", "/dev/log")
            listener.join()
            Path("/dev/log").unlink()


#: Takes the place of the program through which every other one is started: notes what anybody could see of them.
RECORDER = """#!/bin/sh
{ printf '%s\\n' "$@"; env; } >> /run/started
exec /usr/bin/setpriv.real "$@"
"""


@pytest.fixture
def target(owner: Owner, tmp_path: Path) -> Iterator[Target]:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/ansible").symlink_to(os.environ["FDE_ANSIBLE"])
    (tmp_path / "agent.pyz").write_bytes(archive.build(Path(archive.__file__).parents[1]))
    program = Path("/usr/bin/setpriv")
    shutil.copy(program, "/usr/bin/setpriv.real")
    program.write_text(RECORDER)
    yield Target(tmp_path, owner)
    shutil.copy("/usr/bin/setpriv.real", program)
    for name in ("/etc/cvm-fde", "/run/cvm-fde"):
        shutil.rmtree(name, ignore_errors=True)
    for name in ("/etc/crypttab", "/run/started"):
        Path(name).unlink(missing_ok=True)
    fstab = Path("/etc/fstab")
    if fstab.exists():
        fstab.write_text("".join(line for line in fstab.open() if not line.startswith("/dev/mapper/data")))


def volume(owner: Owner, device: str, **options: Any) -> dict[str, Any]:
    unlock = [{"method": "tpm2"}, {"method": "recovery"}, {"method": "passphrase", "passphrase": PASSPHRASE}]
    mount = {"path": str(owner.mount_point)}
    return {"name": "data", "device": device, "mount": mount, "unlock": unlock, **options}


def steps(result: dict[str, Any]) -> list[tuple[str, str]]:
    [told] = result["volumes"]
    return [(step["action"], step["subject"]) for step in (*result["steps"], *told["steps"])]


def confirmed(target: Target, result: dict[str, Any]) -> dict[str, Any]:
    """Do what the control node does with what was handed over."""
    handover = result["volumes"][0]["handover"]
    target.owner.envelope.write_bytes(base64.b64decode(handover["content"]))
    return target.run(volumes=[{"name": "data", "device": "/dev/null"}], escrowed={"data": handover["digest"]})


def test_what_check_mode_foretells_is_what_is_done_and_nothing_is_left_to_do(
    target: Target, owner: Owner, disk: Callable[..., str]
) -> None:
    device = disk(64 * MIB)
    before = Path(device).read_bytes()
    wanted = volume(owner, device)
    lives: dict[str, dict[str, Any]] = {
        "made": {},
        "bound otherwise": {"unlock": [{"method": "tpm2", "pcrs": [7, 14]}, *wanted["unlock"][1:]]},
        "closed": {"state": "closed"},
        "erased": {"state": "erased"},
    }
    for life, options in lives.items():
        volumes = [{**wanted, **options}]
        foretold = target.run(check=True, volumes=volumes)
        if life == "made":
            unchanged = Path(device).read_bytes() == before
            assert unchanged and not Path("/etc/cvm-fde").exists() and not Path("/etc/crypttab").exists()
        done = target.run(volumes=volumes)
        assert foretold["changed"] and done["changed"], life
        assert steps(foretold) == steps(done) != [], life
        assert foretold["diff"] == done["diff"] != [], life
        assert foretold["volumes"][0]["handover"] is None
        if done["volumes"][0]["handover"] is not None:
            assert confirmed(target, done) == {"changed": False, "invocation": {"module_args": ANY}}
        again = target.run(volumes=volumes)
        assert (again["changed"], again["diff"], steps(again)) == (False, [], []), life
    assert sum("Invoked with" in text for text in target.seen) >= len(lives) * 3


def test_the_boots_program_is_shown_when_it_alone_is_new_and_brought_for_no_volume_in_vain(
    target: Target, owner: Owner, disk: Callable[..., str]
) -> None:
    agent = Path("/usr/lib/cvm-fde/agent.pyz")
    wanted = volume(owner, disk(64 * MIB), profile="confidential")
    agent.unlink(missing_ok=True)
    nothing = target.run(volumes=[{**wanted, "state": "closed"}])
    assert (nothing["changed"], nothing["diff"], steps(nothing), agent.exists()) == (False, [], [], False)
    target.run(volumes=[wanted])
    agent.write_bytes(b"an older one")
    foretold, done = (target.run(check=check, volumes=[wanted]) for check in (True, False))
    assert steps(foretold)[0] == steps(done)[0] == ("install", str(agent))
    assert foretold["diff"][0] == done["diff"][0] and f"- install: {agent}" in done["diff"][0]["after"]


class _Any:
    def __eq__(self, _other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


ANY = _Any()


def test_no_secret_is_in_any_result_log_argument_or_environment(
    target: Target, owner: Owner, disk: Callable[..., str]
) -> None:
    device = disk(64 * MIB)
    wanted = volume(owner, device)
    confirmed(target, target.run(volumes=[wanted]))
    recovery_key = owner.recovery_key
    target.run(volumes=[{**wanted, "state": "closed"}])
    for given in ({"recovery_key": recovery_key}, {"passphrase": PASSPHRASE}):
        changed = [{"method": "tpm2", "pcrs": [7, 12]}, *wanted["unlock"][1:]]
        target.run(volumes=[{**wanted, "unlock": changed, "unlock_with": given}])
        target.run(volumes=[{**wanted, "unlock_with": given}])
    failed = target.run(volumes=[{**wanted, "profile": "confidential", "unlock_with": {"passphrase": PASSPHRASE}}])
    assert failed["failed"] and "was made with profile" in failed["msg"]
    started = Path("/run/started").read_text()
    assert "luksFormat" in started and "systemd-cryptenroll" in started and "PATH=" in started
    for secret in (PASSPHRASE, recovery_key, recovery_key.replace("-", "")):
        assert not any(secret in text for text in (*target.seen, started))


def test_a_failure_says_what_was_done_and_hands_over_what_was_made(
    target: Target, owner: Owner, disk: Callable[..., str], tmp_path: Path
) -> None:
    device = disk(64 * MIB)
    Path(device).write_bytes(b"x")
    refused = target.run(volumes=[volume(owner, device)])
    assert (refused["failed"], refused["code"], refused["volumes"]) == (True, "volume-has-data", [])
    Path(device).write_bytes(b"\0")
    (tmp_path / "file").write_text("no directory")
    result = target.run(volumes=[volume(owner, device, mount={"path": str(tmp_path / "file")})])
    assert result["failed"] and result["volumes"][0]["steps"][-1]["action"] == "configure"
    confirmed(target, result)
    assert target.run(volumes=[volume(owner, device)])["volumes"][0]["state"] == "mounted"


#: Bytes; xfs makes nothing smaller. The kernel of the guest is older than its mkfs.
SIZES = {"ext4": 300 * MIB, "xfs": 360 * MIB, "btrfs": 160 * MIB}
OLDER = {"xfs": ["-c", "options=/usr/share/xfsprogs/mkfs/lts_6.1.conf"]}


@pytest.mark.parametrize("kind", SIZES)
def test_a_volume_of_which_not_every_sector_was_written_holds_its_file_system(
    target: Target, owner: Owner, disk: Callable[..., str], kind: str
) -> None:
    """Whatever the making of a file system reads first was written before, or it would end with an I/O error."""
    device = disk(SIZES[kind])
    wanted = volume(owner, device, wipe="never", file_system=kind, format_options=OLDER.get(kind, []))
    made = target.run(volumes=[wanted])
    assert not made.get("failed"), made["msg"]
    assert made["volumes"][0]["state"] == "mounted"
    with pytest.raises(OSError, match="error"):
        Path(owner.mapped).read_bytes()
    content = os.urandom(8 * MIB)
    (owner.mount_point / "file").write_bytes(content)
    confirmed(target, made)
    for state in ("closed", "mounted"):
        assert target.run(volumes=[{**wanted, "state": state}])["volumes"][0]["state"] == state
    assert (owner.mount_point / "file").read_bytes() == content
