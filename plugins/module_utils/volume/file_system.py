# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making and mounting the file system of a volume.

Without wiping, a sector of an authenticated volume can only be read after it was written. Programs that make a file
system read before they write: libblkid and mkfs look at both ends, mkfs.ext4 writes the 1024 bytes of each backup
superblock through the page cache, which reads the rest of the block first. So those places are written before. The
file systems themselves then read only what was written, but programs that check them read ahead (``dm.written``).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Optional, Sequence

from ..dm import edges
from ..dm.table import SECTOR
from ..errors import FdeError
from ..runner import CommandError, Runner
from .mount_options import differing, remounting
from .wanted import FileSystemType, Mount

_BLOCK = 4096
#: What libblkid looks at, in bytes.
_FRONT, _BACK = edges.FRONT * SECTOR, edges.BACK * SECTOR
#: ext4 with blocks of 4 KiB: a group has as many blocks as a block has bits, and a backup superblock in its first one.
_EXT4_GROUP = 32768 * _BLOCK


@dataclass(frozen=True)
class FileSystem:
    """What libblkid finds on the opened volume."""

    type: str
    uuid: Optional[str] = None
    label: Optional[str] = None


@dataclass(frozen=True)
class Mounted:
    """Where a volume is mounted now."""

    path: str
    options: tuple[str, ...] = ()


def identify(runner: Runner, path: str) -> Optional[FileSystem]:
    """Return the file system on a device, None when there is none."""
    # 2: nothing was found, or a sector that was never written could not be read.
    done = runner.run(["blkid", "--probe", "--output", "export", path], ok=(0, 2))
    values = dict(line.partition("=")[::2] for line in done.stdout.decode("utf-8", "replace").splitlines())
    if "TYPE" not in values:
        return None
    return FileSystem(values["TYPE"], values.get("UUID"), values.get("LABEL"))


def prepare(path: str, size: int, kind: FileSystemType) -> None:
    """Write zeros where the making of the file system reads first; ``size`` in bytes. Raises ``OSError``."""
    edges.zero(path, ((at // SECTOR, length // SECTOR) for at, length in prepared_places(size, kind)))


def prepared_places(size: int, kind: FileSystemType) -> Iterator[tuple[int, int]]:
    """Yield offsets and lengths of what ``prepare`` writes, both multiples of the sector size."""
    half = size // 2 // _BLOCK * _BLOCK
    yield 0, min(_FRONT, half)
    yield size // _BLOCK * _BLOCK - min(_BACK, half), min(_BACK, half)
    if kind is FileSystemType.EXT4:
        for at in range(_EXT4_GROUP, size - _BLOCK, _EXT4_GROUP):
            yield at, _BLOCK


def make(runner: Runner, path: str, kind: FileSystemType, label: str, options: Sequence[str]) -> None:
    """Make a file system. Nothing is discarded, because there is nothing to discard under authentication."""
    commands: Mapping[FileSystemType, list[str]] = {
        # What is written lazily after mounting would be read before by everything that looks at the inode tables.
        FileSystemType.EXT4: [
            "mkfs.ext4",
            "-q",
            "-b",
            "4096",
            "-E",
            "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
        ],
        FileSystemType.XFS: ["mkfs.xfs", "-q", "-K"],
        # Authentication below does not notice an old sector put back; a checksum in the parent does.
        FileSystemType.BTRFS: ["mkfs.btrfs", "-q", "-K", "--csum", "sha256"],
    }
    named = ["-L", label] if label else []
    runner.run([*commands[kind], *named, *options, path])


def mounts(runner: Runner, paths: Sequence[str]) -> tuple[Mounted, ...]:
    """Return where the device with one of these paths is mounted, in the order of mounting."""
    return tuple(
        Mounted(one["target"], tuple((one.get("options") or "").split(",")))
        for one in _mount_table(runner)
        # A subvolume of btrfs is named behind the device.
        if str(one.get("source") or "").partition("[")[0] in paths
    )


def mounted_at(runner: Runner, path: str) -> Optional[str]:
    """Return what is mounted exactly at a path, None when nothing is."""
    found = [str(one.get("source")) for one in _mount_table(runner) if one["target"] == path]
    return found[-1] if found else None


def _mount_table(runner: Runner) -> Sequence[Mapping[str, Any]]:
    done = runner.run(["findmnt", "--json", "--list", "--output", "TARGET,SOURCE,OPTIONS"])
    table: Sequence[Mapping[str, Any]] = json.loads(done.stdout)["filesystems"]
    return table


def mount(runner: Runner, device: str, kind: str, wanted: Mount) -> None:
    """Mount a device; the directory is made when it is not there."""
    os.makedirs(wanted.path, mode=0o755, exist_ok=True)
    options = ["--options", ",".join(wanted.options)] if wanted.options else []
    runner.run(["mount", "--types", kind, *options, device, wanted.path])


def remount(runner: Runner, device: str, wanted: Mount) -> None:
    """Give a mount its wanted options. Raises ``FdeError`` when the file system does not take them."""
    try:
        # Both device and path are named: mount(8) then looks for nothing in /etc/fstab.
        runner.run(["mount", "--options", ",".join(remounting(wanted.options)), device, wanted.path])
    except CommandError as error:
        raise FdeError(
            wanted.path, "its mount options cannot be changed: " + error.cause, "Unmount it first"
        ) from error
    now = [str(one.get("options") or "").split(",") for one in _mount_table(runner) if one["target"] == wanted.path]
    if left := differing(now[-1] if now else (), wanted.options):
        raise FdeError(wanted.path, f"it did not take the options {', '.join(left)}", "Unmount it first")


def unmount(runner: Runner, path: str) -> None:
    """Unmount a path. Raises ``FdeError`` when it is in use."""
    try:
        runner.run(["umount", path])
    except CommandError as error:
        raise FdeError(path, "it cannot be unmounted: " + error.cause, "End the programs that use it") from error
