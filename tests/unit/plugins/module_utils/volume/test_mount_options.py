# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a mount is as it is wanted, by what the kernel shows of it."""

from __future__ import annotations

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.volume.mount_options import differing, remounting


@pytest.mark.parametrize(
    ("shown", "wanted", "expected"),
    [
        ("rw,relatime", "", ""),
        ("rw,relatime,stripe=8", "defaults", ""),
        ("rw,relatime", "rw,atime,suid,dev,exec,async", ""),
        ("rw,relatime", "ro,noexec", "ro noexec"),
        ("ro,nosuid,nodev,noexec,noatime", "", "rw suid dev exec relatime"),
        ("ro,relatime", "rw,ro", ""),
        ("ro,relatime", "ro,defaults", ""),
        ("rw", "strictatime", ""),
        ("rw", "", "relatime"),
        ("rw,relatime,sync", "", "async"),
        ("rw,relatime", "nofail,x-systemd.growfs,_netdev,user_xattr,discard", ""),
        ("rw,relatime,compress=zstd:3,subvol=/", "compress=zstd", ""),
        ("rw,relatime,compress=zstd:3", "compress=lzo", "compress=lzo"),
        ("rw,relatime,commit=30", "commit=60", "commit=60"),
        # The kernel does not show what it takes for granted.
        ("rw,relatime", "commit=60", ""),
    ],
)
def test_flags_and_shown_values_are_compared(shown: str, wanted: str, expected: str) -> None:
    found = differing(tuple(shown.split(",")), tuple(word for word in wanted.split(",") if word))
    assert " ".join(found) == expected


def test_a_remount_names_every_flag_and_what_mount_itself_is_not_told() -> None:
    options = ("ro", "noatime", "commit=60", "nofail", "x-systemd.automount", "defaults")
    assert remounting(options) == (
        *("remount", "ro", "suid", "dev", "exec", "async", "symfollow", "diratime", "noatime", "commit=60"),
    )
