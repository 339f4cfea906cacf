# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of the reference sets describes a boot, and does the policy accept it.

PCR 11 holds every section of the kernel image, so sets with the same value of it are of the same one. They may differ
in what else was measured: in Secure Boot's configuration (PCR 7) before and after an update of its variables, say.
"""

from __future__ import annotations

import datetime
from typing import AbstractSet, Callable, Optional, Sequence

from .booted import fits
from .errors import AppraisalError
from .policy import Policy, SetTerms
from .reference import BANK, Reference
from .replay import Replay
from .structures import Values


def describing(
    references: Sequence[Reference],
    phase: str,
    values: Values,
    replay: Callable[[], Replay],
    compared: AbstractSet[int],
    policy: Policy,
    moment: Optional[datetime.datetime] = None,
) -> Optional[Reference]:
    """Return the set that a boot is judged by, or None where none has its PCR 11 in this phase.

    Of several it is one that the policy revoked, if that fits in all of the PCRs that are ``compared``; otherwise the
    first that is accepted (at a moment, where one is given) and fits. Only where none is their order tells by
    which one the boot is refused.
    """
    alike = [one for one in references if one.pcr_11[phase] == values.get(BANK, {}).get(11)]
    if len(alike) < 2:
        return alike[0] if alike else None
    fitting = [one for one in alike if fits(one, values, replay, compared)]
    revoked = [one for one in fitting if _revoked(one, policy)]
    accepted = [one for one in fitting if _accepted(one, policy, moment)]
    return (revoked or accepted or fitting or alike)[0]


def _revoked(reference: Reference, policy: Policy) -> bool:
    terms = _terms(reference, policy)
    return terms is not None and terms.revoked


def _accepted(reference: Reference, policy: Policy, moment: Optional[datetime.datetime]) -> bool:
    try:
        if moment is None:
            require_accepted(reference, policy)
        else:
            require_valid(reference, policy, moment)
    except AppraisalError:
        return False
    return True


def _terms(reference: Reference, policy: Policy) -> Optional[SetTerms]:
    return next((terms for terms in policy.sets if terms.name == reference.name), None)


def require_valid(reference: Reference, policy: Policy, moment: datetime.datetime) -> None:
    """Check that machines may show a set's values at a moment. Raises ``AppraisalError``."""
    require_accepted(reference, policy)
    terms = _terms(reference, policy)
    begins = (reference.not_before, terms.not_before if terms else None)
    ends = (reference.not_after, terms.not_after if terms else None)
    if any(begin is not None and moment < begin for begin in begins):
        raise AppraisalError("set-not-yet-valid", f"the reference set {reference.name} is not valid yet")
    if any(end is not None and moment > end for end in ends):
        raise AppraisalError("set-expired", f"the reference set {reference.name} is not valid any more")


def require_accepted(reference: Reference, policy: Policy) -> None:
    """Check that the policy names a set, if it names any, and has not revoked it. Raises ``AppraisalError``."""
    terms = _terms(reference, policy)
    if terms is None and policy.sets:
        raise AppraisalError("set-not-accepted", f"the policy does not name the reference set {reference.name}")
    if terms is not None and terms.revoked:
        raise AppraisalError("set-revoked", f"the reference set {reference.name} is revoked")
