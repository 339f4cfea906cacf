# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was measured is what systemd's log says, whatever its program's exit status is."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.measuring import digests, measure, measured
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.tests.unit.plugins.module_utils.agent.systemd_log import EVENT, KEY, sequence


def logged(pcr: int, word: str) -> bytes:
    """Return what systemd's log has of a word that was measured."""
    digest = hashlib.sha256(word.encode()).hexdigest()
    return sequence({**EVENT, "pcr": pcr, "digests": [{"hashAlg": "sha256", "digest": digest}]})


def test_the_measurements_of_pcr_15_are_found_in_their_order() -> None:
    phase = {**EVENT, "pcr": 11, "content": {"eventType": "phase", "string": "enter-initrd"}}
    other = {**EVENT, "digests": [{"hashAlg": "sha256", "digest": "ef" * 32}], "content": {"eventType": "machine-id"}}
    assert list(digests(sequence(phase, other, EVENT, phase), 15)) == [bytes.fromhex("ef" * 32), bytes.fromhex(KEY)]


@pytest.mark.parametrize(
    "event",
    [
        {**EVENT, "pcr": 14},
        {**EVENT, "pcr": "15"},
        {**EVENT, "digests": None},
        {**EVENT, "digests": [{"hashAlg": "sha1", "digest": KEY}]},
        {**EVENT, "digests": [{"hashAlg": "sha256"}]},
        {**EVENT, "digests": [{"hashAlg": "sha256", "digest": "zz"}]},
        {**EVENT, "digests": [{"hashAlg": "sha256", "digest": 7}]},
        {},
        [],
        None,
        15,
    ],
)
def test_nothing_else_counts(event: Any) -> None:
    assert list(digests(sequence(event), 15)) == []


@pytest.mark.parametrize(
    "log", [b"", b"\x1e", b"\xff\xfe", sequence(EVENT)[:-20], b"{}" * 1000, b"\x1e" + b"[" * 100_000]
)
def test_a_damaged_log_proves_nothing(log: bytes) -> None:
    assert list(digests(log, 15)) == []


#: What a program does to the log while it ends well: nothing, or it measures something else, or elsewhere.
SILENT = {
    "nothing": b"",
    "another word": logged(11, "another word"),
    "another PCR": logged(15, "a word"),
}


class Program:
    """Ends well, and leaves these bytes in the log."""

    def __init__(self, log: Path, leaves: bytes) -> None:
        self._log, self._leaves = log, leaves

    def run(self, argv: Any, **_options: Any) -> None:
        assert argv == ["systemd-pcrextend", "--pcr=11", "a word"]
        with self._log.open("ab") as log:
            log.write(self._leaves)


def test_a_word_is_measured_when_the_log_has_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    measure(Program(log, logged(11, "a word")), 11, "a word", str(log))
    assert len(measured(str(log), 11)) == 1


@pytest.mark.parametrize("leaves", SILENT)
def test_a_program_that_ends_well_and_measures_nothing_has_measured_nothing(tmp_path: Path, leaves: str) -> None:
    log = tmp_path / "log"
    with pytest.raises(FdeError, match="'a word' was not measured into it"):
        measure(Program(log, SILENT[leaves]), 11, "a word", str(log))


def test_an_earlier_measurement_of_the_word_does_not_count(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(logged(11, "a word"))
    with pytest.raises(FdeError):
        measure(Program(log, b""), 11, "a word", str(log))


def test_where_there_is_no_log_nothing_was_measured(tmp_path: Path) -> None:
    assert measured(str(tmp_path / "log"), 15) == []
