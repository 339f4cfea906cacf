# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Partition tables: what we write others read, and nothing hostile is believed."""

from __future__ import annotations

import contextlib
import io
import shutil
import struct
import subprocess
import uuid
import zlib
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.disk import gpt
from hypothesis import given, settings
from hypothesis import strategies as st

MIB = gpt.MIB
SIZE = 8 * MIB
DISK = uuid.UUID("11111111-2222-4333-8444-555555555555")
ESP = gpt.Partition(1, gpt.ESP, uuid.uuid5(DISK, "esp"), MIB, MIB, name="esp")
ROOT = gpt.Partition(2, gpt.ROOT_X86_64, uuid.uuid5(DISK, "root"), 2 * MIB, 3 * MIB, gpt.READ_ONLY, "root")


def image(*partitions: gpt.Partition, sector: int = 512, size: int = SIZE) -> bytearray:
    disk = bytearray(size)
    for offset, data in gpt.encode_table(gpt.new_table(DISK, size, partitions, sector)):
        disk[offset : offset + len(data)] = data
    return disk


def read(disk: bytes) -> gpt.Table:
    return gpt.read_table(io.BytesIO(disk), len(disk), "disk")


def with_header(disk: bytearray, lba: int, field: int, form: str, value: int, sector: int = 512) -> bytearray:
    """Change a field of a header and make its checksum right again."""
    start = lba * sector
    struct.pack_into(form, disk, start + field, value)
    disk[start + 16 : start + 20] = bytes(4)
    struct.pack_into("<I", disk, start + 16, zlib.crc32(disk[start : start + 92]))
    return disk


@pytest.mark.parametrize("sector", [512, 4096])
def test_a_table_reads_back_as_it_was_written(sector: int) -> None:
    table = read(image(ESP, ROOT, sector=sector))
    assert table == gpt.new_table(DISK, SIZE, (ESP, ROOT), sector)
    assert table.partitions == (ESP, ROOT)
    assert table.of_type(gpt.ROOT_X86_64) == (ROOT,)


@pytest.mark.skipif(shutil.which("sfdisk", path="/usr/sbin:/sbin:/usr/bin") is None, reason="sfdisk is not installed")
def test_sfdisk_agrees_with_what_we_write_and_we_with_what_it_writes(tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    ours.write_bytes(image(ESP, ROOT))
    dump = subprocess.run(["/usr/sbin/sfdisk", "-d", str(ours)], check=True, capture_output=True, text=True).stdout
    assert f"uuid={str(ROOT.id).upper()}" in dump
    assert 'name="root", attrs="GUID:60"' in dump
    theirs = tmp_path / "theirs"
    with theirs.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["/usr/sbin/sfdisk", "-q", str(theirs)], input=dump.encode(), check=True)
    assert read(theirs.read_bytes()).partitions == (ESP, ROOT)


def test_a_disk_that_grew_keeps_its_table() -> None:
    assert read(bytes(image(ESP, ROOT)) + bytes(MIB)).partitions == (ESP, ROOT)


@pytest.mark.parametrize(
    ("offset", "what"),
    [
        (510, "protective MBR"),
        (446 + 4, "plain protective"),
        (446 + 16 + 4, "plain protective"),
        (512 + 8, "not one"),
        (512 + 40, "checksum"),
        (1024 + 56, "checksum of the partition entries"),
        (SIZE - 512 + 40, "checksum"),
        (SIZE - 512 - 128 * 128 + 3, "checksum of the partition entries"),
    ],
)
def test_one_changed_byte_in_either_copy_is_refused(offset: int, what: str) -> None:
    disk = image(ESP, ROOT)
    disk[offset] ^= 0x01
    with pytest.raises(gpt.GptError, match=what):
        read(disk)


@pytest.mark.parametrize(
    ("field", "form", "value"),
    [
        (24, "<Q", 2),  # its own place
        (32, "<Q", 1 << 62),  # the other header, outside the disk
        (32, "<Q", 40),  # the other header, inside the usable area
        (40, "<Q", 0),
        (48, "<Q", 1 << 63),
        (72, "<Q", 1 << 40),  # the entries
        (72, "<Q", 5000),
        (80, "<I", 0xFFFFFFFF),
        (80, "<I", 0),
        (84, "<I", 0),
        (84, "<I", 127),
        (12, "<I", 4096),
    ],
)
def test_an_impossible_header_with_a_right_checksum_is_refused(field: int, form: str, value: int) -> None:
    with pytest.raises(gpt.GptError):
        read(with_header(image(ESP, ROOT), 1, field, form, value))


def test_two_valid_copies_that_differ_are_refused() -> None:
    disk = image(ESP, ROOT)
    other = image(ESP)
    disk[SIZE // 2 :] = other[SIZE // 2 :]
    with pytest.raises(gpt.GptError, match="differ"):
        read(disk)


def forged(*partitions: gpt.Partition) -> bytearray:
    """Encode a table that ``new_table`` would refuse."""
    honest = gpt.new_table(DISK, SIZE, ())
    table = gpt.Table(DISK, 512, honest.first_usable, honest.end_usable, honest.backup_offset, partitions)
    disk = bytearray(SIZE)
    for offset, data in gpt.encode_table(table):
        disk[offset : offset + len(data)] = data
    return disk


@pytest.mark.parametrize(
    ("partition", "what"),
    [
        (gpt.Partition(2, gpt.FDE, uuid.uuid4(), MIB + 512, 512), "overlap"),
        (gpt.Partition(2, gpt.FDE, ESP.id, 4 * MIB, MIB), "same unique id"),
        (gpt.Partition(2, gpt.FDE, uuid.uuid4(), 512, 512), "outside"),
        (gpt.Partition(2, gpt.FDE, uuid.uuid4(), 7 * MIB, MIB), "outside"),
        (gpt.Partition(2, gpt.FDE, uuid.uuid4(), 4 * MIB, 0), "outside"),
    ],
)
def test_partitions_that_cannot_be_are_refused(partition: gpt.Partition, what: str) -> None:
    with pytest.raises(gpt.GptError, match=what):
        read(forged(ESP, partition))
    with pytest.raises(ValueError, match="partition"):
        gpt.new_table(DISK, SIZE, (ESP, partition))


@pytest.mark.parametrize("content", [b"", b"\0" * 512, b"\0" * SIZE, b"\0" * 512 + b"EFI PART"])
def test_a_disk_without_a_table_is_refused(content: bytes) -> None:
    with pytest.raises(gpt.GptError):
        read(content)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(446, 2048), st.integers(0, 255)), max_size=6),
    st.integers(0, 3 * MIB) | st.none(),
    st.booleans(),
)
def test_no_damage_does_anything_but_raise_its_own_error(
    edits: list[tuple[int, int]], cut: int | None, mend: bool
) -> None:
    disk = image(ESP, ROOT, size=3 * MIB + 5 * MIB)
    for offset, value in edits:
        disk[offset] = value
    if mend:
        with_header(disk, 1, 8, "<I", gpt.REVISION)
    try:
        table = read(disk[:cut])
    except gpt.GptError:
        return
    assert all(partition.end <= table.end_usable for partition in table.partitions)


def live(disk: bytes) -> gpt.Table:
    return gpt.read_live_table(io.BytesIO(disk), len(disk), "disk")


def test_a_disk_in_use_is_read_whatever_moment_of_writing_its_table_the_power_was_cut_at() -> None:
    """In the order of UEFI: second entries, second header, first entries, first header."""
    before, after = image(ESP), image(ESP, ROOT)
    end = len(before) - 33 * 512
    for place in (slice(end, -512), slice(-512, None), slice(1024, 34 * 512), slice(0, 1024)):
        before[place] = after[place]
        assert live(before).partitions in ((ESP,), (ESP, ROOT))
    assert live(before) == live(after) == read(after)


def test_of_two_valid_copies_the_first_counts_and_of_a_damaged_and_a_valid_one_the_valid_one() -> None:
    old, new = image(ESP), image(ESP, ROOT)
    mixed = old[: 34 * 512] + new[34 * 512 :]
    assert live(mixed).partitions == (ESP,)
    mixed[512 + 60] ^= 1
    assert live(mixed) == read(new)
    new[-512 + 60] ^= 1
    assert live(new).partitions == (ESP, ROOT)
    new[512 + 60] ^= 1
    with pytest.raises(gpt.GptError):
        live(new)


def test_a_valid_first_copy_that_is_not_acceptable_does_not_hide_behind_the_second() -> None:
    # The kernel uses the first one: it would see a partition that we do not.
    disk = forged(ESP, gpt.Partition(2, gpt.FDE, ESP.id, 4 * MIB, MIB))
    disk[34 * 512 :] = image(ESP)[34 * 512 :]
    with pytest.raises(gpt.GptError, match="same unique id"):
        live(disk)


@given(st.binary(max_size=64), st.integers(0, SIZE - 64))
@settings(max_examples=50)
def test_no_damage_of_a_disk_in_use_does_anything_but_raise_its_own_error(content: bytes, place: int) -> None:
    disk = image(ESP, ROOT)
    disk[place : place + len(content)] = content
    with contextlib.suppress(gpt.GptError):
        assert live(disk).partitions
