# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to leave a root file system before many instances start from it.

Pure rules over directory listings; ``ext4`` carries the changes out. Afterwards nothing in the image identifies one
machine or lets it be impersonated: every instance makes its own machine id and ssh host keys on its first boot.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Mapping, Protocol

from .ext4 import Change, Entry, Mkdir, Remove, Symlink, Write


class Files(Protocol):
    """The part of a file system that the rules look at."""

    def list(self, directory: str) -> dict[str, Entry]:
        """Return the entries of a directory, nothing when there is no such directory."""

    def read(self, path: str) -> bytes:
        """Return the content of a file, nothing when there is no such file."""


@dataclass(frozen=True)
class Tree:
    """A directory whose files go; with ``directories`` what is below it goes altogether."""

    path: str
    directories: bool = False


#: Single files, by directory and pattern: secrets and identities of the machine that built the image.
SECRETS: tuple[tuple[str, str], ...] = (
    ("/etc/ssh", "ssh_host_*_key"),
    ("/etc/ssh", "ssh_host_*_key.pub"),
    ("/var/lib/systemd", "random-seed"),
    ("/var/lib/systemd", "credential.secret"),
    ("/var/lib/urandom", "random-seed"),
    ("/var/lib/NetworkManager", "secret_key"),
    ("/root", ".bash_history"),
)
TREES: tuple[Tree, ...] = (
    Tree("/var/log"),
    Tree("/var/log/journal", directories=True),
    Tree("/var/lib/apt/lists"),
    Tree("/var/cache/apt"),
    Tree("/var/lib/dhcp"),
    Tree("/var/lib/cloud", directories=True),
    Tree("/var/tmp", directories=True),
    Tree("/tmp", directories=True),
    Tree("/run", directories=True),
)
#: Mount points that the sealed disk provides otherwise, or whose partition it does not have.
FOREIGN_MOUNTS = ("/", "/boot", "/boot/efi", "/efi")

MACHINE_ID = "/etc/machine-id"
SYSTEMD_UNITS, SYSTEM_UNITS = "/etc/systemd/system", "/usr/lib/systemd/system"
SSH_UNIT = "fde-ssh-host-keys.service"
SSH_WANTED_BY = ("ssh.service", "sshd.service", "sshd@.service")
#: Others that make host keys (cloud-init, Fedora's sshd-keygen@.service): ssh-keygen fails where there is a key.
SSH_KEY_MAKERS = ("cloud-init.service", "cloud-init-network.service", "sshd-keygen.service", "sshd-keygen.target")
SSH_UNIT_TEXT = """\
# Every instance of this sealed image makes host keys of its own, where nobody else has made any.
[Unit]
Description=Make ssh host keys of this instance
ConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key
After={makers}
Before=ssh.service sshd.service sshd@.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=ssh-keygen -A

[Install]
WantedBy=ssh.service sshd.service sshd@.service
"""


def plan_clean(files: Files) -> tuple[Change, ...]:
    """Return the changes that make a root file system the common start of many instances; none when it is one."""
    changes: dict[str, Change] = {}
    for tree in sorted(TREES, key=lambda tree: -len(tree.path)):
        for change in _plan_tree(files, tree.path, tree.directories):
            changes.setdefault(change.path, change)
    for directory, pattern in SECRETS:
        for name, entry in files.list(directory).items():
            if fnmatch.fnmatchcase(name, pattern) and not entry.is_directory:
                changes[f"{directory}/{name}"] = Remove(f"{directory}/{name}")
    return (*changes.values(), *_plan_machine_id(files), *_plan_tables(files), *_plan_ssh_keys(files))


def _plan_tree(files: Files, path: str, directories: bool) -> list[Change]:
    changes: list[Change] = []
    for name, entry in sorted(files.list(path).items()):
        below = f"{path}/{name}"
        if not entry.is_directory:
            changes.append(Remove(below))
            continue
        changes += _plan_tree(files, below, directories)
        if directories:
            changes.append(Remove(below, directory=True))
    return changes


def _plan_machine_id(files: Files) -> list[Change]:
    """Empty the machine id. Without it, or with 'uninitialized', systemd would also reset which units are enabled."""
    changes: list[Change] = []
    entry = files.list("/etc").get("machine-id")
    if entry is None or not entry.is_file or entry.size:
        changes += [Remove(MACHINE_ID)] if entry is not None else []
        changes.append(Write(MACHINE_ID, b"", 0o444))
    dbus = files.list("/var/lib/dbus").get("machine-id")
    if dbus is not None and dbus.is_file:
        changes.append(Remove("/var/lib/dbus/machine-id"))
    return changes


def _plan_tables(files: Files) -> list[Change]:
    changes: list[Change] = []
    etc = files.list("/etc")
    for name, cleaned in (("fstab", clean_fstab), ("crypttab", clean_crypttab)):
        entry = etc.get(name)
        if entry is None or not entry.is_file:
            continue
        content = files.read(f"/etc/{name}")
        wanted = cleaned(content)
        if wanted != content:
            changes += [Remove(f"/etc/{name}"), Write(f"/etc/{name}", wanted, entry.mode & 0o777)]
    return changes


def clean_fstab(content: bytes) -> bytes:
    """Drop the lines for the root, the ESP, a boot partition and swap: the sealed disk has none by that name."""
    mounts = tuple(mount.encode() for mount in FOREIGN_MOUNTS)

    def stays(line: bytes) -> bool:
        fields = line.split()
        if len(fields) < 3 or fields[0].startswith(b"#"):
            return True
        return fields[1] not in mounts and fields[2] != b"swap"

    return b"".join(line for line in content.splitlines(keepends=True) if stays(line))


def clean_crypttab(content: bytes) -> bytes:
    """Drop all entries: they name devices of the machine that built the image."""
    return b"".join(
        line for line in content.splitlines(keepends=True) if not line.strip() or line.lstrip().startswith(b"#")
    )


def _plan_ssh_keys(files: Files) -> list[Change]:
    """Have missing host keys made at boot, where there is an ssh server.

    The units of distributions do this on a first boot as systemd understands it, or not at all.
    """
    if "sshd" not in files.list("/usr/sbin") and "sshd" not in files.list("/usr/bin"):
        return []
    existing = files.list(SYSTEMD_UNITS)
    if SSH_UNIT in existing:
        return []
    parents = [("/etc", "systemd"), ("/etc/systemd", "system")]
    return [
        *(Mkdir(f"{directory}/{name}") for directory, name in parents if name not in files.list(directory)),
        Write(f"{SYSTEMD_UNITS}/{SSH_UNIT}", SSH_UNIT_TEXT.format(makers=" ".join(_key_makers(files))).encode()),
        *_plan_wants({unit: files.list(f"{SYSTEMD_UNITS}/{unit}.wants") for unit in SSH_WANTED_BY}, existing),
    ]


def _key_makers(files: Files) -> list[str]:
    """Return the units that may make host keys: those that are known to, and those of the image's own ssh server."""
    found = set(SSH_KEY_MAKERS)
    for unit in SSH_WANTED_BY:
        for directory in (SYSTEMD_UNITS, SYSTEM_UNITS):
            for kind in ("wants", "requires"):
                found.update(name for name in files.list(f"{directory}/{unit}.{kind}") if _makes_keys(files, name))
    return sorted(found)


def _makes_keys(files: Files, unit: str) -> bool:
    return any(b"ssh-keygen" in files.read(f"{directory}/{unit}") for directory in (SYSTEMD_UNITS, SYSTEM_UNITS))


def _plan_wants(wants: Mapping[str, Mapping[str, Entry]], existing: Mapping[str, Entry]) -> list[Change]:
    changes: list[Change] = []
    for unit, entries in wants.items():
        directory = f"{SYSTEMD_UNITS}/{unit}.wants"
        if f"{unit}.wants" not in existing:
            changes.append(Mkdir(directory))
        if SSH_UNIT not in entries:
            changes.append(Symlink(f"{directory}/{SSH_UNIT}", f"{SYSTEMD_UNITS}/{SSH_UNIT}"))
    return changes
