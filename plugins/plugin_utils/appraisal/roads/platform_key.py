# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a key that the platform vouches for to the attestation key beside it in the same TPM.

A restricted signing key signs a TPM2_Certify only over an object that is loaded in its own TPM, and names it.
Source: TPM 2.0 Library part 3, TPM2_Certify; part 2, TPMS_CERTIFY_INFO.
"""

from __future__ import annotations

import datetime
import hmac
from dataclasses import dataclass, replace

from ..errors import AppraisalError
from ..structures import parse_key_certification, parse_public, qualified_name, verify_by
from .trust import AkTrust, Attester, Binding, Road, digest


@dataclass(frozen=True)
class ThroughPlatformKey:
    """A road that leads to ``key`` (TPMT_PUBLIC), and that key's statement on the attestation key."""

    road: Road
    key: bytes
    statement: bytes
    signature: bytes

    def establish(self, attester: Attester, now: datetime.datetime) -> AkTrust:
        """See `trust.Road`."""
        attester.require_attestation_key()
        key, statement = parse_public(self.key), parse_key_certification(self.statement)
        trust = self.road.establish(replace(attester, ak=key, signer=statement.qualified_signer), now)
        verify_by(key, self.signature, statement.raw)
        if not hmac.compare_digest(statement.extra_data, attester.nonce):
            raise AppraisalError("other-nonce", "the platform's key answers another nonce")
        names = (statement.object_name, statement.object_qualified_name)
        if not all(map(hmac.compare_digest, names, (attester.ak.name, qualified_name(attester.ak)))):
            raise AppraisalError("other-attestation-key", "the platform's key speaks of another attestation key")
        binding = Binding("attestation key", "platform's key", "its TPM holds both, which it certified under the nonce")
        return replace(trust, ak_name=attester.ak.name, ak=digest(attester.ak.key), bindings=(binding, *trust.bindings))
