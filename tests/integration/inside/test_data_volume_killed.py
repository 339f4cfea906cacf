# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that are killed within a step: nothing they started goes on behind the back of the next run, which finishes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.luks2.method import Recovery
from ansible_collections.cvm.fde.plugins.module_utils.volume.machine import Machine
from ansible_collections.cvm.fde.plugins.module_utils.volume.volumes import apply_all, exclusively, plan_all
from ansible_collections.cvm.fde.plugins.module_utils.volume.wanted import State, UnlockWith, Wanted
from owner import NAME, Owner

MIB = 1 << 20
#: Small, because every sector of those with authentication is written.
STACKS = {("authenticated", "ext4"): 64 * MIB, ("confidential", "ext4"): 64 * MIB, ("aegis", "btrfs"): 160 * MIB}
WIPED = 360 * MIB


def run(owner: Owner, wanted: Wanted, announce: Callable[[str], None] = lambda _text: None) -> None:
    """Do what the module does, locked and guarded."""
    with exclusively(Machine(owner.runner, owner.machine.places, announce)) as machine:
        apply_all(machine, plan_all(machine, [wanted]))


def begun(owner: Owner, wanted: Wanted) -> tuple[int, TextIO]:
    """Begin a run in a process of its own; return its number and the actions that it announces."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            run(owner, wanted, lambda text: os.write(writer, text.split()[1].encode() + b"\n") and None)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writer)
    return pid, open(reader)


def descendants(pid: int) -> dict[int, str]:
    """Return the programs that a process runs now."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            name = (entry / "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            found |= {int(entry.name): name, **descendants(int(entry.name))}
    return found


def mapped() -> list[str]:
    """Return the names of what is mapped now."""
    found = []
    for entry in Path("/sys/block").glob("dm-*/dm/name"):
        # One that is going away has no name any more.
        with contextlib.suppress(OSError):
            found.append(entry.read_text().strip())
    return found


def kill(
    owner: Owner,
    wanted: Wanted,
    action: str,
    *,
    until: Callable[[], bool] = lambda: True,
    seconds: float = 0.0,
    programs: bool = False,
) -> None:
    """Kill a run in a step, and with ``programs`` all that it runs as well.

    The moment is when ``until`` holds, and so many ``seconds`` later, at most when the step has ended.
    """
    pid, told = begun(owner, wanted)
    with told:
        assert any(line.strip() == action for line in told), f"the run ended before '{action}'"
        while not until():
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), f"the run ended before the moment in '{action}'"
            time.sleep(0.01)
        select.select([told], [], [], seconds)
        # The run first: it must not notice that its program has ended.
        for victim in [pid, *(descendants(pid) if programs else ())]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        os.waitpid(pid, 0)


def finish(owner: Owner, wanted: Wanted) -> None:
    """Run again; what was killed must not be in the way."""
    run(owner, wanted)
    told = owner.run(wanted)
    assert told["state"] == "mounted", told
    assert sorted(mapped()) in ([NAME], [NAME, f"{NAME}_dif"])
    (owner.mount_point / "file").write_text("kept")
    owner.run(replace(wanted, state=State.CLOSED))
    owner.run(replace(wanted, unlock_with=UnlockWith(recovery_key=owner.recovery_key)))
    assert (owner.mount_point / "file").read_text() == "kept"
    owner.run(replace(wanted, state=State.ERASED))
    assert mapped() == []


def wants(owner: Owner, device: str, profile: str, kind: str) -> Wanted:
    options: dict[str, Any] = {"unlock": (Recovery(),), "certificates": (owner.certificate(),)}
    return owner.wants(device, profile=profile, file_system=kind, **options)


@pytest.mark.parametrize("programs", [False, True], ids=["run", "run and programs"])
def test_a_run_that_is_killed_while_every_sector_is_written_is_made_anew(
    owner: Owner, disk: Callable[..., str], programs: bool
) -> None:
    wanted = wants(owner, disk(WIPED), "authenticated", "xfs")
    wiping = lambda: any("temporary-cryptsetup" in name for name in mapped())  # noqa: E731
    kill(owner, wanted, "format", until=wiping, programs=programs)
    finish(owner, wanted)


@pytest.mark.parametrize(("profile", "kind"), STACKS)
def test_a_run_that_is_killed_before_or_within_a_step_is_made_anew(
    owner: Owner, disk: Callable[..., str], profile: str, kind: str
) -> None:
    wanted = wants(owner, disk(STACKS[profile, kind]), profile, kind)
    for action in ("pin", "clear", "change-keyslots", "store"):
        kill(owner, wanted, action)
    for action in ("format", "open", "make-file-system"):
        for seconds, programs in ((0.0, False), (0.05, True), (0.15, False)):
            kill(owner, wanted, action, seconds=seconds, programs=programs)
    finish(owner, wanted)
