# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What identifies one machine leaves the image, and nothing else does."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.disk.clean import (
    SSH_UNIT,
    clean_crypttab,
    clean_fstab,
    plan_clean,
)
from ansible_collections.cvm.fde.plugins.module_utils.disk.ext4 import Change, Entry, Mkdir, Remove, Symlink, Write


@dataclass
class Memory:
    """A file system of a few files: path to content."""

    files: dict[str, bytes] = field(default_factory=dict)

    def list(self, directory: str) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        for path, content in self.files.items():
            if path.startswith(f"{directory}/"):
                name, below, _ = path[len(directory) + 1 :].partition("/")
                mode = stat.S_IFDIR | 0o755 if below else stat.S_IFREG | 0o644
                entries[name] = Entry(name, mode, 0 if below else len(content))
        return entries

    def read(self, path: str) -> bytes:
        return self.files.get(path, b"")


def planned(**files: bytes) -> tuple[Change, ...]:
    base = {"/etc/machine-id": b"", "/etc/hostname": b"image\n"}
    return plan_clean(Memory({**base, **files}))


def test_a_clean_root_stays_as_it_is() -> None:
    assert planned() == ()


@pytest.mark.parametrize(
    "path",
    [
        "/etc/ssh/ssh_host_rsa_key",
        "/etc/ssh/ssh_host_rsa_key.pub",
        "/var/lib/systemd/random-seed",
        "/var/lib/systemd/credential.secret",
        "/var/log/syslog",
        "/var/log/apt/history.log",
        "/var/lib/apt/lists/deb.debian.org_Packages",
        "/var/lib/dbus/machine-id",
        "/root/.bash_history",
    ],
)
def test_secrets_logs_and_lists_are_removed(path: str) -> None:
    assert Remove(path) in planned(**{path: b"x"})


@pytest.mark.parametrize(
    "path",
    ["/etc/ssh/sshd_config", "/etc/ssh/ssh_known_hosts", "/var/lib/systemd/timers", "/root/.profile", "/opt/log"],
)
def test_everything_else_stays(path: str) -> None:
    assert planned(**{path: b"x"}) == ()


def test_log_directories_stay_but_journals_of_a_machine_go_with_their_directory() -> None:
    changes = planned(**{"/var/log/apt/term.log": b"x", "/var/log/journal/abc/system.journal": b"x"})
    assert Remove("/var/log/apt", directory=True) not in changes
    assert changes.index(Remove("/var/log/journal/abc/system.journal")) < changes.index(
        Remove("/var/log/journal/abc", directory=True)
    )
    assert len({change.path for change in changes}) == len(changes)


@pytest.mark.parametrize("content", [b"0123456789abcdef0123456789abcdef\n", b"uninitialized\n"])
def test_the_machine_id_becomes_empty(content: bytes) -> None:
    changes = planned(**{"/etc/machine-id": content})
    assert changes == (Remove("/etc/machine-id"), Write("/etc/machine-id", b"", 0o444))


def test_a_missing_machine_id_is_made_so_that_units_are_not_reset() -> None:
    assert plan_clean(Memory({"/etc/hostname": b""})) == (Write("/etc/machine-id", b"", 0o444),)


def test_fstab_loses_root_esp_and_swap_and_keeps_the_rest() -> None:
    kept = b"# comment\nUUID=1 /data ext4 nofail 0 2\ntmpfs /tmp tmpfs defaults 0 0\n"
    dropped = b"UUID=2 / ext4 rw 0 1\nUUID=3 /boot/efi vfat umask=0077 0 1\n/dev/sda3 none swap sw 0 0\n"
    assert clean_fstab(kept + dropped) == kept
    changes = planned(**{"/etc/fstab": kept + dropped})
    assert changes == (Remove("/etc/fstab"), Write("/etc/fstab", kept, 0o644))
    assert planned(**{"/etc/fstab": kept}) == ()


def test_crypttab_loses_all_entries_and_keeps_comments() -> None:
    assert clean_crypttab(b"# name device\n\nroot UUID=1 none luks\n") == b"# name device\n\n"


def test_every_instance_with_an_ssh_server_makes_host_keys_of_its_own() -> None:
    changes = planned(**{"/usr/sbin/sshd": b"elf", "/etc/systemd/system/ssh.service.wants/other": b""})
    directory = "/etc/systemd/system"
    assert any(isinstance(change, Write) and change.path == f"{directory}/{SSH_UNIT}" for change in changes)
    assert Mkdir(f"{directory}/sshd.service.wants") in changes
    assert Mkdir(f"{directory}/ssh.service.wants") not in changes
    assert Symlink(f"{directory}/ssh.service.wants/{SSH_UNIT}", f"{directory}/{SSH_UNIT}") in changes


def test_host_keys_are_made_after_whoever_else_makes_them() -> None:
    units = "/etc/systemd/system"
    changes = planned(
        **{
            "/usr/sbin/sshd": b"elf",
            f"{units}/ssh.service.requires/keys.service": b"",
            f"{units}/keys.service": b"[Service]\nExecStart=ssh-keygen -f /etc/ssh/ssh_host_ed25519_key\n",
            f"{units}/ssh.service.wants/other.service": b"",
            "/usr/lib/systemd/system/other.service": b"[Unit]\nAfter=ssh.service\n",
        }
    )
    [unit] = [
        change.content for change in changes if isinstance(change, Write) and change.path == f"{units}/{SSH_UNIT}"
    ]
    [after] = [line for line in unit.decode().splitlines() if line.startswith("After=")]
    makers = after.removeprefix("After=").split()
    assert {"keys.service", "cloud-init.service", "sshd-keygen.target"} <= set(makers)
    assert "other.service" not in makers
