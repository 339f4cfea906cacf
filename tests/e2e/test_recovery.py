# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes of the root's keyslots on a running guest: committed, forgotten, and recovered at the serial console."""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.tests.lab.ansible import inventory, playbook
from ansible_collections.cvm.fde.tests.lab.guest import Guest, boot
from ansible_collections.cvm.fde.tests.lab.sealed import Sealed, sealed_image
from ansible_collections.cvm.fde.tests.lab.upkeep import assert_nothing_left
from ansible_collections.cvm.fde.tests.spelling import spelt, spelt_recovery_key

AGENT = "/usr/lib/cvm-fde/agent.pyz"
PARTITION = f"""$({AGENT} status </dev/null | python3 -c 'import json, sys; print(json.load(sys.stdin)["device"])')"""
#: An operator's own changes: a recovery key, and later the same evidence once more.
ADD_KEY = f"systemd-cryptenroll --unlock-tpm2-device=auto --recovery-key {PARTITION}"
REWRITE = (
    f"id=$(cryptsetup luksDump --dump-json-metadata {PARTITION} | python3 -c "
    '\'import json, sys; [print(n) for n, t in json.load(sys.stdin)["tokens"].items() if t["type"] == "cvm-fde"]\')'
    f" && cryptsetup token export --token-id $id {PARTITION}"
    f" | cryptsetup token import --token-id $id --token-replace --json-file - {PARTITION}"
)
#: The volume key to standard output in base64; the recovery key is read from standard input.
DUMP = (
    "cryptsetup luksDump --batch-mode --dump-volume-key --volume-key-file /root/dumped --key-file - "
    f"{PARTITION} >/dev/null && base64 -w0 /root/dumped; rm /root/dumped"
)
#: Prints which files hold one of the texts, which it reads from standard input: no command line may have them.
SEARCH = """
import json, sys
from pathlib import Path

sought = [bytes.fromhex(text) for text in json.load(sys.stdin)]
found = [path for top in ("/run", "/tmp", "/var/tmp", "/var/log", "/dev/shm") for path in Path(top).rglob("*")]
found += [path for name in ("cmdline", "environ") for path in Path("/proc").glob(f"[0-9]*/{name}")]
for path in found:
    try:
        content = path.read_bytes() if path.is_file() and path.stat().st_size < 1 << 26 else b""
    except OSError:
        continue
    if any(text in content for text in sought):
        print(path)
"""


@dataclass
class Story:
    """What a guest went through: what it told of itself after each boot, and what it said in the refused one."""

    guest: Guest
    key: str = ""
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    console: str = ""
    leaks: str = ""
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)

    def tell(self, when: str) -> None:
        known = json.loads(self.guest.ssh(f"{AGENT} status").stdout)
        assert isinstance(known, dict)
        self.known[when] = known

    def anchor(self, when: str) -> dict[str, Any]:
        anchor = self.known[when]["anchor"]
        assert isinstance(anchor, dict)
        return anchor


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("reports")
    guest, sealed = Guest("e2e-recovery"), sealed_image(recovery="console")
    Guest.create(guest.name, sealed.image)
    told = Story(guest)
    try:
        boot(guest)
        told.key = guest.ssh(ADD_KEY).stdout.strip()
        told.tell("changed")
        committed = json.loads(guest.ssh(f"{AGENT} commit").stdout)
        assert committed["action"] == "commit"
        told.tell("committed")
        guest.reboot()
        told.tell("rebooted")
        guest.ssh(REWRITE)
        told.tell("forgotten")
        told.reports["forgotten"] = attested(guest, sealed, folder, require="nothing")
        guest.serial.begin_boot()
        guest.ssh("systemctl reboot --no-block", check=False)
        guest.wait_text("Recovery key")
        guest.type_line("not the key")
        guest.wait_text("2 tries are left")
        guest.type_line(told.key)
        guest.wait_text("Type 'yes'")
        told.console = guest.serial.boot()
        guest.serial.begin_boot()
        guest.type_line("yes")
        guest.wait_login()
        told.tell("recovered")
        told.leaks = guest.ssh("journalctl --no-pager -o cat; dmesg").stdout
        told.reports["recovered"] = attested(guest, sealed, folder)
        yield told
    finally:
        guest.power_off()


def attested(guest: Guest, sealed: Sealed, folder: Path, require: str = "trusted") -> dict[str, Any]:
    """Return what the playbook ``attest`` reports of the guest; it fails unless the guest is what is required."""
    hosts = inventory(folder / "hosts.json", {"fleet": {guest.name: guest.inventory()}})
    variables = {**sealed.variables(), "fde_report_path": str(folder / "report.json"), "fde_require": require}
    playbook("cvm.fde.attest", hosts, variables, log=folder / "attest.log")
    [entry] = json.loads((folder / "report.json").read_text())["hosts"]
    assert isinstance(entry, dict)
    return entry


def test_a_change_is_found_and_a_commit_makes_it_good(story: Story) -> None:
    assert re.fullmatch("([cbdefghijklnrtuv]{8}-){7}[cbdefghijklnrtuv]{8}", story.key)
    changed, committed = story.anchor("changed"), story.anchor("committed")
    assert changed["matches"] is False and committed["matches"] is True
    # That the clone has become complete meanwhile is another generation.
    completed = committed["complete"] - changed["complete"]
    assert committed["generation"] == changed["generation"] + 1 + completed


def test_a_committed_change_survives_a_reboot(story: Story) -> None:
    assert story.anchor("rebooted")["matches"] is True and story.anchor("rebooted")["refusals"] == 0
    assert story.known["rebooted"]["header_digest"] == story.known["committed"]["header_digest"]


def test_a_change_without_a_commit_is_refused_with_the_way_out(story: Story) -> None:
    assert story.anchor("forgotten")["matches"] is False
    assert "cvm-fde: refused [header-mismatch]" in story.console
    assert "changed without a commit" in story.console
    assert "login:" not in story.console


def test_the_control_node_names_a_change_without_a_commit_before_the_next_boot_refuses_it(story: Story) -> None:
    report = story.reports["forgotten"]
    assert report["verdict"] == "untrusted"
    found = {check["name"]: check["reason"] for check in report["checks"] if check["status"] == "failed"}
    assert list(found) == ["header_committed"]
    assert "the next boot refuses it" in found["header_committed"]


def test_the_recovery_shows_what_it_found_before_it_asks(story: Story) -> None:
    for words in ("the volume key is the one that the TPM remembers", "the evidence was made by this TPM"):
        assert words in story.console


def test_a_recovered_guest_is_healthy_and_says_what_happened(story: Story) -> None:
    anchor = story.anchor("recovered")
    assert (anchor["matches"], anchor["recoveries"], anchor["refusals"]) == (True, 1, 1)
    assert anchor["last_refusal"] == "header-mismatch"
    assert story.known["recovered"]["refusal"]["code"] == "header-mismatch"
    assert story.known["recovered"]["problems"] == []
    assert story.guest.ssh("systemctl --failed --no-legend --plain").stdout == ""


def test_the_control_node_trusts_the_recovered_guest_and_sees_that_it_was(story: Story) -> None:
    report = story.reports["recovered"]
    assert report["verdict"] == "trusted"
    assert (report["anchor"]["recoveries"], report["anchor"]["refusals"]) == (1, 1)


def test_the_recovery_key_is_in_no_log(story: Story) -> None:
    logs = story.guest.serial.path.read_bytes() + story.leaks.encode()
    assert [one for one in spelt_recovery_key(story.key) if one in logs] == []


def search(guest: Guest, *texts: bytes) -> list[str]:
    """Return the files in memory, the logs and the processes of a guest that hold one of the texts."""
    sought = json.dumps([text.hex() for text in texts]).encode()
    return guest.ssh(f"python3 -c {shlex.quote(SEARCH)}", stdin=sought).stdout.split()


def test_the_volume_key_is_in_no_log_no_table_no_process_and_in_no_file_in_memory(story: Story) -> None:
    key = base64.b64decode(story.guest.ssh(DUMP, stdin=story.key.encode()).stdout)
    assert len(key) == 96, "two keys of AES-256 and one of HMAC"
    spellings = [text for start in (0, 32, 64) for text in spelt(key[start : start + 24])]
    said = story.guest.serial.path.read_bytes() + story.leaks.encode()
    said += story.guest.ssh("dmsetup table --showkeys").stdout.encode()
    assert [text for text in spellings if text in said] == []
    uuid = story.known["recovered"]["luks_uuid"].encode()
    assert "/run/cvm-fde/header" in search(story.guest, uuid), "the search finds what is there"
    assert search(story.guest, *spellings) == []


def test_no_program_of_the_boot_is_left_with_a_key_in_memory_or_in_run(story: Story) -> None:
    assert_nothing_left(story.guest)
    found = story.guest.ssh(f"grep -rl {story.key} /run /tmp /var/log || true").stdout
    assert found == ""
