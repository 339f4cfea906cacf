# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cloned root keeps what was written to it, whatever happens to the machine, and ends up needing its source no
more.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import upkeep
from ansible_collections.cvm.fde.plugins.module_utils.agent.filling import fill
from ansible_collections.cvm.fde.plugins.module_utils.agent.hydration import Ears, hydrate
from ansible_collections.cvm.fde.plugins.module_utils.dm import clone, written
from ansible_collections.cvm.fde.plugins.module_utils.dm.device import DeviceMapper
from ansible_collections.cvm.fde.plugins.module_utils.dm.queue import queue_of
from ansible_collections.cvm.fde.plugins.module_utils.dm.table import Linear, error
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError, Refusal
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import read_area
from ansible_collections.cvm.fde.plugins.module_utils.luks2.profile import AUTHENTICATED
from ansible_collections.cvm.fde.plugins.module_utils.luks2.volume import attach_with_key, detach, format_volume
from ansible_collections.cvm.fde.plugins.module_utils.runner import Runner

IMAGE_SIZE = 48 << 20
VOLUME_SIZE = 96 << 20


@dataclass
class Machine:
    """A disk with a sealed image and a volume of its own, and what a boot does with them."""

    runner: Runner
    mapper: DeviceMapper
    image: str
    volume: str
    header: str
    key: bytearray
    root_hash: str = ""

    def seal(self, hashes: str) -> None:
        done = self.runner.run(["veritysetup", "format", self.image, hashes])
        lines = done.stdout.decode().splitlines()
        self.root_hash = next(line.split()[-1] for line in lines if line.startswith("Root hash"))
        self.hashes = hashes

    def boot(self, *, fresh: bool = False) -> clone.Status:
        self.runner.run(["veritysetup", "open", self.image, "root", self.hashes, self.root_hash])
        attach_with_key(self.runner, "fde-crypt", self.volume, header=self.header, volume_key=self.key)
        return clone.assemble(self.mapper, "fde-crypt", "root", fresh=fresh)

    def halt(self) -> None:
        """End the machine cleanly."""
        self.runner.run(["umount", "/mnt"], ok=())
        clone.disassemble(self.mapper)
        detach(self.runner, "fde-crypt")
        self.runner.run(["veritysetup", "close", "root"])

    def lose_power(self) -> None:
        """End the machine as a power cut does: nothing that is not on the disk by now gets there."""
        (lower,) = (target for target in self.mapper.table("fde-clone-dest") if isinstance(target, Linear))
        for name in ("fde-clone-dest", "fde-clone-meta"):
            length = sum(target.length for target in self.mapper.table(name))
            self.mapper.load(name, error(length))
            self.mapper.suspend(name, flush=False)
            self.mapper.resume(name)
        self.runner.run(["umount", "--lazy", "/mnt"], ok=())
        self.halt()

    def mount(self) -> Path:
        self.runner.run(["mount", "-t", "ext4", self.mapper.get("fde-root").path, "/mnt"])
        return Path("/mnt")

    def hydrate(self) -> clone.Status:
        how = clone.tuning(IMAGE_SIZE // 512)
        clone.hydrate(self.mapper, threshold=how.threshold, batch=how.batch)
        limit = time.monotonic() + 120
        while not (state := clone.status(self.mapper)).complete:
            assert time.monotonic() < limit, f"hydration stands at {state}"
            time.sleep(0.1)
        return state


@pytest.fixture
def machine(runner: Runner, mapper: DeviceMapper, disk: Callable[..., str], tmp_path: Path) -> Iterator[Machine]:
    content = tmp_path / "tree"
    content.mkdir()
    (content / "image-file").write_bytes(os.urandom(8 << 20))
    (content / "etc").write_text("from the image\n")
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, IMAGE_SIZE)
    runner.run(["mkfs.ext4", "-q", "-d", str(content), "-b", "4096", str(image)])
    volume = disk(VOLUME_SIZE)
    key = bytearray(os.urandom(AUTHENTICATED.volume_key_size))
    format_volume(
        runner,
        volume,
        volume_key=key,
        temporary_key=bytearray(os.urandom(32)),
        uuid="6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a002",
    )
    read_area(volume).store(str(tmp_path / "header"))
    made = Machine(runner, mapper, disk(IMAGE_SIZE, image), volume, str(tmp_path / "header"), key)
    made.seal(disk(4 << 20))
    yield made
    runner.run(["umount", "/mnt"], ok=())


def _digest(path: str, length: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for _block in range(length >> 20):
            digest.update(file.read(1 << 20))
    return digest.hexdigest()


def test_a_new_clone_is_the_image_and_hydrates_to_its_exact_content(machine: Machine) -> None:
    state = machine.boot(fresh=True)
    assert (state.hydrated, state.background, state.mode) == (0, False, clone.Mode.READ_WRITE)
    assert state.total == IMAGE_SIZE // 512 // clone.REGION
    root = machine.mapper.get("fde-root").path
    image = _digest(machine.image, IMAGE_SIZE)
    assert _digest(root, IMAGE_SIZE) == image
    state = machine.hydrate()
    assert state.metadata_used < state.metadata_total // 2
    Path("/proc/sys/vm/drop_caches").write_text("3")
    assert _digest(machine.mapper.get("fde-clone-dest").path, IMAGE_SIZE) == image


def test_what_was_synced_survives_a_power_cut_in_the_middle_of_hydration(machine: Machine) -> None:
    # On a busy host the kernel may have copied everything before anybody looks again: then it is no middle.
    for _attempt in range(5):
        machine.boot(fresh=True)
        mounted = machine.mount()
        (mounted / "written").write_bytes(b"mine" * 300_000)
        (mounted / "etc").write_text("from this machine\n")
        os.sync()
        synced = clone.status(machine.mapper).hydrated
        clone.hydrate(machine.mapper, threshold=1, batch=1)
        while clone.status(machine.mapper).hydrated < 200:
            pass
        machine.lose_power()
        if (state := machine.boot()).hydrated < state.total:
            break
        machine.halt()
    # What was copied since the last flush may have been copied for nothing.
    assert synced <= state.hydrated < state.total
    mounted = machine.mount()
    assert (mounted / "written").read_bytes() == b"mine" * 300_000
    assert (mounted / "etc").read_text() == "from this machine\n"
    machine.hydrate()
    assert (mounted / "written").read_bytes() == b"mine" * 300_000


def test_a_clone_takes_no_discards_which_would_leave_sectors_unwritten(machine: Machine) -> None:
    machine.boot(fresh=True)
    machine.mount()
    done = machine.runner.run(["fstrim", "/mnt"], ok=(1, 64))
    assert b"not supported" in done.stderr
    assert clone.status(machine.mapper).hydrated < clone.status(machine.mapper).total // 4


def test_a_complete_clone_becomes_linear_under_a_mounted_file_system_and_fills_its_volume(machine: Machine) -> None:
    machine.boot(fresh=True)
    mounted = machine.mount()
    with pytest.raises(FdeError, match="of 768 regions are copied"):
        clone.finish(machine.mapper)
    machine.hydrate()
    file = (mounted / "open-all-the-time").open("w+")
    file.write("before")
    file.flush()
    clone.finish(machine.mapper)
    assert not clone.is_clone(machine.mapper)
    file.write(" and after")
    file.flush()
    os.fsync(file.fileno())
    file.close()
    before, told = os.statvfs("/mnt").f_blocks, []
    fill(machine.mapper, Ears(told.append, told.append), mount_point="/mnt", most=8 << 11)
    assert os.statvfs("/mnt").f_blocks > before * 3 // 2
    assert len(told) > 3, "it grows by pieces"
    (mounted / "large").write_bytes(os.urandom(40 << 20))
    machine.halt()
    # The image is still needed to find the root, but nothing of it is used any more.
    state = machine.boot()
    assert state.complete and not clone.is_clone(machine.mapper)
    mounted = machine.mount()
    assert (mounted / "open-all-the-time").read_text() == "before and after"
    machine.halt()
    machine.boot()
    root = machine.mapper.get("fde-root").path
    machine.runner.run(["e2fsck", "-fn", root])
    machine.runner.run(["dd", f"if={root}", "of=/dev/null", "bs=1M", "iflag=direct"])


def test_programs_go_on_to_start_from_a_root_whose_mapping_is_exchanged(machine: Machine) -> None:
    machine.boot(fresh=True)
    mounted = machine.mount()
    for name in ("bin", "lib64", "lib/x86_64-linux-gnu"):
        (mounted / name).mkdir(parents=True)
    linked = machine.runner.run(["ldd", "/usr/bin/dash", "/usr/bin/cat"]).stdout.decode()
    files = {word for word in linked.split() if word.startswith("/") and not word.endswith(":")}
    for file in {"/bin/dash", "/bin/cat", *files}:
        shutil.copy(file, mounted / file.removeprefix("/usr").lstrip("/"))
    machine.hydrate()
    script = "while read -r line; do echo $(/bin/cat /etc) $line > /out; done"
    user = subprocess.Popen(["chroot", str(mounted), "/bin/dash", "-c", script], stdin=subprocess.PIPE)
    assert user.stdin is not None
    for number in range(30):
        if number == 10:
            # Nothing of it is in memory any more: the next program has to come from the device.
            Path("/proc/sys/vm/drop_caches").write_text("3")
            clone.finish(machine.mapper)
        user.stdin.write(f"{number}\n".encode())
        user.stdin.flush()
        limit = time.monotonic() + 60
        while (mounted / "out").read_text().split()[-1:] != [str(number)] if (mounted / "out").exists() else True:
            assert time.monotonic() < limit, f"no program starts any more ({number})"
            time.sleep(0.02)
    user.stdin.close()
    assert user.wait(60) == 0
    assert not machine.mapper.get("fde-root").suspended


def test_copying_waits_while_the_root_is_used_and_nothing_written_is_lost(machine: Machine) -> None:
    machine.boot(fresh=True)
    mounted = machine.mount()
    told: list[str] = []
    copying: list[tuple[bool, bool]] = []
    stop = threading.Event()
    written: dict[str, bytes] = {}

    def write() -> None:
        number = 0
        while not stop.is_set():
            name, content = f"file{number % 40}", os.urandom(20_000)
            with open(mounted / name, "wb") as file:
                file.write(content)
                os.fsync(file.fileno())
            written[name] = content
            number += 1

    def status(line: str) -> None:
        told.append(line)
        copying.append(("waiting for users" in line, clone.status(machine.mapper).background))
        if len([one for one in told if "waiting for users" in one]) >= 3:
            stop.set()

    user = threading.Thread(target=write)
    user.start()
    try:
        state = hydrate(machine.mapper, Ears(status, lambda _: None), interval=0.3)
    finally:
        stop.set()
        user.join()
    assert state is not None and state.complete
    assert [line for line in told if "waiting for users" in line], "the writer was never noticed"
    assert set(copying) == {(True, False), (False, True)}, "the kernel copies exactly when nobody is waited for"
    assert copying[-1] == (False, True)
    machine.runner.run(["umount", "/mnt"])
    machine.halt()
    machine.boot()
    mounted = machine.mount()
    assert {name: (mounted / name).read_bytes() for name in written} == written


@pytest.mark.parametrize(("rotational", "threshold", "batch"), [("0", 64, 16), ("1", 64, 64)])
def test_copying_is_tuned_to_the_disk_below_the_volume(
    machine: Machine, rotational: str, threshold: int, batch: int
) -> None:
    (Path("/sys/block") / Path(machine.volume).name / "queue/rotational").write_text(rotational)
    machine.boot(fresh=True)
    assert queue_of(machine.mapper.get("fde-clone-dest").minor).rotational is (rotational == "1")
    seen: list[clone.Status] = []
    hydrate(machine.mapper, Ears(lambda _: seen.append(clone.status(machine.mapper)), lambda _: None), interval=0.05)
    assert {(state.background, state.threshold, state.batch) for state in seen} == {(True, threshold, batch)}


def test_a_service_that_is_killed_before_any_of_its_steps_goes_on_where_it_was(machine: Machine) -> None:
    machine.boot(fresh=True)
    mounted = machine.mount()
    for step in range(1, 60):
        ended = subprocess.run([sys.executable, "-c", SERVICE, str(step)], timeout=120)
        (mounted / f"after{step}").write_bytes(b"kept" * 500)
        assert not machine.mapper.get("fde-root").suspended
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL
    else:
        pytest.fail("it never came to its end")
    assert step > 8, "it has more steps than that"
    assert not clone.is_clone(machine.mapper)
    for number in range(1, step + 1):
        assert (mounted / f"after{number}").read_bytes() == b"kept" * 500
    machine.halt()
    machine.boot()
    machine.runner.run(["e2fsck", "-fn", machine.mapper.get("fde-root").path])


#: What the service does; it is killed before it starts a program for the time that it is told.
SERVICE = """
import os, signal, sys
from ansible_collections.cvm.fde.plugins.module_utils.agent.filling import fill
from ansible_collections.cvm.fde.plugins.module_utils.agent.hydration import Ears, hydrate, settle
from ansible_collections.cvm.fde.plugins.module_utils.agent.process import SubprocessRunner
from ansible_collections.cvm.fde.plugins.module_utils.dm.device import DeviceMapper

class Doomed(SubprocessRunner):
    left = int(sys.argv[1])
    def run(self, *words, **options):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(*words, **options)

runner, ears = Doomed(), Ears(print, print)
hydrate(DeviceMapper(runner), ears, interval=0.05)
settle(DeviceMapper(runner), ears)
fill(DeviceMapper(runner), ears, mount_point="/mnt", most=8 << 11)
"""


def test_copying_stops_when_nobody_paces_it_any_more(machine: Machine) -> None:
    machine.boot(fresh=True)
    machine.mount()
    clone.hydrate(machine.mapper, threshold=1, batch=1)
    # The process that would slow it down was killed; this is what systemd starts then.
    upkeep.pause(machine.runner)
    first = clone.status(machine.mapper)
    time.sleep(0.3)
    now = clone.status(machine.mapper)
    assert not now.background and now.hydrated - first.hydrated <= first.hydrating
    machine.hydrate()
    clone.finish(machine.mapper)
    upkeep.pause(machine.runner)
    machine.halt()
    upkeep.pause(machine.runner)


def test_an_emptied_record_of_what_was_copied_is_refused(machine: Machine) -> None:
    machine.boot(fresh=True)
    mounted = machine.mount()
    (mounted / "etc").write_text("from this machine\n")
    machine.runner.run(["umount", "/mnt"])
    path = machine.mapper.get("fde-clone-meta").path
    machine.mapper.remove("fde-root")
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, bytes(4096), 0)
    os.fsync(descriptor)
    os.close(descriptor)
    machine.halt()
    with pytest.raises(Refusal, match="it is empty"):
        machine.boot()


def test_a_record_of_what_was_copied_from_before_the_root_grew_is_refused(machine: Machine) -> None:
    machine.boot(fresh=True)
    written.store(machine.mapper.get("fde-crypt"), (IMAGE_SIZE + (8 << 20)) // 512)
    machine.halt()
    with pytest.raises(Refusal, match="older than the record of what is written"):
        machine.boot()


def test_a_damaged_record_of_what_was_copied_is_refused(machine: Machine) -> None:
    machine.boot(fresh=True)
    path = machine.mapper.get("fde-clone-meta").path
    machine.mapper.remove("fde-root")
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, os.urandom(4096), 0)
    os.fsync(descriptor)
    os.close(descriptor)
    machine.halt()
    with pytest.raises(Refusal, match="reload ioctl on fde-root .* failed") as caught:
        machine.boot()
    assert caught.value.code == "clone-metadata"
    assert machine.mapper.find("fde-root") is None


def test_a_volume_that_has_become_too_small_is_refused_before_anything_is_made(machine: Machine) -> None:
    attach_with_key(machine.runner, "fde-crypt", machine.volume, header=machine.header, volume_key=machine.key)
    length = sum(target.length for target in machine.mapper.table("fde-crypt"))
    machine.mapper.create("root", error(length))
    with pytest.raises(Refusal) as caught:
        clone.assemble(machine.mapper, "fde-crypt", "root", fresh=True)
    assert caught.value.code == "device-shrunk"
    assert machine.mapper.find("fde-clone-dest") is None
