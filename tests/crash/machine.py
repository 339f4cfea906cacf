# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine whose disk and TPM are recorded: every write, every flush, and every change of what the TPM keeps.

The disk lies on dm-log-writes. The TPM is reached through a door that looks at its state file after every command, and
before the answer goes out: a changed state is copied, and its number becomes a mark in the log of the disk. So the log
says which state the TPM had at each moment of the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration/inside"))

import instance
import owner
from ansible_collections.cvm.fde.plugins.module_utils.agent.process import SubprocessRunner
from ansible_collections.cvm.fde.plugins.module_utils.runner import Runner

from . import log_writes

Lab, run, take_down = instance.Lab, instance.run, instance.take_down
Owner = owner.Owner

STATE = "tpm2-00.permall"
_RECORD, _UNDER = "recorded", "under-recorded"


class Log:
    """Where marks go; ``TPM_n`` files in ``directory`` are the states of the TPM, 0 the one at the start."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._states = 0

    def mark(self, text: str) -> None:
        """Put a mark into the log: it stands behind everything that a flush has covered."""
        message(_RECORD, f"mark {text}")

    def label(self, text: str) -> None:
        """Put a mark that is only for people."""
        self.mark(log_writes.LABEL + "_".join(text.split()))

    def keep(self, state: Path) -> None:
        """Copy the state of the TPM and mark the moment."""
        with self._lock:
            self._states += 1
            shutil.copyfile(state, self._directory / f"tpm-{self._states}")
            self.mark(f"tpm_{self._states}")


def message(device: str, text: str) -> None:
    """Send a message to a device-mapper target, without a program in between (linux/dm-ioctl.h, DM_TARGET_MSG)."""
    payload = struct.pack("<Q", 0) + text.encode() + b"\0"
    head = struct.Struct("<3IIIIiIIIQ128s129s7x")
    size = head.size + len(payload)
    request = bytearray(
        head.pack(4, 0, 0, size, head.size, 0, 0, 0, 0, 0, 0, device.encode(), b"") + payload + bytes(-size % 8)
    )
    with open("/dev/mapper/control", "r+b", buffering=0) as control:
        fcntl.ioctl(control, (3 << 30) | (head.size << 16) | (0xFD << 8) | 14, request)


class Door:
    """Stands between the programs and the TPM; ``look`` is called after each command, before its answer goes out."""

    def __init__(self, address: str, inner: str, look: Any) -> None:
        self._inner, self._look = inner, look
        self._sockets = [self._listen(address, self._command), self._listen(f"{address}.ctrl", self._control)]

    def close(self) -> None:
        for listening in self._sockets:
            listening.close()

    def _listen(self, address: str, serve: Any) -> socket.socket:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(address)
        listening.listen()
        threading.Thread(target=self._accept, args=(listening, serve), daemon=True).start()
        return listening

    def _accept(self, listening: socket.socket, serve: Any) -> None:
        while True:
            try:
                client, _address = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    def _command(self, client: socket.socket) -> None:
        with client, _connected(self._inner) as tpm:
            while (request := _message(client)) is not None:
                tpm.sendall(request)
                answer = _message(tpm)
                if answer is None:
                    return
                self._look()
                client.sendall(answer)

    def _control(self, client: socket.socket) -> None:
        with client, _connected(f"{self._inner}.ctrl") as tpm:
            while request := client.recv(65536):
                tpm.sendall(request)
                client.sendall(tpm.recv(65536))


def _connected(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    return connection


def _message(source: socket.socket) -> bytes | None:
    """Read one TPM command or answer: a tag, its length, the rest. None at the end."""
    head = source.recv(6, socket.MSG_WAITALL)
    if len(head) < 6:
        return None
    (size,) = struct.unpack(">2xI", head)
    return head + source.recv(size - 6, socket.MSG_WAITALL)


class LabellingRunner:
    """Names each program in the log before ``inner`` runs it."""

    def __init__(self, log: Log, inner: Runner | None = None) -> None:
        self._log = log
        self._inner = inner or SubprocessRunner(environment=instance.ENVIRONMENT)

    def run(self, argv: Any, **options: Any) -> Any:
        """Run a program; see ``Runner``."""
        words = [os.path.basename(argv[0]), *(word for word in argv[1:] if not word.startswith("-"))]
        self._log.label(" ".join(words)[:60])
        return self._inner.run(argv, **options)

    def find(self, name: str) -> str | None:
        """Return the path of a program; see ``Runner``."""
        return self._inner.find(name)


@dataclass
class RecordedLab(Lab):
    """An instance whose boots are recorded into ``recording``, one log for all of them."""

    kept: ClassVar[tuple[str, ...]] = (_RECORD, _UNDER)
    recording: Path = field(default_factory=Path)
    log: Log = field(init=False)

    def __post_init__(self) -> None:
        self.log = Log(self.recording)

    @contextlib.contextmanager
    def recorded(self, log_size: int = 4 << 30) -> Iterator[Log]:
        """Record what happens to the disk; the log is complete afterwards."""
        run("modprobe", "dm-log-writes")
        writes, under = self.directory / "log", self.directory / "under"
        with writes.open("wb") as file:
            file.truncate(log_size)
        # A mebibyte further in, or the machine would see the disk twice: below the recording, and through it.
        run("dd", f"if={self.image}", f"of={under}", "bs=1M", "seek=1", "conv=sparse", "status=none")
        disk, log = (run("losetup", "--find", "--show", str(path)).decode().strip() for path in (under, writes))
        size = self.image.stat().st_size // 512
        self.image.unlink()
        run("dmsetup", "create", "--noudevsync", _UNDER, "--table", f"0 {size} linear {disk} 2048")
        table = f"0 {size} log-writes /dev/mapper/{_UNDER} {log}"
        run("dmsetup", "create", "--noudevsync", _RECORD, "--table", table)
        try:
            yield self.log
        finally:
            take_down()
            run("losetup", "--detach", disk, log)
        with writes.open("r+b") as file:
            file.truncate(log_writes.length(writes))

    @contextlib.contextmanager
    def _attached(self) -> Iterator[None]:
        # Past the page cache: what a program flushed must be in the log in the order in which it was written.
        loop = ["losetup", "--find", "--show", "--partscan", "--direct-io=on", f"/dev/mapper/{_RECORD}"]
        self.device = run(*loop).decode().strip()
        try:
            yield
        finally:
            run("losetup", "--detach", self.device)

    @contextlib.contextmanager
    def _tpm_at(self, address: str) -> Iterator[None]:
        inner, state = f"{address}.inner", self.directory / STATE
        known = _version(state)

        def look() -> None:
            nonlocal known
            if (now := _version(state)) != known:
                known = now
                self.log.keep(state)

        with super()._tpm_at(inner):
            look()
            door = Door(address, inner, look)
            try:
                yield
            finally:
                door.close()
                for path in (address, f"{address}.ctrl"):
                    Path(path).unlink(missing_ok=True)


class DataMachine(Lab):
    """A machine whose disk has two partitions: its system, of which only ``root`` is of interest, and a data disk."""

    root: ClassVar[Path] = Path("/run/crash-system")

    @property
    def data(self) -> str:
        return f"{self.device}p2"

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        with self._attached():
            self.root.mkdir(exist_ok=True)
            # A power cut may leave one of the two sectors of ext4's superblock. Then somebody has to take its backup:
            # this file system is no work of ours, what is remembered in it is.
            checked = subprocess.run(["e2fsck", "-y", f"{self.device}p1"], stdout=subprocess.PIPE, text=True)
            assert checked.returncode in (0, 1), checked.stdout
            run("mount", "-t", "ext4", f"{self.device}p1", str(self.root))
            try:
                (self.root / "run").mkdir(exist_ok=True)
                run("mount", "-t", "tmpfs", "tmpfs", str(self.root / "run"))
                yield
            finally:
                subprocess.run(["umount", "--recursive", str(self.root)], check=True)
                take_down(*self.kept)


class RecordedDataMachine(DataMachine, RecordedLab):
    """The same, recorded."""


def _version(state: Path) -> bytes | None:
    return state.read_bytes() if state.exists() else None


@contextlib.contextmanager
def teardown_at_the_end() -> Iterator[None]:
    """Leave no device behind, whatever happened: the next power cut starts from an empty machine."""
    try:
        yield
    finally:
        subprocess.run(["umount", "--all", "--types", "ext4,btrfs,xfs,overlay"], capture_output=True)
        with contextlib.suppress(AssertionError):
            take_down()
        subprocess.run(["losetup", "--detach-all"], capture_output=True)
