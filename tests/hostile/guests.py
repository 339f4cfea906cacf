# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts that are reached over ssh: OpenSSH and the files of a general-purpose image, each in namespaces of its own.

What Ansible takes for the host's Python is the test's to choose: the honest one has a Python with tpm2-pytss and a
software TPM; a hostile one prints what it likes.
"""

from __future__ import annotations

import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from ansible_collections.cvm.fde.tests.lab.process import run
from ansible_collections.cvm.fde.tests.lab.trees import base_tree, tools_tree

#: The host's own folder, and its TPM's, as the host sees them.
FOLDER, TPM = "/media", "/media/tpm"
#: A Python with tpm2-pytss: that of the tree of tools.
PYTHON = "chroot /mnt /usr/bin/python3"
HONEST = f"exec {PYTHON}"

_ROOM = """
set -e
root=$1 tree=$2 tools=$3 folder=$4 tpm=$5 address=$6 port=$7 command=$8
mount --bind "$tree" "$root"
mount -o remount,bind,ro "$root"
mount --bind "$tools" "$root/mnt"
mount -o remount,bind,ro "$root/mnt"
for top in "$root" "$root/mnt"; do
    mount -t tmpfs tmpfs "$top/run"
    mount -t tmpfs tmpfs "$top/root"
    mount -t tmpfs tmpfs "$top/tmp"
    mount -t proc proc "$top/proc"
    mount --rbind /dev "$top/dev"
    mount --bind "$folder" "$top/media"
    mount --bind "$tpm" "$top/media/tpm"
done
mount --bind "$folder/python3" "$root/usr/bin/python3"
mkdir "$root/run/sshd"
exec chroot "$root" /usr/sbin/sshd -D -e -f /dev/null -p "$port" -h /media/host_key -o ListenAddress="$address" \
    -o AuthorizedKeysFile=/media/authorized_keys -o StrictModes=no -o UsePAM=no -o ForceCommand="$command"
"""


@dataclass
class SshGuest:
    """One host; ``python`` is the shell script that Ansible finds where it looks for Python, ``command`` what runs in
    place of every other command as well.
    """

    folder: Path
    key: Path
    python: str
    machine: Optional[Any] = None
    files: dict[str, bytes] = field(default_factory=dict)
    command: str = ""
    process: Optional[subprocess.Popen[bytes]] = None
    address: str = ""
    port: int = 0

    def start(self, address: str) -> None:
        """Let sshd listen at an address of the loopback interface that no other guest has, and a port that is free
        there.
        """
        self.address = address
        for name in ("root", "empty", "files/tpm"):
            (self.folder / name).mkdir(parents=True)
        files = self.folder / "files"
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", files / "host_key"])
        (files / "authorized_keys").write_text(self.key.with_suffix(".pub").read_text())
        (files / "python3").write_text(f"#!/bin/sh\n{self.python}\n")
        (files / "python3").chmod(0o755)
        for name, content in self.files.items():
            (files / name).write_bytes(content)
        with socket.socket() as free:
            free.bind((address, 0))
            self.port = free.getsockname()[1]
        tpm = self.machine.folder if self.machine else self.folder / "empty"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "sh", "-c", _ROOM]
                + [
                    "sh",
                    self.folder / "root",
                    base_tree(),
                    tools_tree(),
                    files,
                    tpm,
                    address,
                    str(self.port),
                    self.command or "none",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def _log(self) -> Path:
        return self.folder / "sshd.log"

    def wait(self) -> None:
        """Return once sshd says that it listens: an answer alone might be that of a stranger."""
        assert self.process is not None
        for _attempt in range(1200):
            if f"Server listening on {self.address} port {self.port}." in self._log.read_text():
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"sshd did not start: {self._log.read_text()}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def variables(self) -> dict[str, Any]:
        """Return what an inventory says of this host."""
        known = self.folder / "known_hosts"
        known.write_text(f"[{self.address}]:{self.port} {(self.folder / 'files/host_key.pub').read_text()}")
        found = {
            "ansible_connection": "ssh",
            "ansible_host": self.address,
            "ansible_port": self.port,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={known} -o StrictHostKeyChecking=yes",
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        if self.machine:
            found["attest_tcti"] = f"swtpm:path={TPM}/tpm.sock"
            found["attest_firmware_log"] = f"{TPM}/{self.machine.firmware_log.name}"
            found["attest_userspace_log"] = f"{TPM}/{self.machine.userspace_log.name}"
            found["attest_header"] = f"{TPM}/{self.machine.write_header().name}"
        return found
