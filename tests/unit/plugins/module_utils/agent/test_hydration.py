# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The line that systemd shows as the status of the service, and when copying is given up."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.hydration import _PATIENCE, _Stall, notify
from ansible_collections.cvm.fde.plugins.module_utils.agent.pace import Pace
from ansible_collections.cvm.fde.plugins.module_utils.dm.clone import parse_status

LINE = "78.1 % of the root is in the encrypted volume (12800/16384 regions)"


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Listen where the service manager does: at a path, or in the abstract namespace (sd_notify(3))."""
    address = f"{tmp_path}/notify" if request.param == "path" else f"@cvm-fde-test-{time.monotonic_ns()}"
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind("\0" + address[1:] if address.startswith("@") else address)
        channel.settimeout(10)
        yield channel


def test_systemd_is_sent_the_status_line(systemd: socket.socket) -> None:
    notify(LINE)
    assert systemd.recv(4096) == f"STATUS={LINE}".encode()


def test_each_line_is_a_message_of_its_own(systemd: socket.socket) -> None:
    for number in range(3):
        notify(f"{number} %")
    assert [systemd.recv(4096) for _ in range(3)] == [b"STATUS=0 %", b"STATUS=1 %", b"STATUS=2 %"]


def test_nobody_listening_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify(LINE)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify(LINE)


def stalls(looks: list[tuple[int, Pace]]) -> bool:
    stall = _Stall()
    return any(stall.after(parse_status(f"8 9/99 128 {done}/768 0 0 0 rw"), pace) for done, pace in looks)


@pytest.mark.parametrize(
    ("looks", "given_up"),
    [
        ([(700, Pace.FULL)] * (_PATIENCE + 1), True),
        ([(700, Pace.FULL)] * _PATIENCE, False),
        ([(700, Pace.PAUSED)] * 2 * _PATIENCE, False),
        ([(700, Pace.FULL)] * _PATIENCE + [(701, Pace.FULL)] * _PATIENCE, False),
        ([(700, Pace.FULL)] * _PATIENCE + [(700, Pace.PAUSED)] + [(700, Pace.FULL)] * _PATIENCE, True),
        (([(700, Pace.FULL)] * (_PATIENCE - 1) + [(700, Pace.PAUSED)]) * 2, False),
    ],
)
def test_copying_is_given_up_when_nothing_moves_although_nobody_is_in_the_way(
    looks: list[tuple[int, Pace]], given_up: bool
) -> None:
    assert stalls(looks) is given_up
