# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The EFI system partition of a sealed image: one FAT32 file system with one file."""

from __future__ import annotations

import os

from ..boot.tools import File, Tools
from ..luks2.profile import LAYOUT

LABEL = "ESP"
#: Fewer clusters make a FAT16 for firmware, whatever the file system says of itself (FAT specification 1.03, 3.5).
CLUSTERS = 65525
#: What the two tables and the directories take at most, and beside the kernel image the copy of a LUKS2 header that the
#: boot agent keeps there while the header is changed.
OVERHEAD = (4 << 20) + LAYOUT.offset


def min_size(sector_size: int) -> int:
    """Return the least size in bytes of a FAT32 on sectors of that size: no cluster is smaller than one."""
    # An entry of each of two tables belongs to every cluster; 32 reserved sectors are what mkfs.vfat takes.
    return max(64 << 20, CLUSTERS * (sector_size + 2 * 4) + 40 * sector_size)


def make_esp(
    tools: Tools, target: str, size: int, volume_id: int, file: str, path: str, now: int, sector_size: int = 512
) -> None:
    """Make a file system of ``size`` bytes in the file ``target`` with one file at ``path``; its times are ``now``.

    Its sectors are those of the disk: neither firmware nor kernel reads smaller ones.
    """
    with open(target, "wb") as image:
        image.truncate(size)
    env = {"SOURCE_DATE_EPOCH": str(now)}
    image_file = File(target, writable=True)
    form = ["-F", "32", "-S", str(sector_size), "-n", LABEL, "-i", f"{volume_id:08x}"]
    tools.run(["mkfs.vfat", "--invariant", *form, image_file], env=env)
    parents = path.strip("/").split("/")[:-1]
    for depth in range(len(parents)):
        tools.run(["mmd", "-i", image_file, f"::/{'/'.join(parents[: depth + 1])}"], env=env)
    os.utime(file, (now, now))
    tools.run(["mcopy", "-m", "-i", image_file, File(file), f"::{path}"], env=env)


def read_from_esp(tools: Tools, disk: str, offset: int, path: str, target: str) -> bool:
    """Copy a file out of the ESP at byte ``offset`` of a disk; tell whether it was there."""
    destination = File(target, writable=True)
    done = tools.run(["mcopy", "-n", "-i", File(disk, suffix=f"@@{offset}"), f"::{path}", destination], ok=())
    return done.status == 0 and os.path.isfile(target)
