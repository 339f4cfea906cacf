# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Logs of real machines beside what was quoted, and what becomes of them when somebody edits one."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path
from typing import Any, Iterator

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal import event_log, secure_boot
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import AppraisalError
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.event_log import FirmwareLog
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.replay import replay, unexplained
from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.appraisal.captured import SAMPLES
from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.appraisal.test_logs import BROKEN, REPLAYING

EV_NO_ACTION, EV_EFI_ACTION = 3, 0x80000007


def read(raw: bytes) -> FirmwareLog:
    found = event_log.parse(raw)
    assert found is not None
    return found


@pytest.mark.parametrize(("name", "left"), [("guard-good", ()), ("guard-failed", (0,))])
def test_both_quotes_are_genuine_and_one_of_the_logs_does_not_lead_to_pcr_0(
    vectors: Path, name: str, left: tuple[int, ...]
) -> None:
    sample = SAMPLES[name](vectors)
    quoted = sample.verify().values["sha256"]
    assert sorted(quoted) == list(range(9))
    assert unexplained(replay(read(sample.log), None, "sha256").values, quoted) == left


# --- the logs in pieces


class Pieces:
    """A log as its events' own bytes, so that one can be taken out or changed."""

    def __init__(self, raw: bytes) -> None:
        self.whole = raw
        (size,) = struct.unpack_from("<I", raw, 28)
        first = raw[: 32 + size]
        if first[32:].startswith(b"Spec ID Event03\0"):
            (count,) = struct.unpack_from("<I", first, 56)
            self.sizes = dict(struct.unpack_from("<HH", first, 60 + 4 * place) for place in range(count))
        else:
            self.sizes = {}
        self.head = first if self.sizes else b""
        self.events = list(self._split(len(self.head)))
        assert self.head + b"".join(self.events) == raw

    def _split(self, start: int) -> Iterator[bytes]:
        while start < len(self.whole):
            end = (
                start
                + self.payload(self.whole, start)
                + struct.unpack_from("<I", self.whole, start + self.payload(self.whole, start) - 4)[0]
            )
            yield self.whole[start:end]
            start = end

    def payload(self, raw: bytes, start: int = 0) -> int:
        """Return where an event's payload begins, from the event's own beginning."""
        if not self.sizes:
            return 32
        place = start + 12
        for _digest in self.sizes:
            (algorithm,) = struct.unpack_from("<H", raw, place)
            place += 2 + self.sizes[algorithm]
        return place + 4 - start

    def without(self, number: int) -> bytes:
        return self.head + b"".join(self.events[:number] + self.events[number + 1 :])

    def changed(self, number: int, place: int) -> bytes:
        """Return the log with one bit of one byte of an event turned over."""
        event = bytearray(self.events[number])
        event[place] ^= 1
        return self.head + b"".join([*self.events[:number], bytes(event), *self.events[number + 1 :]])

    def extending(self) -> Iterator[tuple[int, int]]:
        """Yield number and PCR of each event that extends one."""
        for number, event in enumerate(self.events):
            pcr, kind = struct.unpack_from("<II", event)
            if kind != EV_NO_ACTION:
                yield number, pcr


def captured(vectors: Path, name: str) -> bytes:
    return SAMPLES[name](vectors).log if name in SAMPLES else (vectors / "eventlogs" / name).read_bytes()


@pytest.fixture(params=[*REPLAYING, "guard-good"])
def pieces(request: Any, vectors: Path) -> Pieces:
    return Pieces(captured(vectors, request.param))


def quoted(pieces: Pieces) -> tuple[str, dict[int, bytes]]:
    """Return a bank, and what a TPM quoted that went through this log."""
    log = read(pieces.whole)
    return log.banks[-1], dict(replay(log, None, log.banks[-1]).values)


def test_a_log_without_one_of_its_events_leaves_that_pcr_unexplained(pieces: Pieces) -> None:
    bank, values = quoted(pieces)
    for number, pcr in pieces.extending():
        log = event_log.parse(pieces.without(number))
        assert log is not None
        assert unexplained(replay(log, None, bank).values, values) == (pcr,), number


def test_a_log_with_an_event_twice_leaves_that_pcr_unexplained_or_is_refused(pieces: Pieces) -> None:
    bank, values = quoted(pieces)
    for number, pcr in pieces.extending():
        again = pieces.head + b"".join([*pieces.events[: number + 1], *pieces.events[number:]])
        try:
            log = read(again)
        except AppraisalError as error:
            assert error.code == "second-separator"
        else:
            assert unexplained(replay(log, None, bank).values, values) == (pcr,), number


def test_a_digest_that_was_changed_leaves_that_pcr_unexplained(pieces: Pieces) -> None:
    bank, values = quoted(pieces)
    for number, pcr in pieces.extending():
        last_digest = pieces.payload(pieces.events[number]) - 5
        log = read(pieces.changed(number, last_digest))
        assert unexplained(replay(log, None, bank).values, values) == (pcr,), number


def test_a_payload_that_was_changed_is_believed_no_more(pieces: Pieces) -> None:
    """It still replays, since only the digest was extended; so what it says must not be looked at."""
    bank, values = quoted(pieces)
    before = {event.number: event for event in read(pieces.whole).events}
    shift = 1 if pieces.head else 0
    for number, _pcr in pieces.extending():
        start = pieces.payload(pieces.events[number])
        if start == len(pieces.events[number]):
            continue
        log = read(pieces.changed(number, len(pieces.events[number]) - 1))
        assert unexplained(replay(log, None, bank).values, values) == ()
        after = next(event for event in log.events if event.number == number + shift)
        assert not (after.bound(bank) and before[after.number].bound(bank)), number


def test_a_changed_payload_decides_nothing_about_secure_boot_or_the_end_of_the_firmware(vectors: Path) -> None:
    pieces = Pieces((vectors / "eventlogs/keylime-binary_bios_measurements-secureboot").read_bytes())
    good = secure_boot.judge(read(pieces.whole), "sha256")
    assert good.enabled
    refused = set()
    for number, pcr in pieces.extending():
        kind = struct.unpack_from("<I", pieces.events[number], 4)[0]
        if pcr != 7 and kind != EV_EFI_ACTION:
            continue
        try:
            assert secure_boot.judge(read(pieces.changed(number, len(pieces.events[number]) - 1)), "sha256") == good
        except AppraisalError as error:
            refused.add(error.code)
        else:
            # An action of another kind than the end of the boot services says nothing that is used.
            assert pcr != 7, number
    assert refused == {"unbound-event", "pcr-7-form", "no-exit-boot-services"}


@pytest.mark.parametrize("name", [*REPLAYING, "ccel-dupe-separator.bin", "guard-good", "guard-failed"])
def test_a_log_cut_at_any_byte_is_refused_or_ends_behind_an_event(vectors: Path, name: str) -> None:
    raw = captured(vectors, name)
    parse = event_log.parse_confidential if name.startswith("ccel") else event_log.parse
    accepted = []
    for length in range(1, len(raw)):
        try:
            parse(raw[:length])
        except AppraisalError as error:
            assert error.code in ("malformed", BROKEN.get(name)), length
        else:
            accepted.append(length)
    pieces = Pieces(raw)
    ends = list(itertools.accumulate(map(len, pieces.events), initial=len(pieces.head)))
    first = min(number for number, _pcr in pieces.extending())
    last = ends[-1]
    if name in BROKEN:
        # Its dishonest event is refused, and so is all that comes behind it.
        last = ends[next(end for end, length in enumerate(ends) if length > accepted[-1])]
        with pytest.raises(AppraisalError, match=BROKEN[name]):
            parse(raw[:last])
    assert accepted == [length for length in ends[first + 1 :] if length < last]


@pytest.mark.parametrize("name", [name for name, code in BROKEN.items() if code == "malformed"])
def test_no_cut_of_a_log_that_is_malformed_is_read(vectors: Path, name: str) -> None:
    raw = captured(vectors, name)
    for length in range(1, len(raw) + 1):
        with pytest.raises(AppraisalError, match="malformed"):
            event_log.parse(raw[:length])


def test_a_log_cut_between_any_two_events_leaves_a_pcr_unexplained(pieces: Pieces) -> None:
    bank, values = quoted(pieces)
    first = min(number for number, _pcr in pieces.extending())
    last = max(number for number, _pcr in pieces.extending())
    for count in range(first + 1, last + 1):
        cut = pieces.head + b"".join(pieces.events[:count])
        assert unexplained(replay(read(cut), None, bank).values, values), count
        for damaged in (cut[:-1], cut + pieces.events[count][:1], cut + pieces.events[count][:-1]):
            with pytest.raises(AppraisalError, match="malformed"):
                event_log.parse(damaged)
