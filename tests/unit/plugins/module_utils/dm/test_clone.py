# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a cloned root is cut, and how its progress is read."""

from __future__ import annotations

import contextlib
import math

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.dm.clone import (
    REGION,
    Mode,
    Status,
    metadata_sectors,
    parse_status,
    slices,
    tuning,
)
from ansible_collections.cvm.fde.plugins.module_utils.dm.queue import Queue, queue_of, refuse_discards
from ansible_collections.cvm.fde.plugins.module_utils.dm.table import SECTOR, TableError
from ansible_collections.cvm.fde.plugins.module_utils.dm.written import SLICE
from ansible_collections.cvm.fde.plugins.module_utils.errors import Refusal
from hypothesis import given
from hypothesis import strategies as st

GIBIBYTE = 1 << 21
STATUS = "8 34/1024 128 20/768 3 2 no_hydration no_discard_passdown 4 hydration_threshold 64 hydration_batch_size 16 rw"


def test_progress_is_read():
    assert parse_status(STATUS) == Status(20, 768, 3, 128, False, 64, 16, Mode.READ_WRITE, 34, 1024)


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("8 34/1024 128 768/768 0 0 0 rw", True),
        ("8 34/1024 128 768/768 1 0 0 rw", False),
        ("8 34/1024 128 767/768 0 0 0 rw", False),
        ("8 34/1024 128 768/768 0 0 0 ro", True),
        ("Fail", False),
    ],
)
def test_only_a_clone_that_needs_its_source_no_more_is_complete(text, complete):
    assert parse_status(text).complete is complete


def test_a_failed_clone_and_its_defaults_are_read():
    assert parse_status("Fail").mode is Mode.FAILED
    state = parse_status("8 34/1024 128 0/768 0 0 0 ro")
    assert (state.mode, state.background, state.threshold, state.batch) == (Mode.READ_ONLY, True, 1, 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Error",
        "8 34 128 20/768 3 0 0 rw",
        "8 34/1024 128 20/768 3 9 x 0 rw",
        "8 34/1024 128 20/768 3 0 0",
        "x " * 9,
    ],
)
def test_what_is_no_status_is_refused(text):
    with pytest.raises(TableError):
        parse_status(text)


@given(st.text(alphabet="0123456789/ rowFail_hydtn", max_size=60))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(TableError):
        parse_status(text)


@pytest.mark.parametrize(
    ("size", "mebibytes"), [(GIBIBYTE // 16, 4), (30 * GIBIBYTE, 4), (1024 * GIBIBYTE, 5), (16384 * GIBIBYTE, 69)]
)
def test_the_record_of_what_is_copied_is_small(size, mebibytes):
    assert metadata_sectors(size) == mebibytes * 2048


@given(size=st.integers(1 << 18, 1 << 40))
def test_the_record_has_room_for_two_of_itself(size):
    blocks = metadata_sectors(size) // 8
    leaves = math.ceil(math.ceil(size / 128) / 32576)
    assert blocks > 2 * leaves + 16


@given(size=st.integers(1 << 18, 1 << 40), share=st.floats(0.01, 0.9))
def test_the_parts_of_a_volume_do_not_overlap(size, share):
    source = int(size * share) // 8 * 8 or 8
    cut = slices(size, source)
    assert source <= cut.destination
    assert cut.metadata == metadata_sectors(source, tuning(source).region), (
        "the host can shrink the device, not the image"
    )
    assert cut.destination % 8 == 0
    assert cut.start == cut.metadata + SLICE and cut.start + cut.destination <= size


@pytest.mark.parametrize("source", [0, GIBIBYTE, GIBIBYTE - 100])
def test_a_volume_that_an_image_does_not_fit_into_any_more_has_shrunk(source):
    with pytest.raises(Refusal) as caught:
        slices(GIBIBYTE, source)
    assert caught.value.code == "device-shrunk"


@pytest.mark.parametrize(
    ("gibibytes", "region", "threshold", "batch"),
    [(1, 128, 64, 16), (64, 128, 64, 16), (65, 256, 32, 8), (1024, 2048, 4, 1), (16384, 2048, 4, 1)],
)
def test_how_a_root_is_copied_follows_from_its_size(gibibytes, region, threshold, batch):
    how = tuning(gibibytes * GIBIBYTE)
    assert (how.region, how.threshold, how.batch) == (region, threshold, batch)


@given(st.integers(min_value=1, max_value=1 << 44))
def test_every_region_is_one_that_the_kernel_takes_and_a_request_never_exceeds_what_may_be_under_way(source):
    how = tuning(source)
    assert how.region & (how.region - 1) == 0 and 8 <= how.region <= 1 << 21
    assert 1 <= how.batch <= how.threshold
    assert how.region == 2048 or -(-source // how.region) <= 1 << 20


KIB = 1024
MIB = 1024 * KIB


@pytest.mark.parametrize(
    ("rotational", "optimal", "request_kib", "requests"),
    [
        (False, 0, 1024, 4),
        (False, 512, 1024, 4),
        (False, 4 * KIB, 1024, 4),
        (False, 64 * KIB, 1024, 4),
        (False, 256 * KIB, 1024, 4),
        (False, 384 * KIB, 1152, 4),
        (False, 1536 * KIB, 1536, 4),
        (False, 3 * MIB, 3072, 4),
        (False, 4 * MIB, 4096, 4),
        # What is no multiple of a region, or too much at once, is passed over.
        (False, 96 * KIB, 1024, 4),
        (False, 8 * MIB, 1024, 4),
        (False, 1 << 40, 1024, 4),
        (True, 0, 4096, 1),
        (True, 256 * KIB, 4096, 1),
        (True, 1536 * KIB, 3072, 1),
        (True, 3 * MIB, 3072, 1),
    ],
)
def test_how_much_is_under_way_depends_on_the_disk(rotational, optimal, request_kib, requests):
    how = tuning(10 * GIBIBYTE, Queue(rotational, optimal))
    assert (how.region, how.batch * 64, how.threshold) == (REGION, request_kib, how.batch * requests)


@pytest.mark.parametrize("gibibytes", [1, 100, 1000, 5000])
@pytest.mark.parametrize("queue", [Queue(), Queue(True, 0), Queue(False, 1536 * KIB), Queue(True, MIB)])
def test_the_format_does_not_depend_on_the_disk(gibibytes, queue):
    how = tuning(gibibytes * GIBIBYTE, queue)
    assert how.region == tuning(gibibytes * GIBIBYTE).region
    assert 1 <= how.batch <= how.threshold and how.batch * how.region * SECTOR <= 4 * MIB


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"rotational": "1\n", "optimal_io_size": "1572864\n"}, Queue(True, 1572864)),
        ({"rotational": "0\n", "optimal_io_size": "0\n"}, Queue()),
        ({"rotational": "yes\n", "optimal_io_size": "-1\n"}, Queue()),
        ({}, Queue()),
    ],
)
def test_what_the_kernel_knows_of_a_disk_is_read(tmp_path, files, expected):
    directory = tmp_path / "block/dm-3/queue"
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name).write_text(text)
    assert queue_of(3, tmp_path) == expected


@pytest.mark.parametrize(("before", "after"), [("4294966784\n", "0"), ("0\n", "0\n")])
def test_discards_are_refused_where_there_are_any(tmp_path, before, after):
    maximum = tmp_path / "block" / "dm-3" / "queue" / "discard_max_bytes"
    maximum.parent.mkdir(parents=True)
    maximum.write_text(before)
    refuse_discards(3, tmp_path)
    assert maximum.read_text() == after
