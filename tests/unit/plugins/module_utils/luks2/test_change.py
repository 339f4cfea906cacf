# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A header is changed on a copy, written in one order, read back, and repaired after a power cut at any block."""

from __future__ import annotations

import os
import stat

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import HeaderArea
from ansible_collections.cvm.fde.plugins.module_utils.luks2.change import BLOCK, draft, is_mixture, redo, store, writes
from ansible_collections.cvm.fde.plugins.module_utils.luks2.header import HeaderError

SIZE = 1 << 20


def _area(content: bytes, keyslots: bytes = b"k") -> HeaderArea:
    return HeaderArea("/dev/sdx", content.ljust(SIZE, keyslots))


@pytest.fixture(scope="module")
def old(forger):
    return _area(forger.genuine())


@pytest.fixture(scope="module")
def new(forger, old):
    """A header with other JSON and, in two places, other keyslots."""
    content = bytearray(forger.edited(lambda metadata: metadata["config"].update(flags=["x"])).ljust(SIZE, b"k"))
    content[600_000:610_000] = b"n" * 10_000
    content[900_000] ^= 1
    return HeaderArea("/dev/sdx", bytes(content))


@pytest.fixture
def disk(tmp_path, old):
    path = tmp_path / "disk"
    path.write_bytes(old.content + b"data")
    return path


def test_a_draft_is_a_private_copy_that_is_gone_afterwards(tmp_path, old):
    with draft(old, str(tmp_path)) as copy:
        with open(copy.path, "r+b") as file:
            assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
            assert file.read() == old.content
            file.seek(700_000)
            file.write(b"changed")
        changed = copy.area()
        assert (changed.device, len(changed.content)) == ("/dev/sdx", SIZE)
        assert changed.content[700_000:700_007] == b"changed"
    assert list(tmp_path.iterdir()) == []


def test_keyslots_are_written_before_the_second_header_and_that_before_the_first(forger, old, new):
    planned = writes(old, new)
    starts = [write.offset for write in planned]
    parts = [2 if start >= 2 * forger.size else 1 if start >= forger.size else 0 for start in starts]
    assert parts == sorted(parts, reverse=True)
    assert set(parts) == {0, 1, 2}


def test_only_blocks_that_differ_are_written(old, new):
    planned = writes(old, new)
    written = {at // BLOCK for write in planned for at in range(write.offset, write.offset + len(write.content), BLOCK)}
    differing = {
        at // BLOCK for at in range(0, SIZE, BLOCK) if old.content[at : at + BLOCK] != new.content[at : at + BLOCK]
    }
    assert written == differing
    assert all(write.offset % BLOCK == 0 for write in planned)
    assert writes(new, new) == []


def test_an_area_that_ends_inside_a_block_is_written_to_its_end(forger):
    size = 2 * forger.size + 100
    before = HeaderArea("disk", forger.genuine().ljust(size, b"k"))
    after = HeaderArea("disk", before.content[:-1] + b"n")
    (write,) = writes(before, after)
    assert (write.offset, len(write.content)) == (2 * forger.size, 100)


def test_a_header_that_is_not_sound_is_never_written(old, disk):
    broken = HeaderArea("/dev/sdx", b"\0" + old.content[1:])
    with pytest.raises(HeaderError):
        store(str(disk), old, broken)
    assert disk.read_bytes() == old.content + b"data"


def test_an_area_never_changes_its_size(old):
    with pytest.raises(ValueError, match="size"):
        writes(old, HeaderArea("/dev/sdx", old.content + b"more"))


def test_a_stored_header_is_on_the_disk_and_the_data_is_left_alone(old, new, disk):
    store(str(disk), old, new)
    assert disk.read_bytes() == new.content + b"data"


def test_a_header_that_changed_meanwhile_is_not_written_over(old, new, disk):
    changed = old.content[:-1] + b"!" + b"data"
    disk.write_bytes(changed)
    with pytest.raises(FdeError, match="Nothing was written"):
        store(str(disk), old, new)
    assert disk.read_bytes() == changed


def test_a_disk_that_does_not_keep_what_is_written_is_an_error(old, new, disk, monkeypatch):
    monkeypatch.setattr(os, "pwrite", lambda descriptor, content, offset: len(content))
    with pytest.raises(FdeError, match="reads back otherwise"):
        store(str(disk), old, new)


def test_a_disk_that_fails_tells_who_repairs_it(old, new, disk, monkeypatch):
    def fail(descriptor, content, offset):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(FdeError, match="Input/output error.*start the machine again.*saved copy"):
        store(str(disk), old, new)
    with pytest.raises(FdeError, match="Input/output error.*Run again$"):
        store(str(disk), old, new, remedy="Run again")


def test_a_device_that_is_gone_is_an_error_for_the_user(old, new, tmp_path):
    with pytest.raises(FdeError, match="cannot be read"):
        store(str(tmp_path / "absent"), old, new)


def test_writes_that_take_only_a_part_are_continued(old, new, disk, monkeypatch):
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, content, offset: whole(descriptor, content[:1000], offset))
    store(str(disk), old, new)
    assert disk.read_bytes() == new.content + b"data"


def test_after_a_power_cut_at_any_block_the_header_is_old_or_new_or_repaired_from_the_copy(old, new, disk):
    blocks = [
        (write.offset + at, write.content[at : at + BLOCK])
        for write in writes(old, new)
        for at in range(0, len(write.content), BLOCK)
    ]
    whole = {0: old.digest, len(blocks): new.digest}
    for cut in range(len(blocks) + 1):
        disk.write_bytes(old.content + b"data")
        with disk.open("r+b") as file:
            for offset, content in blocks[:cut]:
                file.seek(offset)
                file.write(content)
        torn = HeaderArea("/dev/sdx", disk.read_bytes()[:SIZE])
        assert torn.digest == whole.get(cut, torn.digest)
        assert (torn.digest in (old.digest, new.digest)) == (cut in whole)
        redo(str(disk), new)
        assert disk.read_bytes() == new.content + b"data"


def test_a_repair_does_not_depend_on_what_the_disk_says(new, disk):
    disk.write_bytes(bytes(range(256)) * (SIZE // 256) + b"data")
    redo(str(disk), new)
    assert disk.read_bytes() == new.content + b"data"


def test_a_mixture_has_the_size_of_both() -> None:
    old, new = bytes(2048), bytes(512) + bytes([1]) * 1024 + bytes(512)
    assert is_mixture(old, old, new) and is_mixture(new, old, new) and is_mixture(new[:1024] + old[1024:], old, new)
    assert not is_mixture(new[:1100] + old[1100:], old, new), "a sector is written as a whole"
    assert not is_mixture(old, b"", new) and not is_mixture(old[:-1], old, new) and not is_mixture(b"", old, new)
