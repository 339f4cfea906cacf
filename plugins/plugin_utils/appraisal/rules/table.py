# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All checks in the order of judgement. Their tables are the only places where a check exists.

The documentation is compared with them. A judge returns why its check passed, and raises ``AppraisalError`` when it
failed or ``Undecided`` when something to judge by is missing.
"""

from __future__ import annotations

from typing import Mapping

from ..case import Case
from . import anchor, boot, demands, keys, quote, volume
from .keys import ROAD
from .rule import Rule
from .volume import NO_VOLUME

#: Quoted unless the operator says otherwise: everything but IMA's PCR 10 and the resettable 16 and 23.
DEFAULT_PCRS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15)
#: Without these there is nothing to judge.
REQUIRED_PCRS = (4, 7, 9, 11, 12, 13, 14, 15)

RULES: tuple[Rule, ...] = (
    *keys.RULES,
    *quote.RULES,
    *demands.OF_THE_ANSWER,
    *boot.RULES,
    *demands.OF_THE_IMAGE,
    *anchor.RULES,
    *volume.RULES,
    *demands.OF_THE_WHOLE,
)
#: The parts of a machine that a result has a status of its own for, and the checks that speak of each. Those that a
#: ledger or a report adds are among them.
PARTS: Mapping[str, frozenset[str]] = {
    "tpm": frozenset(rule.name for rule in (*keys.RULES, ROAD, *quote.RULES, *demands.OF_THE_ANSWER))
    | {"answers", "identity"},
    "boot": frozenset(rule.name for rule in (*boot.RULES, *demands.OF_THE_IMAGE)),
    "volume": frozenset(rule.name for rule in (*anchor.RULES, *volume.RULES, NO_VOLUME, *demands.OF_THE_WHOLE))
    | {"anchor_freshness", "unique_volume_key"},
}


def rules_for(case: Case) -> tuple[Rule, ...]:
    """Return the checks to make of one machine: those of `RULES`, with `ROAD` instead of the certificate where other
    roads count, and with `NO_VOLUME` instead of anchor and volume where the image that runs keeps nothing.
    """
    rules = list(RULES)
    if case.ephemeral:
        there = {rule.name for rule in (*anchor.RULES, *volume.RULES)}
        place = next(number for number, rule in enumerate(rules) if rule.name in there)
        rules = [rule for rule in rules if rule.name not in there]
        rules.insert(place, NO_VOLUME)
    if not case.grounds.allowed.default:
        rules = [rule for rule in rules if rule.name != "endorsement_certificate"]
        rules.insert(1 + max(number for number, rule in enumerate(rules) if rule.name in ROAD.needs), ROAD)
    return tuple(rules)
