# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The owner of a machine with data disks: says what is wanted, as the module does, and runs it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.cvm.fde.plugins.module_utils.luks2.method import Tpm2
from ansible_collections.cvm.fde.plugins.module_utils.luks2.profile import PROFILES
from ansible_collections.cvm.fde.plugins.module_utils.runner import Runner
from ansible_collections.cvm.fde.plugins.module_utils.volume.confirmation import confirm
from ansible_collections.cvm.fde.plugins.module_utils.volume.machine import Machine
from ansible_collections.cvm.fde.plugins.module_utils.volume.places import Places
from ansible_collections.cvm.fde.plugins.module_utils.volume.volumes import Interrupted, apply_all, plan_all
from ansible_collections.cvm.fde.plugins.module_utils.volume.wanted import FileSystemType, Mount, State, Wanted

NAME = "data"


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


@dataclass(frozen=True)
class Owner:
    """``root`` is where the files of the volumes lie: a tmpfs, so that they are in RAM as /run is."""

    runner: Runner
    root: Path
    tcti: str

    @property
    def machine(self) -> Machine:
        return Machine(self.runner, Places(self.root))

    @property
    def mount_point(self) -> Path:
        return self.root / "mnt"

    @property
    def mapped(self) -> str:
        return self.machine.mapper.get(NAME).path

    def wants(self, device: str, **options: Any) -> Wanted:
        """Return what is wanted of a volume; by default a file system, mounted, unlocked by the TPM."""
        kind = FileSystemType(options.pop("file_system", "ext4"))
        mounted = kind is not FileSystemType.NONE
        state = options.pop("state", "mounted" if mounted else "open")
        # The kernel of the guest is older than the programs.
        older = ("-c", "options=/usr/share/xfsprogs/mkfs/lts_6.1.conf") if kind is FileSystemType.XFS else ()
        profile = PROFILES[options.pop("profile", "authenticated")]
        defaults: dict[str, Any] = {
            "name": NAME,
            "profile": profile,
            "journal": True,
            "wipe": profile.integrity is not None,
            "format_options": older,
            "mount": Mount(str(self.mount_point)) if mounted else None,
            "unlock": (Tpm2(pcrs=(7,)),),
            "boot": False,
            "tpm2_device": self.tcti,
        }
        return Wanted(device=device, file_system=kind, state=State(state), **{**defaults, **options})

    def run(self, wanted: Wanted, announce: Callable[[str], None] = lambda _text: None) -> Mapping[str, Any]:
        """Plan and apply, keep what is handed over, and return the report."""
        machine = Machine(self.runner, Places(self.root), announce)
        try:
            told = apply_all(machine, plan_all(machine, [wanted]))[0]
        except Interrupted as error:
            self._keep(error.reports[0])
            raise
        self._keep(told)
        return told

    def _keep(self, told: Mapping[str, Any]) -> None:
        if told["handover"] is not None:
            self.envelope.write_bytes(base64.b64decode(told["handover"]["content"]))
            confirm(self.machine, told["name"], hashlib.sha256(self.envelope.read_bytes()).hexdigest())

    @property
    def envelope(self) -> Path:
        return self.root / "recovery.cms"

    @property
    def recovery_key(self) -> str:
        """The recovery key, as whoever has the private key gets it out of the envelope."""
        key = str(self.root / "escrow.key")
        argv = ["openssl", "cms", "-decrypt", "-inform", "DER", "-in", str(self.envelope), "-inkey", key]
        return str(json.loads(self.runner.run(argv).stdout)["recovery_key"])

    def certificate(self) -> bytes:
        """Return the certificate to which recovery keys are encrypted, made at the first call."""
        self.root.mkdir(exist_ok=True)
        path = self.root / "escrow.pem"
        if not path.exists():
            self.runner.run(
                [
                    *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-noenc", "-subj", "/CN=escrow"),
                    *("-keyout", str(self.root / "escrow.key"), "-out", str(path)),
                ]
            )
        return path.read_bytes()

    def cut_power(self) -> None:
        """Close what is open without writing anything more, as far as device-mapper can."""
        self.runner.run(["umount", "--lazy", str(self.mount_point)], ok=())
        for name in (NAME, f"{NAME}_dif"):
            self.runner.run(["dmsetup", "remove", "--noudevsync", "--retry", name], ok=())
        drop_caches()
