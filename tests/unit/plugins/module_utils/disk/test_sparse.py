# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sparse copies hold the same bytes, keep their holes, and digests do not depend on where holes are."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.disk import sparse

CHUNK = sparse.CHUNK


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    with path.open("wb") as out:
        out.truncate(20 * CHUNK + 123)
        for position in (0, 5 * CHUNK + 77, 20 * CHUNK + 100):
            out.seek(position)
            out.write(random.Random(position).randbytes(23))
    return path


def test_a_copy_has_the_same_bytes_at_its_offset_and_keeps_holes(file: Path, tmp_path: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as source, (tmp_path / "copy").open("w+b") as target:
        target.truncate(4096 + size)
        copied = sparse.copy(source.fileno(), 0, size, target.fileno(), 4096)
        assert copied == sparse.read_content(target.fileno(), 4096, size)
        assert copied.stored == 2 * CHUNK + 123
        assert os.stat(target.fileno()).st_blocks * 512 < 6 * CHUNK
    assert (tmp_path / "copy").read_bytes()[4096:] == file.read_bytes()


def test_written_zeros_and_holes_digest_the_same(file: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.write_bytes(file.read_bytes())
    size = full.stat().st_size
    with file.open("rb") as holes, full.open("rb") as zeros:
        assert sparse.read_content(holes.fileno(), 0, size) == sparse.read_content(zeros.fileno(), 0, size)


def test_moving_data_or_adding_zeros_changes_the_digest(tmp_path: Path) -> None:
    digests = set()
    for number, content in enumerate(
        (b"a" + bytes(2 * CHUNK), bytes(CHUNK) + b"a" + bytes(CHUNK), b"a" + bytes(CHUNK))
    ):
        path = tmp_path / str(number)
        path.write_bytes(content)
        with path.open("rb") as opened:
            digests.add(sparse.read_content(opened.fileno(), 0, len(content)).digest)
    assert len(digests) == 3


def test_a_truncated_file_is_noticed(file: Path) -> None:
    with file.open("rb") as source, pytest.raises(EOFError):
        sparse.read_content(source.fileno(), 0, file.stat().st_size + 1)


def test_overwriting_leaves_nothing_of_what_was_there(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "device"
    size = file.stat().st_size
    target.write_bytes(b"\xff" * size)
    with file.open("rb") as source, target.open("r+b") as device:
        sparse.overwrite(source.fileno(), size, device.fileno())
    assert target.read_bytes() == file.read_bytes()
