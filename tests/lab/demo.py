# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demonstration: a Debian image becomes a fleet of two self-encrypted, attested guests."""

from __future__ import annotations

import json
from pathlib import Path

from .ansible import inventory, playbook
from .cache import BUILD
from .guest import Guest, boot, together
from .process import LabError
from .progress import say, step
from .sealed import Sealed, sealed_image

FOLDER = BUILD / "demo"
NAMES = ("demo-1", "demo-2")


def demo() -> None:
    """Seal, boot, attest, reboot, attest; raise ``LabError`` unless every host is trusted at the end."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    report = FOLDER / "report.json"
    report.unlink(missing_ok=True)
    sealed = sealed_image()
    fleet = [Guest(name) for name in NAMES]
    try:
        with step("booting two guests, which encrypt themselves"):
            together(lambda guest: _first_boot(guest, sealed), fleet)
        with step("attesting both, rebooting one, attesting both again"):
            _playbook(fleet, sealed, report)
    except LabError:
        for guest in fleet:
            say(f"the serial log of {guest.name}: {guest.serial.path}")
        raise
    finally:
        for guest in fleet:
            guest.power_off()
        say("the guests are off")
    _conclude(report)


def _first_boot(guest: Guest, sealed: Sealed) -> None:
    Guest.create(guest.name, sealed.image)
    boot(guest)


def _playbook(fleet: list[Guest], sealed: Sealed, report: Path) -> None:
    hosts = inventory(FOLDER / "inventory.json", {"fleet": {guest.name: guest.inventory() for guest in fleet}})
    playbook("cvm.fde.demo", hosts, {**sealed.variables(), "fde_report_path": str(report)})


def _conclude(report: Path) -> None:
    hosts = json.loads(report.read_text())["hosts"]
    verdicts = {host["host"]: host["verdict"] for host in hosts}
    if verdicts != dict.fromkeys(NAMES, "trusted"):
        raise LabError(f"not every host is trusted: {verdicts}; the report is {report}")
    say(f"every host is trusted; the report is {report}")
