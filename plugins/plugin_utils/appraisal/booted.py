# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does a boot have the values of a reference set: what was measured, and the logs that lead to it."""

from __future__ import annotations

from typing import AbstractSet, Callable, Optional

from .errors import AppraisalError, Undecided, contained
from .reference import BANK, Reference
from .replay import Replay, unexplained
from .structures import Values


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


def secure_boot_configuration(values: Values, reference: Reference, replay: Callable[[], Optional[Replay]]) -> str:
    """Judge PCR 7 by its listed values, or by its events where the manifest lists none.

    ``replay`` returns the logs only when they were found to lead to the values.
    """
    if reference.pcr_7 is not None:
        return listed(values, 7, reference.pcr_7)
    if reference.signer is None:
        raise Undecided("the manifest lists no value of PCR 7 and names no Secure Boot certificate")
    explained = replay()
    if explained is None:
        raise Undecided("the manifest lists no value of PCR 7, and no log explains it")
    if explained.secure_boot().authorities != {reference.signer}:
        raise AppraisalError(
            "pcr-7", "the image was not admitted by the certificate that the manifest names, and it alone"
        )
    return "only the certificate that the manifest names admitted what was started"


def fits(reference: Reference, values: Values, replay: Callable[[], Replay], compared: AbstractSet[int]) -> bool:
    """Tell whether no PCR of ``compared`` contradicts a set. One that cannot be judged without a log does not."""

    def compare() -> None:
        legal = {4: reference.pcr_4, 12: reference.pcr_12, 13: reference.pcr_13, 14: reference.pcr_14}
        for pcr in compared & set(legal):
            listed(values, pcr, legal[pcr])
        if 7 in compared:
            secure_boot_configuration(values, reference, lambda: _explained(values, replay))

    try:
        contained(compare)
    except AppraisalError as error:
        return not error.code.startswith("pcr-")
    except Undecided:
        return True
    return True


def _explained(values: Values, replay: Callable[[], Replay]) -> Optional[Replay]:
    """Return the logs if they lead to the values."""
    try:
        found = replay()
        explain(found, values)
    except (AppraisalError, Undecided):
        return None
    return found
