# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Talking with a person at the console of a machine that has nothing else yet."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import time
from typing import Iterator, Optional, Protocol

from ..luks2.secret import wipe
from .console import CONSOLE

#: Seconds that a person has for one answer; then the machine does what it does without one.
PATIENCE = 600.0
_LIMIT = 256
#: systemd(1): SIGRTMIN+21 ends the lines about units that are being started.
_QUIET = signal.SIGRTMIN + 21


class Dialogue(Protocol):
    """Somebody who can be told and asked something."""

    def tell(self, text: str) -> None:
        """Show a line."""

    def ask(self, question: str) -> str:
        """Return the answer to a question; an empty one where there is none."""

    def ask_secret(self, question: str) -> bytearray:
        """Return an answer that nobody else shall see; the caller wipes it."""


class Console:
    """The console of the machine. A secret is not shown when it is typed, but whoever owns the line sees it."""

    def __init__(self, descriptor: int, patience: float = PATIENCE) -> None:
        self._descriptor = descriptor
        self._patience = patience

    def tell(self, text: str) -> None:
        """Show a line; bytes that could steer a terminal are left out."""
        shown = "".join(letter if letter.isprintable() else "?" for letter in text)
        self._write(shown + "\r\n")

    def ask(self, question: str) -> str:
        """Return the answer to a question, without blanks around it."""
        answer = self._answer(question, shown=True)
        return answer.decode("utf-8", "replace").strip()

    def ask_secret(self, question: str) -> bytearray:
        """Return the answer to a question without showing it."""
        answer = self._answer(question, shown=False)
        self._write("\r\n")
        return answer

    def _answer(self, question: str, *, shown: bool) -> bytearray:
        with _line_mode(self._descriptor, shown):
            self._write(f"{question} ")
            return self._line()

    def _line(self) -> bytearray:
        """Return one line without its end; nothing of it is kept elsewhere."""
        end = time.monotonic() + self._patience
        line, byte = bytearray(), bytearray(1)
        while len(line) < _LIMIT:
            left = max(end - time.monotonic(), 0)
            ready, _write, _error = select.select([self._descriptor], [], [], left)
            if not ready or os.readv(self._descriptor, [byte]) != 1 or byte[0] in b"\r\n":
                break
            line += byte
        wipe(byte)
        return line

    def _write(self, text: str) -> None:
        os.write(self._descriptor, text.encode("utf-8", "replace"))


@contextlib.contextmanager
def console(path: str = CONSOLE) -> Iterator[Console]:
    """Yield the machine's console; systemd keeps quiet meanwhile. Raises ``OSError`` where there is none."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.kill(1, _QUIET)
        yield Console(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _line_mode(descriptor: int, shown: bool) -> Iterator[None]:
    """Have the terminal collect lines, and show what is typed or not. What was typed before the question is dropped."""
    before: Optional[list[object]] = None
    with contextlib.suppress(termios.error):
        before = termios.tcgetattr(descriptor)
        changed = termios.tcgetattr(descriptor)
        changed[0] |= termios.ICRNL
        changed[3] |= termios.ICANON
        changed[3] = changed[3] | termios.ECHO if shown else changed[3] & ~(termios.ECHO | termios.ECHONL)
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, changed)
    try:
        yield
    finally:
        if before is not None:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)  # type: ignore[arg-type]
