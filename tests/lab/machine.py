# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest is made of: the QEMU command line, the firmware with the lab's keys, and whether KVM works here."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Mapping, Sequence

from .cache import BUILD, cached, digest
from .disks import GIB, DataDisk, Disk, attach
from .keys import Keys, keys
from .process import Background, Word, run
from .progress import say
from .trees import LIBRARIES, tool, tools_tree

FIRMWARE = "usr/share/OVMF/OVMF_CODE_4M.secboot.fd"
VARIABLES = "usr/share/OVMF/OVMF_VARS_4M.fd"
SECURE_BOOT_VARIABLES = ("PK", "KEK", "db", "dbx")
VARIABLES_TOOL = (sys.executable, "-m", "virt.firmware.vars", "--loglevel", "error")
#: Five-level page tables only make emulation slower.
TCG = ("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,la57=off")
KVM = ("-accel", "kvm", "-cpu", "host")
#: A working KVM lets the firmware speak within two seconds.
PROBE_SECONDS = 15.0


@dataclass(frozen=True)
class Hardware:
    """What a guest is given."""

    cpus: int = 2
    memory: int = 1536
    """MiB"""
    port: int = 0
    """TCP port of the host's loopback that leads to the guest's ssh port."""
    root: Disk = Disk(8 * GIB, serial="fde-lab")
    disks: tuple[DataDisk, ...] = ()

    @classmethod
    def read(cls, known: Mapping[str, Any]) -> Hardware:
        """Read what ``asdict`` wrote, be it an older or a newer lab's: what is missing is as it was by default then."""
        own = {field.name: known[field.name] for field in fields(cls) if field.name in known}
        if "root" in own:
            own["root"] = Disk(**own["root"])
        return cls(**{**own, "disks": tuple(DataDisk(**disk) for disk in own.get("disks", ()))})


def qemu() -> tuple[list[Word], dict[str, str]]:
    """Return the words that run QEMU, and its environment."""
    tree = tools_tree()
    words = [*tool("qemu-system-x86_64"), "-L", tree / "usr/share/qemu"]
    return words, {"QEMU_MODULE_DIR": str(tree / LIBRARIES / "qemu")}


def swtpm() -> list[Word]:
    """Return the words that run a TPM with the state in ``tpm`` of the working folder; it ends with its machine."""
    return [
        *tool("swtpm"),
        "socket",
        "--tpm2",
        *("--tpmstate", "dir=tpm"),
        *("--ctrl", "type=unixio,path=tpm.sock"),
        *("--log", "file=tpm.log,level=1"),
        "--terminate",
    ]


def devices(hardware: Hardware) -> list[Word]:
    """Return QEMU's arguments for a guest; files are relative to the guest's folder, where QEMU runs."""
    return [
        *board(),
        *("-drive", "if=pflash,unit=1,format=raw,file=variables.fd"),
        *("-smp", str(hardware.cpus), "-m", f"{hardware.memory}M"),
        *attach([(hardware.root, "disk.raw"), *((disk, f"{disk.serial}.raw") for disk in hardware.disks)]),
        *("-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{hardware.port}-:22"),
        *("-device", "virtio-net-pci,netdev=net,romfile="),
        *("-device", "virtio-rng-pci"),
        *("-chardev", "socket,id=tpm,path=tpm.sock", "-tpmdev", "emulator,id=tpm0,chardev=tpm"),
        *("-device", "tpm-crb,tpmdev=tpm0"),
        *("-chardev", "socket,id=serial,path=serial.sock,server=on,wait=off,logfile=serial.log,logappend=on"),
        *("-serial", "chardev:serial"),
        *("-qmp", "unix:qmp.sock,server=on,wait=off"),
    ]


def board() -> list[Word]:
    """Return QEMU's arguments for the bare machine with its firmware, which only System Management Mode may rewrite."""
    return [
        *("-no-user-config", "-nodefaults", "-display", "none", "-vga", "none", "-boot", "menu=off"),
        *("-machine", "q35,smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on"),
        *("-global", "ICH9-LPC.disable_s3=1"),
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={tools_tree() / FIRMWARE}"),
    ]


def variables(lab: Keys, secure_boot: bool = True) -> Path:
    """Return the firmware's variables with no keys but the lab's, and Secure Boot on unless it is not wanted."""
    template = tools_tree() / VARIABLES
    certificates = [lab.certificate(name) for name in ("PK", "KEK", "db")]

    def enrol(target: Path) -> None:
        enforce = ["--sb"] if secure_boot else ["--set-false", "SecureBootEnable"]
        words: list[Word] = [*VARIABLES_TOOL, "-i", template, "-o", target, *enforce, "--no-microsoft"]
        for option, certificate in zip(("--set-pk", "--add-kek", "--add-db"), certificates):
            words += [option, lab.owner, certificate]
        run(words)

    name = "variables.fd" if secure_boot else "unenforced-variables.fd"
    return cached("the firmware's variables", name, digest(template, lab.owner, *certificates), enrol)


def secure_boot_contents(lab: Keys) -> dict[str, Path]:
    """Return files with what the firmware measures of its Secure Boot variables, by variable.

    What the enrolling program adds by itself, a dbx, is in them too.
    """
    store = variables(lab)

    def extract(folder: Path) -> None:
        folder.mkdir()
        dump = folder / "variables.json"
        run([sys.executable, "-m", "virt.firmware.vars", "--loglevel", "error", "-i", store, "--output-json", dump])
        for variable in json.loads(dump.read_text())["variables"]:
            if variable["name"] in SECURE_BOOT_VARIABLES:
                (folder / variable["name"]).write_bytes(bytes.fromhex(variable["data"]))

    folder = cached("the contents of the Secure Boot variables", "contents", digest(store.name), extract)
    return {name: folder / name for name in SECURE_BOOT_VARIABLES if (folder / name).exists()}


def enrolled_variables(store: Path) -> dict[str, bytes]:
    """Return the Secure Boot variables of a store of firmware variables, by name."""
    with tempfile.NamedTemporaryFile(suffix=".json", dir=BUILD) as file:
        run(
            [sys.executable, "-m", "virt.firmware.vars", "--loglevel", "error", "-i", store, "--output-json", file.name]
        )
        found = json.load(file)["variables"]
    return {each["name"]: bytes.fromhex(each["data"]) for each in found if each["name"] in SECURE_BOOT_VARIABLES}


@cache
def accelerator() -> Sequence[str]:
    """Return KVM's arguments if firmware really runs under it, else those of software emulation.

    A ``/dev/kvm`` that exists can still fail, so a probe boot decides; the answer is kept until the host boots again.
    """
    answer = BUILD / "accelerator"
    question = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    if not answer.exists() or answer.read_text().split()[0] != question:
        works = Path("/dev/kvm").exists() and _probe()
        answer.write_text(f"{question} {'kvm' if works else 'tcg'}\n")
        say("guests run under KVM" if works else "KVM does not work here: guests run under software emulation")
    return KVM if answer.read_text().split()[1] == "kvm" else TCG


def _probe() -> bool:
    words, environment = qemu()
    with tempfile.TemporaryDirectory(prefix="probe-", dir=BUILD) as folder:
        at, log = Path(folder), Path(folder) / "serial.log"
        (at / "variables.fd").write_bytes(variables(keys()).read_bytes())
        machine = Background(at / "pid")
        machine.start(
            [*words, *board(), "-drive", "if=pflash,unit=1,format=raw,file=variables.fd", *KVM, "-m", "256M"]
            + ["-serial", "file:serial.log"],
            cwd=at,
            output=at / "qemu.log",
            env=environment,
        )
        end = time.monotonic() + PROBE_SECONDS
        while machine.pid and time.monotonic() < end and not (log.exists() and log.stat().st_size):
            time.sleep(0.1)
        works = machine.pid is not None and log.exists() and log.stat().st_size > 0
        machine.stop()
    return works
