# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside the guest: reports every result to the host at once, and lends disks, device-mapper and a TPM."""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.boot import boot
from ansible_collections.cvm.fde.plugins.module_utils.agent.decision import Action
from ansible_collections.cvm.fde.plugins.module_utils.agent.process import SubprocessRunner
from ansible_collections.cvm.fde.plugins.module_utils.dm.device import DeviceMapper
from cryptography.hazmat.primitives.asymmetric import rsa

sys.path.insert(0, str(Path(__file__).parent))

from instance import Lab, make_lab, make_sealed, run, use
from owner import Owner
from software_tpm import Tpm

COLLECTED = Path("/exchange/collected.json")
RESULTS = Path("/exchange/results.jsonl")
MEMORY = Path("/exchange/memory.jsonl")
STUCK = Path("/exchange/stuck")
#: Bytes of a file that may stay where it is after its test.
_SMALL = 1 << 20


class Memory:
    """Notes how scarce memory became, and for what, so that a guest that ran out of it can be explained."""

    def __init__(self) -> None:
        self._test, self._least = "", {"MemAvailable": sys.maxsize}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def begin(self, test: str) -> None:
        """Count for this test from now on."""
        self._test, self._least = test, self.now()

    def now(self) -> dict[str, int]:
        """Return what is available, in files in memory, and in processes, in MiB."""
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = {name: int(rest.split()[0]) >> 10 for name, _, rest in (line.partition(":") for line in lines)}
        return {name: found[name] for name in ("MemAvailable", "Shmem", "AnonPages")}

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            now = self.now()
            # On disk at once: the next moment may be the last one.
            if now["MemAvailable"] < self._least["MemAvailable"] - 16:
                self._least = now
                with MEMORY.open("a") as file:
                    file.write(json.dumps({"test": self._test, **now}) + "\n")


class Patience:
    """Tells the host what a test waits for that takes suspiciously long, which no silence of a guest explains."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer: threading.Timer | None = None

    def begin(self) -> None:
        """Wait anew."""
        self.end()
        self._timer = threading.Timer(self._seconds, self._tell)
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        """Wait no longer."""
        if self._timer is not None:
            self._timer.cancel()
        STUCK.unlink(missing_ok=True)

    def _tell(self) -> None:
        with STUCK.open("w") as file:
            print(f"a test has taken {self._seconds:.0f} s; its threads:", file=file, flush=True)
            faulthandler.dump_traceback(file)
            print("the processes (number, parent, state, what it waits for, command):", file=file, flush=True)
            for entry in sorted(Path("/proc").glob("[0-9]*"), key=lambda found: int(found.name)):
                print(_process(entry), file=file, flush=True)


def _process(entry: Path) -> str:
    """Return a line about a process, and its stack in the kernel where that tells it."""
    try:
        state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")[:160]
        command = words or f"[{(entry / 'comm').read_text().strip()}]"
        waits = " ".join((entry / name).read_text().strip() for name in ("wchan", "stack") if (entry / name).exists())
        return f"{entry.name} {parent} {state} {waits} {command}"
    except OSError as error:
        return f"{entry.name} {error.strerror}"


_memory = Memory()
#: Less than the silence after which the host ends the guest.
_patience = Patience(180)


def pytest_sessionstart() -> None:
    """Begin to watch the memory."""
    _memory.start()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tell the host what it is to hear of, every set of parameters by itself."""
    COLLECTED.write_text(json.dumps([item.nodeid for item in session.items]))


def pytest_sessionfinish() -> None:
    """Watch memory and time no longer."""
    _patience.end()
    _memory.stop()


def pytest_runtest_logstart(nodeid: str) -> None:
    """Count memory and time for this test."""
    _memory.begin(nodeid)
    _patience.begin()


def pytest_runtest_logfinish() -> None:
    """Give back what a caught exception holds: its frames hold each other, and whole disks.

    A large process is killed in here; see uml.py.
    """
    gc.collect()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Append the result to a file of the host, on disk before the next test can hang the guest."""
    if report.when == "call" or report.outcome != "passed":
        line = {
            "id": report.nodeid,
            "when": report.when,
            "outcome": report.outcome,
            "seconds": report.duration,
            "text": report.longreprtext,
            "sections": [f"{title}\n{text}" for title, text in report.sections],
        }
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


@pytest.fixture(autouse=True)
def memory_given_back(tmp_path: Path) -> Iterator[None]:
    """Remove a test's disks after it. They are files in memory, which is scarce, and pytest keeps its directories."""
    yield
    for file in tmp_path.rglob("*"):
        if file.is_file() and not file.is_symlink() and file.stat().st_size > _SMALL:
            file.unlink()


@pytest.fixture
def runner() -> SubprocessRunner:
    """The boot agent's own runner, where no udev runs."""
    return SubprocessRunner(environment={"DM_DISABLE_UDEV": "1"})


def _is_empty_after_removal(runner: SubprocessRunner) -> bool:
    """Remove every device that nothing holds, a layer of the stacks at a time, and tell whether none is left."""
    for _layer in range(8):
        if runner.run(["dmsetup", "ls"]).stdout == b"No devices found\n":
            return True
        runner.run(["dmsetup", "remove_all"], ok=())
    return runner.run(["dmsetup", "ls"]).stdout == b"No devices found\n"


@pytest.fixture
def mapper(runner: SubprocessRunner) -> Iterator[DeviceMapper]:
    """All of device-mapper, emptied after the test from the top of every stack down."""
    yield DeviceMapper(runner)
    runner.run(["umount", "--all", "--types", "ext4,xfs,btrfs"], ok=())
    runner.run(["dmsetup", "remove_all", "--force"], ok=())
    assert _is_empty_after_removal(runner)


@pytest.fixture
def disk(runner: SubprocessRunner, mapper: DeviceMapper, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Make disks: loop devices over files in memory, holding ``content`` or nothing."""
    loops = []

    def make(size: int, content: Path | None = None) -> str:
        file = tmp_path / f"disk{len(loops)}"
        with file.open("wb") as target:
            target.write(content.read_bytes() if content else b"")
            target.truncate(size)
        loops.append(runner.run(["losetup", "--find", "--show", str(file)]).stdout.decode().strip())
        return loops[-1]

    yield make
    # The mapper's own end comes later, but nothing may hold a loop device that is to be removed.
    runner.run(["umount", "--all", "--types", "ext4,xfs,btrfs"], ok=())
    _is_empty_after_removal(runner)
    for loop in loops:
        runner.run(["losetup", "--detach", loop])


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[Tpm]:
    """A software TPM that lives as long as the test."""
    with Tpm.start(tmp_path / "tpm") as running:
        yield running


@pytest.fixture(scope="module")
def signer() -> rsa.RSAPrivateKey:
    """The key of the image builder that signs PCR policies."""
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A disk image with ESP, verity data and verity hashes, and its root hash."""
    return make_sealed(tmp_path_factory.mktemp("sealed"))


@pytest.fixture
def lab(tmp_path: Path, sealed: tuple[Path, str], signer: rsa.RSAPrivateKey) -> Lab:
    """An instance that was never booted."""
    return make_lab(tmp_path, sealed, signer)


@pytest.fixture(scope="module")
def installed_once(
    tmp_path_factory: pytest.TempPathFactory, sealed: tuple[Path, str], signer: rsa.RSAPrivateKey
) -> Path:
    """The directory of an instance that has had its first boot."""
    directory = tmp_path_factory.mktemp("installed")
    instance = make_lab(directory, sealed, signer)
    with instance.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT
        use()
    return directory


@pytest.fixture
def installed(installed_once: Path, lab: Lab) -> Lab:
    """An instance after its first boot, for one test: a copy of the disk and of the TPM's state."""
    run("cp", "--sparse=always", str(installed_once / "disk"), str(lab.image))
    for state in installed_once.glob("tpm2-*"):
        run("cp", str(state), str(lab.directory))
    return lab


@pytest.fixture
def owner(runner: SubprocessRunner, mapper: DeviceMapper, tpm: Tpm, tmp_path: Path) -> Owner:
    """The owner of this machine, whose volumes are remembered below a directory of the test."""
    return Owner(runner, tmp_path / "root", tpm.tcti)
