# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's command line: services name commands that exist, what goes wrong is one line, and refuses the boot."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import dialogue, entry, recovery, refusals, upkeep
from ansible_collections.cvm.fde.plugins.module_utils.agent.configuration import Configuration, Recovery, Strategy
from ansible_collections.cvm.fde.plugins.module_utils.codes import Code, refuse
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError, Refusal
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


REFUSAL = refuse(Code.HEADER_MISMATCH, "/dev/vda4")


class Refused:
    """A boot that is refused by an image that offers a recovery, or does not: what was done then, in order."""

    def __init__(self, patch: pytest.MonkeyPatch, allowed: Recovery) -> None:
        self.done: list[str] = []
        self.refused: list[FdeError] = []
        self.machine: Any = SimpleNamespace(configuration=Configuration(bytes(32), Strategy.CLONE, recovery=allowed))
        self._patch = patch
        patch.setattr(entry, "SubprocessRunner", lambda **_options: self)
        patch.setattr(entry, "this_machine", lambda _runner: self.machine)
        patch.setattr(entry, "boot", self._boot)
        patch.setattr(entry.console, "announce", lambda error: self.done.append(f"announce {error.code}"))
        patch.setattr(entry.console, "say", self.done.append)
        patch.setattr(entry.console, "refuse", self._refuse)
        patch.setattr(refusals, "remember", lambda _machine, code, _error: self.done.append(f"remember {code}"))
        patch.setattr(refusals, "keep", lambda _machine, refusal: self.done.append(f"keep {refusal.code}"))

    def run(self, argv: list[str]) -> None:
        """Note a program instead of running it."""
        self.done.append(" ".join(argv))

    def tell(self, text: str) -> None:
        """Note what is shown at the console of the recovery."""
        self.done.append(text)

    def attended(self, recover: Callable[..., bool]) -> None:
        """Have somebody at the console, and the recovery end in this way."""

        @contextmanager
        def console() -> Iterator[Refused]:
            yield self

        self._patch.setattr(dialogue, "console", console)
        self._patch.setattr(recovery, "recover", recover)

    def _boot(self, _machine: object) -> None:
        raise REFUSAL

    def _refuse(self, error: Refusal, _runner: object, remember: Callable[[str, FdeError], None]) -> None:
        self.refused.append(error)
        remember(error.code, error)


@pytest.fixture
def offering(monkeypatch: pytest.MonkeyPatch) -> Refused:
    return Refused(monkeypatch, Recovery.CONSOLE)


def test_a_recovery_that_is_declined_leaves_the_boot_refused(offering: Refused) -> None:
    offering.attended(lambda *_arguments: False)
    assert entry.main(["boot"]) == 1
    assert offering.refused == [REFUSAL]
    assert offering.done == ["announce header-mismatch", "remember header-mismatch"]


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (
            FdeError("/dev/vda4", "its header has no recovery key", "Deploy"),
            "/dev/vda4: its header has no recovery key.",
        ),
        (ZeroDivisionError("a defect"), "ZeroDivisionError('a defect')"),
        (OSError(errno.EIO, "Input/output error"), "OSError(5, 'Input/output error')"),
    ],
)
def test_a_recovery_that_fails_leaves_the_boot_refused(offering: Refused, failure: Exception, said: str) -> None:
    def fail(*_arguments: object) -> bool:
        raise failure

    offering.attended(fail)
    assert entry.main(["boot"]) == 1
    assert offering.refused == [REFUSAL]
    announced, shown, remembered = offering.done
    assert (announced, remembered) == ("announce header-mismatch", "remember header-mismatch")
    assert shown.startswith(f"The recovery failed: {said}")


def test_without_a_console_the_boot_stays_refused(offering: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(dialogue, "console", absent)
    assert entry.main(["boot"]) == 1
    assert offering.refused == [REFUSAL]
    assert offering.done[1:] == ["there is no console to recover at: No such device", "remember header-mismatch"]


def test_a_boot_that_was_recovered_is_not_refused_and_starts_anew_once_its_words_are_kept(offering: Refused) -> None:
    offering.attended(
        lambda machine, refusal, person: (machine, refusal, person) == (offering.machine, REFUSAL, offering)
    )
    assert entry.main(["boot"]) == 0
    assert offering.refused == []
    assert offering.done == [
        "announce header-mismatch",
        "keep header-mismatch",
        "the volume was recovered after the refusal header-mismatch; the machine starts anew",
        "systemctl --force --force reboot",
    ]


def test_an_image_that_offers_no_recovery_asks_nobody_and_promises_none(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Refused(monkeypatch, Recovery.NONE)
    refused.attended(lambda *_arguments: pytest.fail("a recovery was begun"))
    assert entry.main(["boot"]) == 1
    [said] = refused.refused
    assert isinstance(said, Refusal) and (said.code, said.cause) == (REFUSAL.code, REFUSAL.cause)
    assert said.remedy.startswith("This image offers no recovery")
    assert refused.done == ["remember header-mismatch"]
