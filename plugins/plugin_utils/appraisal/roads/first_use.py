# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The weakest road: an operator looked at a key's fingerprint and approved it. That is all that is known."""

from __future__ import annotations

import datetime
import hmac
from dataclasses import dataclass
from typing import Optional

from ..errors import AppraisalError
from .endorsement_key import Activation
from .trust import AkTrust, Attester, Binding, Remark, RoadName, digest


@dataclass(frozen=True)
class Approval:
    """An operator's word for one key: ``key`` is the SHA-256 digest (hex) of its SubjectPublicKeyInfo.

    With an activation the key is the endorsement key, without one the attestation key.
    """

    host: str
    key: str
    by: str
    at: datetime.datetime


@dataclass(frozen=True)
class FirstUse:
    """An approval, if there is one yet, for the machine that answers as ``host``."""

    host: str
    approval: Optional[Approval]
    activation: Optional[Activation] = None

    def establish(self, attester: Attester, now: datetime.datetime) -> AkTrust:
        """See `trust.Road`."""
        attester.require_attestation_key(self.activation.endorsement if self.activation else None)
        ak, ek = digest(attester.ak.key), None
        bindings: tuple[Binding, ...] = ()
        if self.activation is not None:
            bindings = (self.activation.require_answer(attester),)
            ek = digest(self.activation.endorsement.key)
        approval = self.approval
        if approval is None or approval.host != self.host:
            raise AppraisalError("not-approved", "no operator has approved the key of this machine")
        if not hmac.compare_digest(approval.key.lower().encode(), (ek or ak).encode()):
            raise AppraisalError("other-key-approved", "an operator has approved another key for this machine")
        if approval.at > now:
            raise AppraisalError("not-approved", "the approval of the key is dated later than this judgement")
        what = "endorsement key" if ek else "attestation key"
        bindings += (Binding(what, "operator", f"approved by {approval.by} at {approval.at.isoformat()}"),)
        warning = Remark("first-use", "an operator's approval is the only reason to believe this key")
        maker = Remark("tpm-maker", "nothing says that the key is one of a TPM, or of which machine")
        return AkTrust(
            RoadName.FIRST_USE, attester.ak.name, ak, ek, None, None, bindings, (), (warning,), (maker,), now
        )  # fmt: skip
