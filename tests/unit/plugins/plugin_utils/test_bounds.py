# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a stranger's answer may cost: time and memory are bounded, and the process is as before afterwards."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import Iterator

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError
from ansible_collections.cvm.fde.plugins.plugin_utils.asking import ANSWER_LIMIT, read_result
from ansible_collections.cvm.fde.plugins.plugin_utils.bounds import Late, memory_limit, time_limit

MIB = 1 << 20
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts private memory")


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """Every test leaves limits, handler and timer as they were."""
    before = resource.getrlimit(resource.RLIMIT_DATA), signal.getsignal(signal.SIGALRM)
    yield
    assert (resource.getrlimit(resource.RLIMIT_DATA), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_waiting_ends_when_the_time_is_over() -> None:
    with pytest.raises(Late), time_limit(0.1):
        signal.pause()


def test_no_time_left_is_over_at_once() -> None:
    with pytest.raises(Late), time_limit(-1):
        raise AssertionError("nothing may happen any more")


def test_handlers_of_errors_do_not_swallow_the_end_of_time() -> None:
    with pytest.raises(Late), time_limit(0.05):
        try:
            signal.pause()
        except Exception:  # as connection plugins do before they try again
            signal.pause()


class Own(BaseException):
    """What a task's own time limit raises."""


@contextmanager
def own_limit(seconds: float) -> Iterator[None]:
    def own(_signal: int, _frame: object) -> None:
        raise Own

    handler = signal.signal(signal.SIGALRM, own)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def test_a_task_s_own_shorter_time_limit_counts() -> None:
    with pytest.raises(Own), own_limit(0.05), time_limit(60):
        signal.pause()


def test_a_task_s_own_longer_time_limit_goes_on() -> None:
    with own_limit(3600):
        with pytest.raises(Late), time_limit(0.05):
            signal.pause()
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] < 3600
        with pytest.raises(Own):
            signal.raise_signal(signal.SIGALRM)


@linux_only
def test_memory_is_refused_beyond_the_limit_and_given_back_after() -> None:
    # More than what the tests before may have left free in the heap, which is not refused.
    with pytest.raises(MemoryError), memory_limit(16 * MIB):
        _held = [bytearray(64 * MIB) for _piece in range(64)]
    assert len(bytearray(64 * MIB)) == 64 * MIB


@linux_only
def test_a_flood_of_small_things_is_refused_as_well() -> None:
    with pytest.raises(MemoryError), memory_limit(16 * MIB):
        found: list[object] = []
        while True:
            found.append([])


@linux_only
def test_what_a_program_prints_counts() -> None:
    with pytest.raises(MemoryError), memory_limit(16 * MIB):
        subprocess.run(["head", "--bytes=2G", "/dev/zero"], capture_output=True, check=True)


def test_a_result_is_found_after_what_a_profile_printed() -> None:
    assert read_result('welcome\n{"answer": {"a": 1}, "changed": false}\n') == {"answer": {"a": 1}}


def test_only_what_an_answer_has_is_taken_from_a_result() -> None:
    assert read_result('{"ansible_facts": {}, "warnings": ["x"], "exception": "y", "stdout": 5}') == {}


@pytest.mark.parametrize(
    "printed",
    [
        '{"answer": 1} \x1b[2J',
        '{"answer": 1}\n{"answer": 2}',
        '{"answer": 1, "answer": 2}',
        '{"answer": ' + "[" * 200_000,
        '{"answer": ' + "[" * 20 + "]" * 20 + "}",
        '{"answer": ' + "9" * 100_000 + "}",
        '{"answer": NaN}',
        '{"answer": "\ud800"}',
        '{"answer": "\udc80"}',
        '{"answer": "' + "A" * ANSWER_LIMIT + '"}',
    ],
)
def test_a_result_that_two_readers_could_take_differently_is_refused(printed: str) -> None:
    with pytest.raises(AppraisalError) as refused:
        read_result(printed)
    assert "\x1b" not in refused.value.reason
    assert len(refused.value.reason) < 200


def test_no_result_is_a_failure_with_the_end_of_the_complaint() -> None:
    found = read_result("not JSON", "x" * 10_000 + "python3: not found")
    assert found["failed"] is True
    assert found["msg"].endswith("python3: not found")
    assert len(found["msg"]) < 400
