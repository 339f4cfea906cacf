# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fifty writers at once lose nothing, and a writer that dies leaves nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from multiprocessing.synchronize import Barrier

from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.ledger import Conclusion, Ledger
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.memory import Past
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.reading import head_of
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.records import Anchor, Attestation, Identity, Kind
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.verification import verify
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.writing import Packed, write

WRITERS = 50
EACH = 4
_FORK = multiprocessing.get_context("fork")


def run_together(target, *arguments) -> None:
    """Run the target in forks that all begin at the same moment, and see that none of them failed."""
    barrier = _FORK.Barrier(WRITERS, timeout=120)
    writers = [
        _FORK.Process(target=target, args=(number, barrier, *arguments), daemon=True) for number in range(WRITERS)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(300)
    assert [writer.exitcode for writer in writers] == [0] * WRITERS


def append(number: int, barrier: Barrier, ledger: Ledger) -> None:
    barrier.wait()
    for count in range(EACH):
        record = Attestation(f"host{number}", "trusted", "pinned", volume="fde-crypt", anchor=Anchor(count, 2, 1))
        ledger.append(record, {"log": b"one log for all", "quote": b"%d %d" % (number, count)})


def create_and_append(number: int, barrier: Barrier, where: str) -> None:
    barrier.wait()
    Ledger.create(where).append(Attestation(f"host{number}", "trusted", "pinned"))


def enrol_with_one_key(number: int, barrier: Barrier, ledger: Ledger) -> None:
    host = f"host{number}"
    shown = Identity(host, "pinned", ek="ab" * 32)

    def judge(past: Past) -> Conclusion:
        verdict = "untrusted" if past.conflicts else "trusted"
        return Conclusion(Attestation(host, verdict, "pinned"), {"result": verdict.encode()}, shown)

    barrier.wait()
    ledger.conclude(host, "fde-crypt", shown, {"quote": b"%d" % number}, judge)


def test_of_fifty_forks_that_show_one_key_at_once_one_is_trusted(ledger: Ledger) -> None:
    run_together(enrol_with_one_key, ledger)
    verdicts = Counter(entry.record.verdict for entry in ledger.entries(kind=Kind.ATTESTATION))
    assert verdicts == {"trusted": 1, "untrusted": WRITERS - 1}
    assert len(ledger.conflicts()) == WRITERS - 1
    assert verify(ledger).sound


def test_fifty_forks_that_append_through_one_ledger_lose_nothing(ledger: Ledger) -> None:
    run_together(append, ledger)
    verification = verify(ledger, ledger.head())
    assert verification.findings == ()
    assert (verification.entries, verification.documents) == (WRITERS * EACH, WRITERS * EACH + 1)
    assert Counter(entry.record.host for entry in ledger.entries()) == {f"host{n}": EACH for n in range(WRITERS)}
    quotes = {ledger.documents(entry)["quote"] for entry in ledger.entries()}
    assert quotes == {b"%d %d" % (number, count) for number in range(WRITERS) for count in range(EACH)}


def test_fifty_forks_can_create_the_same_ledger(where: str) -> None:
    run_together(create_and_append, where)
    verification = verify(Ledger(where))
    assert verification.findings == ()
    assert verification.entries == WRITERS


def test_a_writer_killed_in_the_middle_leaves_nothing_and_locks_nobody_out(filled: Ledger) -> None:
    before = filled.head()
    child = os.fork()
    if child == 0:
        try:
            with filled.database.writing() as connection:
                write(connection, [(Attestation("half", "trusted", "pinned"), Packed.of({"quote": b"half"}))])
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert filled.head() == before
    assert filled.append(Attestation("whole", "trusted", "pinned")).sequence == before.sequence + 1
    assert verify(filled, before).sound


def test_a_reader_keeps_its_view_and_stops_no_writer(filled: Ledger) -> None:
    with filled.database.reading() as connection:
        assert head_of(connection).sequence == 5
        filled.append(Attestation("host6", "trusted", "pinned"))
        assert head_of(connection).sequence == 5
    assert filled.head().sequence == 6
