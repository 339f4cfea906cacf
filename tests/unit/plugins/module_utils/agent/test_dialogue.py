# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The console, on a real pseudo-terminal."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.dialogue import Console


class Terminal:
    """A person's end of a line: answers when asked, and remembers all that was shown."""

    def __init__(self) -> None:
        self.end, self.machine = os.openpty()
        self.shown = b""

    def ask(self, console: Console, answer: bytes, *, secret: bool) -> bytes:
        """Return what the machine understood."""
        typist = threading.Thread(target=self._type, args=(answer,))
        typist.start()
        understood = bytes(console.ask_secret("Key?")) if secret else console.ask("Sure?").encode()
        typist.join()
        return understood

    def _type(self, answer: bytes) -> None:
        # What is typed before the question is dropped, so wait for it.
        while b"?" not in self.shown:
            self.shown += os.read(self.end, 1024)
        os.write(self.end, answer)

    def rest(self) -> bytes:
        os.set_blocking(self.end, False)
        with contextlib.suppress(BlockingIOError):
            self.shown += os.read(self.end, 65536)
        return self.shown


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    os.close(made.end)
    os.close(made.machine)


def test_an_answer_is_shown_and_understood(terminal: Terminal) -> None:
    assert terminal.ask(Console(terminal.machine), b"  yes \r", secret=False) == b"yes"
    assert b"yes" in terminal.rest()


def test_a_secret_is_understood_and_not_shown(terminal: Terminal) -> None:
    assert terminal.ask(Console(terminal.machine), b"cbdefghi-secret\r", secret=True) == b"cbdefghi-secret"
    assert b"secret" not in terminal.rest()


def test_the_terminal_is_as_it_was_after_a_secret(terminal: Terminal) -> None:
    console = Console(terminal.machine)
    terminal.ask(console, b"secret\r", secret=True)
    terminal.shown = b""
    assert terminal.ask(console, b"no\r", secret=False) == b"no"
    assert b"no" in terminal.rest()


def test_nobody_there_is_an_empty_answer(terminal: Terminal) -> None:
    assert Console(terminal.machine, patience=0.05).ask("Sure?") == ""


def test_an_endless_line_ends(terminal: Terminal) -> None:
    assert len(terminal.ask(Console(terminal.machine), b"x" * 300 + b"\r", secret=True)) == 256


def test_what_comes_from_the_disk_cannot_steer_the_terminal(terminal: Terminal) -> None:
    Console(terminal.machine).tell("token \x1b[2J\x07 of type \u202e")
    shown = terminal.rest()
    assert b"\x1b" not in shown and b"\x07" not in shown and shown.startswith(b"token ?[2J? of type ?")
