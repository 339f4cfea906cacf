# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One attestation of one machine, from the first question to the verdict; how it is asked is not known here."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from dataclasses import asdict
from typing import Any, Callable, Optional, Sequence

from .appraisal.case import BANK, Challenge, Grounds
from .appraisal.credential import SECRET_SIZE, make_credential
from .appraisal.errors import AppraisalError
from .appraisal.evidence import Hydration, Identity, parse_evidence, parse_identity
from .appraisal.judgement import Result, appraise
from .appraisal.rules.table import REQUIRED_PCRS
from .appraisal.structures import parse_public
from .case_file import answer_documents, canonical, policy_document

NONCE_SIZE = 32
#: PCRs that anyone can set back to zero.
RESETTABLE_PCRS = (16, 23)


class Attestation:
    """Asks one machine once. Nonce and secret are made here and are of no use for a second round.

    Call ``identity_request``, ``evidence_request`` and ``judge`` in this order with the machine's answers. Each raises
    ``AppraisalError`` for an answer that has not the form of one.
    """

    def __init__(
        self, grounds: Grounds, pcrs: Sequence[int], random: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        self._grounds = grounds
        self._challenge = Challenge(random(NONCE_SIZE), random(SECRET_SIZE), {BANK: frozenset(pcrs)})
        self._identity: Optional[Identity] = None
        self._answers: list[Any] = []
        self.hydration: Optional[Hydration] = None
        self._result: Optional[Result] = None

    @property
    def result(self) -> Result:
        """The verdict, once there is one."""
        if self._result is None:
            raise AppraisalError("malformed", "the machine was not judged yet")
        return self._result

    def identity_request(self) -> dict[str, Any]:
        """Return what the machine is asked first."""
        return {"round": "identity"}

    def evidence_request(self, answer: Any) -> dict[str, Any]:
        """Return what the machine is asked second: a nonce, and a secret that only the TPM with both its keys can
        decrypt.
        """
        self._identity = parse_identity(answer)
        self._answers = [answer]
        attestation, endorsement = parse_public(self._identity.attestation), parse_public(self._identity.endorsement)
        credential = make_credential(endorsement, attestation.name, self._challenge.secret)
        return {
            "round": "evidence",
            "nonce": base64.b64encode(self._challenge.nonce).decode(),
            "pcrs": sorted(self._challenge.selection[BANK]),
            "credential": base64.b64encode(credential.blob).decode(),
            "encrypted_seed": base64.b64encode(credential.secret).decode(),
        }

    def judge(self, answer: Any) -> Result:
        """Return the verdict over both answers."""
        if self._identity is None:
            raise AppraisalError("malformed", "the machine was not asked for its identity before it was judged")
        evidence = parse_evidence(answer)
        self._answers.append(answer)
        self.hydration = evidence.hydration
        self._result = appraise(self._identity, evidence, self._challenge, self._grounds)
        return self._result

    def archive(self, result: Result, manifest: bytes) -> bytes:
        """Return everything that the verdict rests on, so that it can be judged again: canonical JSON."""
        return json.dumps(
            {
                "version": 1,
                "judged": self._grounds.now.isoformat(timespec="seconds"),
                "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
                "nonce": base64.b64encode(self._challenge.nonce).decode(),
                "secret": base64.b64encode(self._challenge.secret).decode(),
                "pcrs": sorted(self._challenge.selection[BANK]),
                "answers": self._answers,
                "verdict": result.verdict.value,
                "checks": [asdict(check) for check in result.checks],
            },
            sort_keys=True,
            separators=(",", ":"),
        ).encode()

    def documents(self, manifest: bytes, signature: bytes) -> dict[str, bytes]:
        """Return what the verdict rests on, as the ledger keeps it: see `case_file`.

        Only fields that were read, and hence are bounded, are kept. The parts that differ little from one attestation
        to the next are documents of their own, so that the ledger keeps them once.
        """
        identity, evidence = self._answers
        challenge = {
            "version": 1,
            "judged": self._grounds.now.isoformat(),
            "nonce": base64.b64encode(self._challenge.nonce).decode(),
            "secret": base64.b64encode(self._challenge.secret).decode(),
            "pcrs": sorted(self._challenge.selection[BANK]),
        }
        return {
            "manifest": manifest,
            "manifest-signature": signature,
            "challenge": canonical(challenge),
            "policy": canonical(policy_document(self._grounds)),
            **answer_documents(identity, evidence, self.hydration),
        }


def check_pcrs(pcrs: Sequence[int]) -> Optional[str]:
    """Return what is wrong with PCRs that an operator wants to ask for, or None."""
    missing = [pcr for pcr in REQUIRED_PCRS if pcr not in pcrs]
    if missing:
        return f"PCR {', '.join(map(str, missing))} must be among them"
    if any(pcr in RESETTABLE_PCRS or not 0 <= pcr < 24 for pcr in pcrs):
        return "there are only PCRs 0 to 23, and 16 and 23 prove nothing because anyone can reset them"
    return "a PCR is named twice" if len(set(pcrs)) != len(pcrs) else None
