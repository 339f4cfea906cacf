# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's files on the EFI system partition, whose FAT has no journal."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import mounting
from ansible_collections.cvm.fde.plugins.module_utils.agent.esp import DIRECTORY, EfiPartition
from ansible_collections.cvm.fde.plugins.module_utils.agent.process import SubprocessRunner
from ansible_collections.cvm.fde.plugins.module_utils.runner import Completed

MIB = 1 << 20
NAME, SIZE = "header.next", 3 * MIB


@pytest.fixture
def efi(runner: SubprocessRunner, disk: Callable[..., str]) -> EfiPartition:
    """An EFI system partition with a kernel image."""
    device = disk(64 * MIB)
    runner.run(["mkfs.vfat", "-F", "16", device])
    with here(device) as root:
        (root / "BOOTX64.EFI").write_bytes(b"the kernel")
    return EfiPartition(runner, device)


@contextmanager
def here(device: str, *options: str) -> Iterator[Path]:
    """Mount a device as an administrator does."""
    Path("/run/efi").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "vfat", *options, device, "/run/efi"], check=True)
    try:
        yield Path("/run/efi")
    finally:
        subprocess.run(["umount", "/run/efi"], check=True)


def places() -> list[Path]:
    """Return the places of the agent's own, which are there for a moment only."""
    return [*Path("/run").glob(f"{Path(mounting.PLACE).name}*")]


class Scanned(SubprocessRunner):
    """Programs of a machine on which somebody opens every file that was just written."""

    opened: IO[bytes] | None = None

    def run(self, argv: Any, **options: Any) -> Completed:
        if argv[0] == "umount" and self.opened is None:
            self.opened = (Path(argv[-1]) / "BOOTX64.EFI").open("rb")
        return super().run(argv, **options)


def test_a_file_system_that_is_in_use_keeps_its_files(efi: EfiPartition) -> None:
    scanned = Scanned()
    EfiPartition(scanned, efi.device).write(NAME, b"a header")
    assert scanned.opened is not None and places() == []
    assert scanned.opened.read() == b"the kernel"
    EfiPartition(scanned, efi.device).write(NAME, b"another, while the first is still in use")
    scanned.opened.close()
    assert efi.read(NAME, 100) == b"another, while the first is still in use"
    with here(efi.device) as root:
        assert (root / "BOOTX64.EFI").read_bytes() == b"the kernel"


@pytest.mark.parametrize("first", ["read", "write"])
def test_what_somebody_looks_at_for_a_moment_is_waited_for(efi: EfiPartition, first: str) -> None:
    """A file system that goes only later cannot be mounted for writing where it was for reading, nor the other way."""
    efi.write(NAME, b"a header")
    scanned = Scanned()
    busy = EfiPartition(scanned, efi.device)
    busy.read(NAME, 100) if first == "read" else busy.write(NAME, b"another")
    assert scanned.opened is not None
    closing = threading.Timer(1.0, scanned.opened.close)
    closing.start()
    if first == "read":
        efi.write(NAME, b"another")
    assert efi.read(NAME, 100) == b"another"
    closing.join()


def test_readers_and_writers_wait_for_one_another(efi: EfiPartition) -> None:
    failures: list[BaseException] = []

    def use(number: int) -> None:
        try:
            for turn in range(5):
                if number % 2:
                    efi.write(NAME, bytes([turn]) * 1000)
                else:
                    content = efi.read(NAME, 2000)
                    assert content is None or len(set(content)) == 1 and len(content) == 1000
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and places() == []


def test_what_a_killed_process_left_mounted_is_in_nobodys_way(efi: EfiPartition) -> None:
    left = Path(f"{mounting.PLACE}left")
    left.mkdir()
    efi.runner.run(["mount", "-t", "vfat", "-o", "ro", efi.device, str(left)])
    efi.write(NAME, b"a header")
    left.rmdir()


def test_a_file_system_that_an_administrator_mounted_is_used_where_it_is(efi: EfiPartition) -> None:
    with here(efi.device) as root:
        efi.write(NAME, b"a header")
        assert (root / DIRECTORY / NAME).read_bytes() == b"a header"


@pytest.fixture
def torn(efi: EfiPartition) -> EfiPartition:
    """An EFI system partition with a file of ours, of whose chain of clusters a power cut left the beginning."""
    efi.write(NAME, os.urandom(SIZE))
    with open(efi.device, "r+b") as file:
        # Microsoft FAT specification, section 3.1: where the tables are, and how large.
        sector, reserved, tables, sectors = struct.unpack("<H1xHB5xH", file.read(24)[11:])
        for table in range(tables):
            file.seek((reserved + table * sectors + 1) * sector)
            file.write(bytes((sectors - 1) * sector))
        file.flush()
        os.fsync(file.fileno())
    return efi


def test_a_file_that_a_power_cut_tore_is_written_anew(torn: EfiPartition) -> None:
    content = os.urandom(SIZE)
    torn.write(NAME, content)
    assert torn.read(NAME, SIZE + 1) == content
    torn.remove(NAME)
    assert torn.read(NAME, SIZE) is None


def test_a_file_system_as_linux_mounts_it_would_be_read_only_from_then_on(torn: EfiPartition) -> None:
    with here(torn.device) as root:
        (root / DIRECTORY / NAME).unlink()
        with pytest.raises(OSError) as told:
            (root / DIRECTORY / NAME).write_bytes(b"")
        assert told.value.errno == errno.EROFS
