# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Words on a disk that the host can write."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.esp import mounts_of
from ansible_collections.cvm.fde.plugins.module_utils.agent.refusals import words

SAID = {"code": "header-mismatch", "subject": "/dev/vda4", "cause": "it differs", "remedy": "Recover it"}


def test_what_was_written_is_read() -> None:
    assert words(json.dumps(SAID).encode()) == SAID
    assert words(json.dumps({**SAID, "more": 1}).encode()) == SAID


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b"\xff\xfe",
        json.dumps({**SAID, "code": 1}).encode(),
        json.dumps({**SAID, "cause": ["it"]}).encode(),
        json.dumps({**SAID, "cause": "\x1b[2Jit"}).encode(),
        json.dumps({**SAID, "remedy": "do\nthis"}).encode(),
    ],
)
def test_anything_else_says_nothing(content: bytes) -> None:
    assert words(content) is None


def test_a_partition_is_found_where_it_is_mounted(tmp_path: Path) -> None:
    number = os.stat("/dev/null").st_rdev
    device = f"{os.major(number)}:{os.minor(number)}"
    table = tmp_path / "mountinfo"
    table.write_text(
        "20 1 9:9 / / rw - ext4 /dev/x rw\n"
        f"21 1 {device} /sub /elsewhere rw - vfat /dev/null rw\n"
        f"22 1 {device} / /boot\\040efi ro,nosuid - vfat /dev/null ro\n"
    )
    assert list(mounts_of("/dev/null", table=table)) == [Path("/boot efi")]
    assert list(mounts_of("/dev/null", write=True, table=table)) == []
    assert list(mounts_of("/dev/null", beginning="/run/", table=table)) == []
