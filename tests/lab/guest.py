# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One guest: its disk, its TPM, its serial log, and what can be done with it from outside."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Callable, Iterable, Mapping, Optional, Sequence

from .cache import BUILD, remove
from .disks import GIB, DataDisk, Disk
from .keys import keys
from .machine import Hardware, accelerator, devices, qemu, swtpm, variables
from .process import Background, LabError, run
from .progress import say
from .serial import SerialLog, Silence
from .tpm import manufacture

GUESTS = BUILD / "guests"
#: Seconds without a byte on the serial line after which a guest counts as hung; more on a machine with much else to do.
PATIENCE = float(os.environ.get("FDE_LAB_PATIENCE", "180"))
#: Seconds until the firmware must have said something.
FIRST_WORD = PATIENCE / 2
_PAUSE = 0.3
SSH_OPTIONS = (
    "ConnectTimeout=60",
    # Cheap under emulation.
    "KexAlgorithms=curve25519-sha256",
    "LogLevel=ERROR",
    # QEMU keeps a connection open whose guest was reset; without these a shared session to it waits for ever.
    "ServerAliveCountMax=24",
    "ServerAliveInterval=5",
    "StrictHostKeyChecking=no",
    "UserKnownHostsFile=/dev/null",
)


class GuestError(LabError):
    """A guest that hung or stopped; the message ends with the last lines of its serial log."""

    def __init__(self, guest: Guest, what: str) -> None:
        super().__init__(f"guest {guest.name} {what}; {guest.serial.path} ends with:\n{guest.serial.tail()}")


@dataclass(frozen=True)
class Guest:
    """A guest by its name; everything about it lies in ``build/guests/NAME``."""

    name: str
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", GUESTS / self.name)

    @classmethod
    def create(
        cls,
        name: str,
        image: Path,
        *,
        size: int = 5 * GIB,
        cpus: int = 2,
        memory: int = 1536,
        interface: str = "virtio",
        sector: int = 512,
        disks: Sequence[DataDisk] = (),
        log: str = "",
    ) -> Guest:
        """Make a guest that is off: a copy of ``image`` on a disk of ``size`` bytes, a new TPM, the lab's firmware.

        ``interface`` and ``sector`` say how the root disk is attached; the image must be one for such sectors.
        ``disks`` are further, empty disks. ``log`` is the file in the guest's folder that gets every write of the root
        disk. A guest of that name that exists already is stopped and replaced.
        """
        named = [disk if disk.serial else replace(disk, serial=f"data-{n}") for n, disk in enumerate(disks, 1)]
        hardware = Hardware(cpus, memory, _free_port(), Disk(size, interface, sector, "fde-lab", log), tuple(named))
        guest = cls(name)
        guest.delete()
        guest.folder.mkdir(parents=True)
        run(["cp", "--sparse=always", "--reflink=auto", image, guest.disk])
        if size > guest.disk.stat().st_size:
            os.truncate(guest.disk, size)
        guest.variables.write_bytes(variables(keys()).read_bytes())
        manufacture(guest.folder, keys())
        if log:
            (guest.folder / log).touch()
        for disk in named:
            with open(guest.data_disk(disk.serial), "wb") as file:
                file.truncate(disk.size)
        guest._describe(hardware)
        return guest

    def copy(self, name: str) -> Guest:
        """Make another guest of this one's disks, firmware variables and TPM, while this one is off."""
        if self.running:
            raise LabError(f"guest {self.name} is on: its disk and its TPM can only be copied while it is off")
        twin = Guest(name)
        twin.delete()
        twin.folder.mkdir(parents=True)
        files = [self.disk, *(self.data_disk(disk.serial) for disk in self.hardware.disks)]
        run(["cp", "-a", "--sparse=always", "--reflink=auto", *files, self.variables, self.tpm_state, twin.folder])
        twin._describe(replace(self.hardware, port=_free_port()))
        return twin

    def renew_tpm(self) -> None:
        """Put another TPM into the machine, as new and certified as the first one was, while it is off."""
        if self.running:
            raise LabError(f"guest {self.name} is on: its TPM can only be replaced while it is off")
        for path in self.folder.glob("tpm*"):
            remove(path)
        manufacture(self.folder, keys())

    def _describe(self, hardware: Hardware) -> None:
        (self.folder / "guest.json").write_text(json.dumps(asdict(hardware), indent=1))

    @property
    def disk(self) -> Path:
        """The raw disk; change it only while the guest is off."""
        return self.folder / "disk.raw"

    def data_disk(self, serial: str) -> Path:
        """The raw further disk of this serial number; change it only while the guest is off."""
        return self.folder / f"{serial}.raw"

    @property
    def variables(self) -> Path:
        """The firmware's variables."""
        return self.folder / "variables.fd"

    @property
    def tpm_state(self) -> Path:
        """The folder of the TPM's state; copy or replace it only while the guest is off."""
        return self.folder / "tpm"

    @property
    def serial(self) -> SerialLog:
        return SerialLog(self.folder / "serial.log")

    @property
    def hardware(self) -> Hardware:
        try:
            known = json.loads((self.folder / "guest.json").read_text())
        except FileNotFoundError as error:
            raise LabError(f"there is no guest {self.name}; 'up' makes one, 'list' shows them") from error
        except ValueError as error:
            raise LabError(
                f"{self.folder / 'guest.json'} is not readable; 'down --delete {self.name}' helps"
            ) from error
        return Hardware.read(known)

    @property
    def running(self) -> bool:
        return self._machine.pid is not None

    # Power

    def start(self, once: bool = False, strings: Sequence[str] = (), files: Optional[Mapping[str, str]] = None) -> None:
        """Switch the guest on and wait until its firmware speaks; a machine that says nothing is tried once more.

        With ``once`` it goes off where it would start again by itself, as a kernel does that gave up. ``strings`` are
        what the host tells it by way of SMBIOS (OEM strings, type 11), ``files`` by way of QEMU's fw_cfg.
        """
        extra = ["-action", "reboot=shutdown"] if once else []
        for text in strings:
            extra += ["-smbios", f"type=11,value={text.replace(',', ',,')}"]
        for file, text in (files or {}).items():
            extra += ["-fw_cfg", f"name={file},string={text.replace(',', ',,')}"]
        for last in (False, True):
            self._start(extra)
            try:
                self._wait(lambda: bool(self.serial.boot()), "never said a word", FIRST_WORD)
                return
            except GuestError:
                self.power_off()
                if last:
                    raise
                say(f"{self.name}: nothing on the serial line, trying once more")

    def _start(self, extra: Sequence[str]) -> None:
        if self.running:
            raise LabError(f"guest {self.name} is on already")
        self._tpm.stop()
        words, environment = qemu()
        self._tpm.start(swtpm(), cwd=self.folder, output=self.folder / "tpm-process.log")
        self._await_socket("tpm.sock", self._tpm)
        self.serial.begin_boot()
        self._machine.start(
            [*words, "-name", f"{self.name},process={self.name}", *accelerator(), *devices(self.hardware), *extra],
            cwd=self.folder,
            output=self.folder / "qemu.log",
            env=environment,
        )

    def power_off(self) -> None:
        """Cut the power: the guest gets no chance to write anything."""
        self._end_sessions()
        self._machine.stop()
        self._tpm.join(10)
        self._tpm.stop()

    def shut_down(self, patience: float = PATIENCE) -> None:
        """Let the guest shut down in order, and wait until it is off."""
        self.ssh("systemctl poweroff --no-block", check=False)
        self.wait_off(patience)

    def reboot(self, patience: float = PATIENCE) -> None:
        """Let the guest reboot in order, and wait until ssh answers again."""
        before = self.boot_id()
        self.serial.begin_boot()
        self.ssh("systemctl reboot --no-block", check=False)
        self._end_sessions()
        self._wait(
            lambda: self._answers() and self.boot_id(check=False) not in ("", before), "did not come back", patience
        )

    def delete(self) -> None:
        """Stop the guest and forget everything about it."""
        self.power_off()
        remove(self.folder)

    # Waiting

    def wait_login(self, patience: float = PATIENCE) -> None:
        """Wait until a command can be run over ssh; as long as the serial log grows, the guest is not given up."""
        self._wait(
            lambda: self._answers() and self.ssh("true", check=False).returncode == 0, "never reached login", patience
        )

    def wait_text(self, pattern: str, patience: float = PATIENCE) -> str:
        """Wait for a pattern in what the guest says since its boot began, and return what matched."""
        self._wait(lambda: self.serial.find(pattern) is not None, f"never said /{pattern}/", patience)
        found = self.serial.find(pattern)
        assert found is not None
        return found.group(0)

    def wait_off(self, patience: float = PATIENCE) -> None:
        """Wait until the guest has switched itself off."""
        self._wait(lambda: not self.running, "did not switch itself off", patience)
        self.power_off()

    def type_line(self, text: str) -> None:
        """Type a line on the serial line, and wait until the guest's UART has taken all of it."""
        with socket.socket(socket.AF_UNIX) as line:
            folder = os.open(self.folder, os.O_PATH | os.O_DIRECTORY)
            try:
                # The name of a socket has a small limit, and a checkout may lie deep.
                line.connect(f"/proc/self/fd/{folder}/serial.sock")
            finally:
                os.close(folder)
            line.sendall(f"{text}\r".encode())
            line.shutdown(socket.SHUT_WR)
            # QEMU closes once it has passed everything on; what the guest says meanwhile is in the log as well.
            while line.recv(4096):
                pass

    def _wait(self, done: Callable[[], bool], failure: str, patience: float) -> None:
        silence = Silence(patience, time.monotonic())
        while True:
            stopped = not self.running
            if done():
                return
            if stopped:
                log = (self.folder / "qemu.log").read_text(errors="replace").strip()
                raise GuestError(self, f"{failure}: it is off {log}".rstrip())
            if silence.lasts(len(self.serial.boot()), time.monotonic()):
                raise GuestError(self, f"{failure}: nothing new for {patience:.0f} s")
            time.sleep(_PAUSE)

    def _answers(self) -> bool:
        """Whether an ssh server greets; much cheaper for the guest than a session."""
        try:
            with socket.create_connection(("127.0.0.1", self.hardware.port), timeout=60) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    # Inside

    def ssh_command(self) -> list[str]:
        """Return the words of an ssh session with the guest; they hold in the guest's folder."""
        options = [
            "BatchMode=yes",
            "ControlMaster=auto",
            "ControlPath=ssh.sock",
            "ControlPersist=60",
            *SSH_OPTIONS,
        ]
        words = [word for option in options for word in ("-o", option)]
        return ["ssh", "-F", "none", "-i", str(keys().ssh), "-p", str(self.hardware.port), *words, "root@127.0.0.1"]

    def ssh(
        self, command: str, *, check: bool = True, stdin: bytes = b"", timeout: float = 300.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command in the guest as root; raise ``GuestError`` when it fails, unless ``check`` is off."""
        words = [*self.ssh_command(), command]
        try:
            done = subprocess.run(words, cwd=self.folder, input=stdin, capture_output=True, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise GuestError(self, f"did not finish {command!r} within {timeout:.0f} s") from error
        result = subprocess.CompletedProcess(
            words, done.returncode, *(said.decode(errors="replace") for said in (done.stdout, done.stderr))
        )
        if check and result.returncode:
            raise GuestError(self, f"ended {command!r} with {result.returncode}: {result.stdout}{result.stderr}")
        return result

    def _end_sessions(self) -> None:
        """End the shared ssh session: what is reset or switched off does not answer in it any more."""
        if (self.folder / "ssh.sock").exists():
            words = [*self.ssh_command()[:-1], "-O", "exit", "root@127.0.0.1"]
            subprocess.run(words, cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)

    def boot_id(self, check: bool = True) -> str:
        return self.ssh("cat /proc/sys/kernel/random/boot_id", check=check).stdout.strip()

    def inventory(self) -> dict[str, object]:
        """Return what Ansible must know to reach the guest."""
        return {
            "ansible_host": "127.0.0.1",
            "ansible_port": self.hardware.port,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(keys().ssh),
            "ansible_ssh_common_args": shlex.join(["-F", "none", *(f"-o{option}" for option in SSH_OPTIONS)]),
            "ansible_python_interpreter": "/usr/bin/python3",
        }

    @property
    def _machine(self) -> Background:
        return Background(self.folder / "qemu.pid")

    @property
    def _tpm(self) -> Background:
        return Background(self.folder / "tpm.pid")

    def _await_socket(self, name: str, process: Background) -> None:
        end = time.monotonic() + 20
        while not (self.folder / name).exists():
            if process.pid is None or time.monotonic() > end:
                log = (self.folder / "tpm-process.log").read_text(errors="replace")
                raise LabError(f"{self.name}: no {name}: {log}")
            time.sleep(0.05)


def guests() -> list[Guest]:
    """Return every guest that exists, by name."""
    return [Guest(path.parent.name) for path in sorted(GUESTS.glob("*/guest.json"))]


def together(work: Callable[[Guest], object], those: Iterable[Guest], at_once: int = 8) -> None:
    """Do the same with several guests at once; the first failure is raised when all have ended."""
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        for outcome in [pool.submit(work, guest) for guest in those]:
            outcome.result()


def boot(guest: Guest, until: Optional[str] = None) -> None:
    """Switch a guest on and wait for login, or for the text ``until`` on its serial line."""
    begun = time.monotonic()
    say(f"{guest.name}: booting ...")
    guest.start()
    if until is None:
        guest.wait_login()
    else:
        guest.wait_text(until)
    say(f"{guest.name}: {'ssh answers' if until is None else repr(until)} after {time.monotonic() - begun:.0f} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
