# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a check is, and what several of them compare in the same way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

from ..case import BANK, Case
from ..errors import AppraisalError
from ..replay import Replay, unexplained
from ..structures import PublicArea, Values

#: What every check of quoted values rests on.
SIGNED = ("quote_signature", "quote_digest")


@dataclass(frozen=True)
class Rule:
    """One check: its name, the checks it rests on, and the judge, which returns why it passed or raises why it did
    not.
    """

    name: str
    needs: tuple[str, ...]
    judge: Callable[[Case], str]


def signing_hash(key: PublicArea) -> str:
    """Return the hash of a key's scheme; a key that passed as an attestation key has one."""
    return key.scheme.hash_name if key.scheme else BANK


def explain(replay: Replay, values: Values) -> str:
    left = unexplained(replay.values, values[BANK])
    if left:
        raise AppraisalError("unexplained", f"the logs do not lead to PCR {', '.join(str(pcr) for pcr in left)}")
    return f"the logs lead to all {len(values[BANK])} PCRs"


def enforced(replay: Replay) -> str:
    if not replay.secure_boot().enabled:
        raise AppraisalError("secure-boot-off", "the firmware started without Secure Boot")
    return "the firmware measured that Secure Boot was on"


def listed(values: Values, pcr: int, legal: frozenset[bytes]) -> str:
    if values[BANK].get(pcr) not in legal:
        raise AppraisalError(f"pcr-{pcr}", f"PCR {pcr} does not have a value that the manifest lists")
    return "the manifest lists its value"
