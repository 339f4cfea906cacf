# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The policy's own demands: which image may run now, on what hardware, and how old the answers may be."""

from __future__ import annotations

from typing import Optional

from ..case import Case
from ..errors import AppraisalError, Undecided
from ..policy import Freshness, HardwareTerms
from ..reference_sets import require_valid
from ..roads.trust import Hardware
from .rule import Rule


def _evidence_age(case: Case) -> str:
    made, now = case.challenge.made, case.grounds.now
    if made is None:
        raise Undecided("it is not known when the challenge was made")
    age = (now - made).total_seconds()
    if not 0 <= age <= case.grounds.policy.maximum_age:
        raise AppraisalError("stale", f"the answer came after more than {case.grounds.policy.maximum_age} seconds")
    # That an answer is new is known by its nonce and our clock. The TPM's says "unsafe" for an hour after every loss of
    # power, so it is judged only where somebody wants that.
    if case.grounds.policy.safe_clock and not case.quote.clock.safe:
        raise AppraisalError(
            "unsafe-clock", "the TPM lost power, and does not know yet that its clock has not gone back"
        )
    return "the answer came in time"


def _reference_set(case: Case) -> str:
    require_valid(case.reference, case.grounds.policy, case.grounds.now)
    return f"the reference set {case.reference.name} matches and is valid"


def _hardware(case: Case) -> str:
    policy = case.grounds.policy
    if case.quote.firmware_version < policy.minimum_tpm_firmware:
        raise AppraisalError("old-firmware", "the TPM's firmware is older than the policy demands")
    if not policy.hardware.demanded:
        return "the policy demands nothing of the processor"
    return judge_hardware(policy.hardware, case.trust.hardware if case.trust else None)


def judge_hardware(terms: HardwareTerms, hardware: Optional[Hardware]) -> str:
    """Compare a processor's report with what is demanded; raises as a check does."""
    if hardware is None:
        raise Undecided("the road that was taken brings no report of the processor")
    if terms.products and hardware.product not in terms.products:
        raise AppraisalError("other-product", f"the policy does not accept processors of the kind {hardware.product}")
    if terms.minimum_tcb:
        _require_tcb(terms, hardware)
    if terms.firmware_status:
        if hardware.status is None:
            raise Undecided("nothing says whether the processor's firmware is up to date")
        if hardware.status not in terms.firmware_status:
            raise AppraisalError("old-firmware", f"the maker says of the processor's firmware: {hardware.status}")
    if terms.measurements and hardware.measurement not in terms.measurements:
        raise AppraisalError("other-launch", "the launch measurement is none that the policy lists")
    if terms.id_keys:
        if hardware.id_key is None:
            raise Undecided("the processor's report does not say who signed what was launched")
        if hardware.id_key not in terms.id_keys:
            raise AppraisalError("other-launch", "what was launched was not signed by a key that the policy lists")
    return f"{hardware.product} is as the policy demands"


def _require_tcb(terms: HardwareTerms, hardware: Hardware) -> None:
    least = terms.minimum_tcb.get(hardware.product)
    if least is None:
        raise AppraisalError("old-firmware", f"the policy states no minimum firmware for {hardware.product}")
    for component, minimum in least.items():
        if hardware.tcb.get(component, -1) < minimum:
            raise AppraisalError("old-firmware", f"the firmware's {component} is below {minimum}")


def _strategy(case: Case) -> str:
    if case.reference.strategy not in case.grounds.policy.volume.strategies:
        raise AppraisalError("other-strategy", "the policy does not accept the strategy of this image")
    expected = case.grounds.strategy or case.reference.strategy
    if case.reference.strategy != expected:
        raise AppraisalError("other-strategy", "the image does not have the strategy that is expected")
    return f"the root is assembled by the strategy {expected}"


def reached(passed: frozenset[str], ephemeral: bool) -> Freshness:
    """Return the level of freshness that these checks amount to. A machine that keeps nothing can show nothing old."""
    if ephemeral:
        return Freshness.DATA
    if "anchor_freshness" in passed and "anchor_state" in passed:
        return Freshness.LEDGER
    return Freshness.HEADER if "anchor_state" in passed else Freshness.BOOT


def judge_freshness(demanded: Freshness, level: Freshness) -> str:
    """Compare the level that was reached with the one that is demanded; raises as a check does."""
    if level.rank >= demanded.rank:
        return f"the level {level.value} is reached"
    if demanded is Freshness.LEDGER:
        raise Undecided("the level ledger needs a ledger that knows the machine")
    raise Undecided(f"the level {demanded.value} is demanded, {level.value} is reached")


def _freshness(case: Case) -> str:
    level = reached(frozenset(case.passed), case.ephemeral)
    return judge_freshness(case.grounds.policy.freshness, level)


#: Judged as soon as it is known who answered, once it is known what was started, and last of all.
OF_THE_ANSWER = (
    Rule("evidence_age", ("quote_nonce",), _evidence_age),
    Rule("hardware", ("quote_signature",), _hardware),
)
OF_THE_IMAGE = (
    Rule("reference_set", ("pcr_11",), _reference_set),
    Rule("strategy", ("reference_set",), _strategy),
)
OF_THE_WHOLE = (Rule("freshness", (), _freshness),)
