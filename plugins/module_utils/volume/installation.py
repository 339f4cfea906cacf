# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that checks volumes at boot, on the target."""

from __future__ import annotations

from pathlib import Path
from typing import Mapping, Optional, Sequence

from ..errors import FdeError
from . import pin as pins
from .machine import Machine
from .places import AGENT
from .volumes import Planned


def needs_agent(planned: Sequence[Planned]) -> bool:
    """Return whether a volume of the list is opened at boot after the run."""
    return any(one.wanted.boot and one.will_be_there for one in planned)


def install(machine: Machine, payload: Optional[str], check_mode: bool) -> list[dict[str, str]]:
    """Install the program where it is not there as it should be; return the steps. Raises ``FdeError``."""
    target = machine.places.agent
    try:
        content = Path(str(payload)).read_bytes()
        if target.exists() and target.read_bytes() == content:
            return []
        if not check_mode:
            pins.write(target, content, 0o755)
    except OSError as error:
        raise FdeError(AGENT, f"it cannot be installed: {error.strerror}", "Let the file be written") from error
    return [{"action": "install", "subject": AGENT}]


def difference(steps: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return Ansible's diff of what is done to the system besides the volumes."""
    return [
        {
            "before_header": step["subject"],
            "after_header": step["subject"],
            "before": "",
            "after": f"- {step['action']}: {step['subject']}\n",
        }
        for step in steps
    ]
