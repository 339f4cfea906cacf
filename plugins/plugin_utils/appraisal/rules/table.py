# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All checks in the order of judgement. Their tables are the only places where a check exists.

The documentation is compared with them. A judge returns why its check passed, and raises ``AppraisalError`` when it
failed or ``Undecided`` when something to judge by is missing.
"""

from __future__ import annotations

from ..roads import choice
from . import anchor, boot, keys, quote, volume
from .keys import ROAD
from .rule import Rule

#: Quoted unless the operator says otherwise: everything but IMA's PCR 10 and the resettable 16 and 23.
DEFAULT_PCRS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15)
#: Without these there is nothing to judge.
REQUIRED_PCRS = (4, 7, 11, 12, 13, 15)

RULES: tuple[Rule, ...] = (*keys.RULES, *quote.RULES, *boot.RULES, *anchor.RULES, *volume.RULES)


def rules_for(allowed: choice.Allowed) -> tuple[Rule, ...]:
    """Return the checks to make: those of `RULES`, with `ROAD` instead of the certificate where other roads count."""
    if allowed.default:
        return RULES
    rules = [rule for rule in RULES if rule.name != "endorsement_certificate"]
    place = 1 + max(number for number, rule in enumerate(rules) if rule.name in ROAD.needs)
    return (*rules[:place], ROAD, *rules[place:])
