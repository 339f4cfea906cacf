# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's command line: services name commands that exist, and what goes wrong is one line."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import entry, upkeep
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.volume import command as volume_command

CHECKOUT = Path(__file__).resolve().parents[5]
UNITS = sorted((CHECKOUT / "roles/image/files").rglob("*.service"))


def commands(unit: Path) -> list[str]:
    return re.findall(r"^Exec\w+=-?.*cvm-fde/agent(?:\.pyz)? (\S+)", unit.read_text(), re.MULTILINE)


def test_the_services_are_found() -> None:
    assert {"boot", "emergency", "hydrate", "pause", "masks"} <= {name for unit in UNITS for name in commands(unit)}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_every_command_of_a_service_exists(unit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in commands(unit):
        with pytest.raises(SystemExit) as ended:
            entry.main([name, "--help"])
        assert ended.value.code == 0
        assert f"cvm-fde {name}" in capsys.readouterr().out


@pytest.mark.parametrize("action", volume_command._ACTIONS)
def test_a_check_of_a_data_volume_is_called_as_it_is_named(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["volume", action, "absent"]) == 1
    assert "cvm-fde: volume absent" in capsys.readouterr().err


def test_copying_is_stopped_when_its_service_was_killed() -> None:
    [unit] = [unit for unit in UNITS if unit.name == "cvm-fde-hydrate.service"]
    assert re.search(r"^ExecStopPost=-\S+ pause$", unit.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (FdeError("/dev/vda", "it is gone", "Attach it"), "cvm-fde: /dev/vda: it is gone. Attach it\n"),
        (OSError(errno.EIO, "Input/output error", "/dev/dm-3"), "/dev/dm-3: Input/output error. Look at the kernel's"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "cvm-fde: a device: No space left on device. Look at the kernel's",
        ),
    ],
)
def test_what_goes_wrong_in_the_running_system_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raised: Exception, said: str
) -> None:
    def fail(_runner: object) -> None:
        raise raised

    for name in ("hydrate_root", "keep_masks", "pause"):
        monkeypatch.setattr(upkeep, name, fail)
    for command in ("hydrate", "masks", "pause"):
        assert entry.main([command]) == 1
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_a_disk_that_fails_in_the_initrd_is_no_defect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the console says of it is what `failed` is documented to be: the disk, and what to look at."""
    told: list[FdeError] = []

    def fail(_runner: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "/dev/dm-3")

    monkeypatch.setattr(entry, "this_machine", fail)
    monkeypatch.setattr(entry.console, "refuse", lambda error, _runner: told.append(error))
    with pytest.raises(OSError, match="Input/output"):
        entry.main(["boot"])
    assert str(told[0]) == "/dev/dm-3: Input/output error. Look at the kernel's log, and check the disk"


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_runner: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(upkeep, "keep_masks", fail)
    with pytest.raises(ZeroDivisionError):
        entry.main(["masks"])
