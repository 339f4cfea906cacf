# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find out whether a disk or an image file is in use by this machine."""

from __future__ import annotations

import os
import stat
from typing import Optional


def use_of(
    path: str, sys: str = "/sys", mountinfo: str = "/proc/self/mountinfo", swaps: str = "/proc/swaps"
) -> Optional[str]:
    """Say how a block device (its partitions too) or a file is in use, None when it is not.

    A file counts as used as soon as a loop device is attached to it, because its content may change at any time.
    """
    real = os.path.realpath(path)
    for name in sorted(_names(os.path.join(sys, "block"))):
        backing = _text(os.path.join(sys, "block", name, "loop", "backing_file"))
        if backing and os.path.realpath(backing) == real:
            return f"loop device /dev/{name} is attached to it"
    return _device_use(path, sys, mountinfo, swaps) if stat.S_ISBLK(os.stat(path).st_mode) else None


def _device_use(path: str, sys: str, mountinfo: str, swaps: str) -> Optional[str]:
    number = os.stat(path).st_rdev
    root = os.path.realpath(os.path.join(sys, "dev", "block", f"{os.major(number)}:{os.minor(number)}"))
    family = [root] + [os.path.join(root, name) for name in sorted(_names(root)) if _is_partition(root, name)]
    numbers = {_text(os.path.join(member, "dev")): os.path.basename(member) for member in family}
    for line in _text(mountinfo).splitlines():
        fields = line.split()
        if len(fields) > 4 and fields[2] in numbers:
            return f"/dev/{numbers[fields[2]]} is mounted at {fields[4]}"
    for member in family:
        for holder in sorted(_names(os.path.join(member, "holders"))):
            return f"/dev/{holder} is set up on it"
    used = {os.path.realpath(line.split()[0]) for line in _text(swaps).splitlines()[1:] if line.split()}
    for member in family:
        if f"/dev/{os.path.basename(member)}" in used:
            return f"/dev/{os.path.basename(member)} is used for swap"
    return None


def _is_partition(root: str, name: str) -> bool:
    return os.path.exists(os.path.join(root, name, "partition"))


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
