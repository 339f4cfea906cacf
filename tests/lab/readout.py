# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine that does nothing but say what was measured: kernel and systemd-stub of a suite, and an initrd that prints
the PCRs and the firmware's event log on its console.

No system follows, so that nothing but the firmware, the stub and the kernel has extended a PCR; and it takes seconds.
"""

from __future__ import annotations

import base64
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

from .cache import cached, digest
from .guest import Guest
from .images import COMMAND_LINE
from .keys import keys
from .machine import variables
from .process import run
from .serial import SerialLog
from .trees import SUITE, parts_tree, run_in, tools_tree, variant

MIB = 1 << 20
#: As of a sealed image; the root hash is that of none.
WORDS = f"roothash={'5a' * 32} fde.strategy=clone {COMMAND_LINE}"
#: Words that an add-on brings.
ADDED = "systemd.debug_shell=1"
END = "everything was read"
INIT = f"""\
#!/bin/busybox sh
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t securityfs securityfs /sys/kernel/security
for pcr in $(/bin/busybox seq 0 23); do
    echo "pcr $pcr $(/bin/busybox cat /sys/class/tpm/tpm0/pcr-sha256/$pcr) ."
done
echo "log $(/bin/busybox base64 -w 0 /sys/kernel/security/tpm0/binary_bios_measurements) ."
echo "{END}"
exec /bin/busybox sleep 86400
"""


@dataclass(frozen=True)
class Parts:
    """A folder with a signed kernel image, and an add-on that is signed with the same key."""

    folder: Path

    @property
    def uki(self) -> Path:
        return self.folder / "linux.efi"

    @property
    def addon(self) -> Path:
        return self.folder / "words.addon.efi"


@dataclass(frozen=True)
class Readout:
    """What a machine held when its kernel had started: SHA-256 PCRs by number, and the firmware's event log."""

    pcrs: Mapping[int, bytes]
    log: bytes

    @classmethod
    def parse(cls, serial: SerialLog) -> Readout:
        said = serial.boot()
        pcrs = {
            int(pcr): bytes.fromhex(value) for pcr, value in re.findall(r"^pcr (\d+) ([0-9A-F]{64}) \.$", said, re.M)
        }
        (log,) = re.findall(r"^log ([A-Za-z0-9+/=]+) \.$", said, re.M)
        return cls(pcrs, base64.b64decode(log, validate=True))


def parts(suite: str = SUITE) -> Parts:
    """Return the kernel image of a suite that reads out, and an add-on to it."""
    tree, lab = parts_tree(suite), keys()
    recipe = digest(
        tree.name, tools_tree().name, COMMAND_LINE, Path(__file__), lab.certificate("db"), lab.public("pcr")
    )
    name = variant("readout", suite)
    return Parts(cached(f"the kernel image that reads out ({suite})", name, recipe, lambda at: _build(tree, at)))


def read_out(name: str, suite: str = SUITE, secure_boot: bool = True, added: Mapping[str, Path] = {}) -> Readout:
    """Boot a new machine and return what it held; ``added`` are files beside its kernel image, by name."""
    built = parts(suite)
    guest = Guest(name)
    disk = guest.folder.with_name(f"{name}.esp")
    disk.parent.mkdir(parents=True, exist_ok=True)
    _disk(disk, built, added)
    Guest.create(name, disk, size=disk.stat().st_size, memory=512)
    disk.unlink()
    guest.variables.write_bytes(variables(keys(), secure_boot).read_bytes())
    guest.start()
    try:
        guest.wait_text(END)
        return Readout.parse(guest.serial)
    finally:
        guest.power_off()


def _build(tree: Path, folder: Path) -> None:
    folder.mkdir()
    lab = keys()
    # forky's packages keep the kernel beside its modules and copy it to /boot only when they are configured.
    (kernel,) = [*tree.glob("boot/vmlinuz-*"), *tree.glob("usr/lib/modules/*/vmlinuz")]
    (modules,) = tree.glob("usr/lib/modules/*")
    stubs = tree / "usr/lib/systemd/boot/efi"
    inputs = {
        "linux": kernel,
        "initrd": _initrd(tree, folder / "root"),
        "os-release": tools_tree() / "usr/lib/os-release",
        "linux.stub": stubs / "linuxx64.efi.stub",
        "addon.stub": stubs / "addonx64.efi.stub",
        "db.key": lab.key("db"),
        "db.crt": lab.certificate("db"),
        "pcr.key": lab.key("pcr"),
        "pcr.pub": lab.public("pcr"),
    }
    for name, source in inputs.items():
        shutil.copy(source, folder / name)
    signed = ["--secureboot-private-key=/mnt/db.key", "--secureboot-certificate=/mnt/db.crt"]
    run_in(
        tools_tree(),
        ["ukify", "build", "--linux=/mnt/linux", "--initrd=/mnt/initrd", "--os-release=@/mnt/os-release"]
        + [f"--uname={modules.name}", f"--cmdline={WORDS}", "--stub=/mnt/linux.stub"]
        + ["--pcr-banks=sha256", "--pcrpkey=/mnt/pcr.pub", "--no-sign-kernel"]
        + ["--pcr-private-key=/mnt/pcr.key", "--pcr-public-key=/mnt/pcr.pub"]
        + [*signed, "--output=/mnt/linux.efi"],
        work=folder,
    )
    run_in(
        tools_tree(),
        ["ukify", "build", f"--cmdline={ADDED}", "--stub=/mnt/addon.stub", *signed, "--output=/mnt/words.addon.efi"],
        work=folder,
    )
    for name in inputs:
        (folder / name).unlink()
    inputs["initrd"].unlink()
    shutil.rmtree(folder / "root")


def _initrd(tree: Path, root: Path) -> Path:
    """Return an archive with busybox and the program that the kernel starts."""
    for name in ("bin", "sys"):
        (root / name).mkdir(parents=True)
    shutil.copy(tree / "usr/bin/busybox", root / "bin/busybox")
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    archive = root.with_suffix(".cpio")
    run(["sh", "-c", 'find . | "$0" cpio -o -H newc > "$1"', root / "bin/busybox", archive], cwd=root)
    return archive


def _disk(disk: Path, built: Parts, added: Mapping[str, Path]) -> None:
    """Write a file system that firmware boots from; it needs no partitions around it."""
    disk.unlink(missing_ok=True)
    size = built.uki.stat().st_size + sum(path.stat().st_size for path in added.values())
    run(["mkfs.vfat", "-C", "-n", "ESP", disk, str((size + 8 * MIB) // 1024)])
    run(["mmd", "-i", disk, "::/EFI", "::/EFI/BOOT", "::/EFI/BOOT/BOOTX64.EFI.extra.d"])
    run(["mcopy", "-i", disk, built.uki, "::/EFI/BOOT/BOOTX64.EFI"])
    for name, path in added.items():
        run(["mcopy", "-i", disk, path, f"::/EFI/BOOT/BOOTX64.EFI.extra.d/{name}"])
