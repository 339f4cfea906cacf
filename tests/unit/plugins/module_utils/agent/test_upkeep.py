# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The service that brings a root to its end tells systemd how far it is; copying itself: tests/integration."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import upkeep
from ansible_collections.cvm.fde.plugins.module_utils.agent.configuration import Configuration, Strategy
from ansible_collections.cvm.fde.plugins.module_utils.agent.hydration import Ears

COPIED, FILLED = "50.0 % of the root is in the encrypted volume (384/768 regions)", "64 MiB are to be written"
RUNNER: Any = object()


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Listen where the service manager does."""
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(f"{tmp_path}/notify")
        channel.setblocking(False)
        yield channel


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have a machine with a cloned root on which nothing is done but what is noted here."""
    steps: list[str] = []

    def hydrate(_mapper: object, ears: Ears) -> None:
        steps.append("hydrate")
        ears.status(COPIED)
        ears.log("a tenth")

    def fill(_mapper: object, ears: Ears, *, name: str, mount_point: str) -> None:
        steps.append(f"fill {name} at {mount_point}")
        ears.status(FILLED)

    machine = SimpleNamespace(
        configuration=Configuration(bytes(32), Strategy.CLONE), mapper=None, paths=SimpleNamespace(state=tmp_path)
    )
    monkeypatch.setattr(upkeep, "this_machine", lambda _runner: machine)
    monkeypatch.setattr(upkeep, "hydrate", hydrate)
    monkeypatch.setattr(upkeep, "settle", lambda _mapper, _ears: steps.append("settle"))
    monkeypatch.setattr(upkeep.anchoring, "mark_complete", lambda _machine: steps.append("mark complete"))
    monkeypatch.setattr(upkeep.anchoring, "mark_image", lambda _machine: steps.append("mark image"))
    monkeypatch.setattr(upkeep, "fill", fill)
    return steps


def heard(systemd: socket.socket) -> list[str]:
    """Return what the service manager was sent."""
    messages = []
    while True:
        try:
            messages.append(systemd.recv(4096).decode())
        except BlockingIOError:
            return messages


def test_systemd_is_told_how_far_the_root_is_and_when_it_is_done(systemd: socket.socket, done: list[str]) -> None:
    upkeep.hydrate_root(RUNNER)
    assert done == ["hydrate", "settle", "mark complete", "mark image", "fill fde-root at /"]
    assert heard(systemd) == [f"STATUS={line}" for line in (COPIED, FILLED, "the root fills its encrypted volume")]


def test_the_journal_has_the_steps_and_systemd_the_progress(
    systemd: socket.socket, done: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    upkeep.hydrate_root(RUNNER)
    assert capsys.readouterr().out == "<5>a tenth\n"
    assert "STATUS=a tenth" not in heard(systemd)


def test_outside_of_a_service_the_root_is_brought_to_its_end_all_the_same(
    monkeypatch: pytest.MonkeyPatch, done: list[str]
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    upkeep.hydrate_root(RUNNER)
    assert done[-1] == "fill fde-root at /"
