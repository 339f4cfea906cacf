# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table and the picture of the volume benchmark say what was measured."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from ansible_collections.cvm.fde.tests.bench.volume_chart import picture, ratio, table

MIB = 1 << 20
RESULTS = {
    "raw": {
        "random write, 4 KiB, sync": {"bytes_per_second": 8.0 * MIB},
        "sequential read, 1 MiB": {"bytes_per_second": 200.0 * MIB},
    },
    "HMAC <journal>": {
        "random write, 4 KiB, sync": {"bytes_per_second": 2.0 * MIB},
        "sequential read, 1 MiB": {"bytes_per_second": 150.0 * MIB},
    },
}


def test_a_ratio_is_a_part_of_the_raw_devices_throughput() -> None:
    assert ratio(RESULTS, "HMAC <journal>", "sequential read, 1 MiB") == 0.75


def test_a_device_on_which_nothing_moved_makes_no_ratio_infinite() -> None:
    still = {"raw": {"x": {"bytes_per_second": 0.0}}, "y": {"x": {"bytes_per_second": 1.0}}}
    assert ratio(still, "y", "x") == 0.0


def test_the_table_has_a_row_for_each_stack_and_reads_before_writes() -> None:
    lines = table(RESULTS).splitlines()
    assert lines[0].split() == ["read", "write,", "sync"]
    assert [line.split() for line in lines[1:]] == [
        ["seq", "1M", "rand", "4K"],
        ["raw", "200", "MB", "8", "MB"],
        ["HMAC", "<journal>", "75%", "25%"],
    ]


def test_the_picture_has_the_numbers_of_the_table() -> None:
    drawn = ElementTree.fromstring(picture(RESULTS, "A & B"))
    words = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert words[0] == "A & B"
    assert {"75%", "25%", "HMAC <journal>"} <= set(words)


@pytest.mark.parametrize("part", [0.0, 0.5, 1.0, 3.0])
def test_every_shade_is_a_colour(part: float) -> None:
    results = {
        "raw": {"random read, 4 KiB": {"bytes_per_second": 1.0}},
        "x": {"random read, 4 KiB": {"bytes_per_second": part}},
    }
    colours = [each.get("fill", "") for each in ElementTree.fromstring(picture(results, "")).iter()]
    shades = [int(n) for colour in colours if colour.startswith("rgb(") for n in colour[4:-1].split(",")]
    assert len(shades) == 3 and all(0 <= shade <= 255 for shade in shades)
