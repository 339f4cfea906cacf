# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is left of a refusal when the machine is off: its code and number in the anchor, its words on the ESP.

The anchor is written by the TPM's rules and can be attested. The words are only for people: the host can change them.
"""

from __future__ import annotations

import json
from typing import Any, Optional

from ..errors import FdeError, Refusal
from . import anchoring
from .console import FAILED, REFUSAL_FILE, say
from .esp import efi_partition
from .machine import Machine

_LIMIT = 4096
_FIELDS = ("code", "subject", "cause", "remedy")


def remember(machine: Machine, code: str, error: FdeError) -> None:
    """Count the refusal in the anchor and write its words to the EFI system partition, as far as either can be done."""
    try:
        anchoring.update(machine, lambda anchor: anchor.refused(code))
    except FdeError as failure:
        say(f"the TPM does not remember the refusal: {failure.cause}")
    keep(machine, error)


def keep(machine: Machine, error: FdeError) -> None:
    """Write the words of a refusal to the EFI system partition, if that can be done."""
    said = {"subject": error.subject, "cause": error.cause, "remedy": error.remedy}
    code = error.code if isinstance(error, Refusal) else FAILED
    content = {"code": code, **{name: " ".join(text.split()) for name, text in said.items()}}
    try:
        efi_partition(machine.runner, machine.configuration).write(REFUSAL_FILE, json.dumps(content).encode())
    except FdeError as failure:
        say(f"the words of the refusal are not kept: {failure.cause}")


def recall(machine: Machine) -> Optional[dict[str, str]]:
    """Return the words of the last refusal, None where there are none. Raises ``FdeError``."""
    content = efi_partition(machine.runner, machine.configuration).read(REFUSAL_FILE, _LIMIT)
    return None if content is None else words(content)


def words(content: bytes) -> Optional[dict[str, str]]:
    """Return the words in a file that the host can write, None when they are none of ours."""
    try:
        found: Any = json.loads(content)
        named = {name: found[name] for name in _FIELDS}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    sound = all(isinstance(word, str) and word.isprintable() for word in named.values())
    return named if sound else None
