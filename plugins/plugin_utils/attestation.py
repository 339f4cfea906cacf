# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One attestation of one machine, from the first question to the verdict; how it is asked is not known here."""

from __future__ import annotations

import base64
import datetime
import hashlib
import secrets
from dataclasses import asdict, replace
from typing import Any, Callable, Mapping, Optional, Sequence

from .appraisal.case import Challenge, Grounds
from .appraisal.credential import SECRET_SIZE, make_credential
from .appraisal.errors import AppraisalError, contained
from .appraisal.evidence import Hydration, Identity, parse_evidence, parse_identity
from .appraisal.judgement import Result, appraise
from .appraisal.reference import BANK, Reference
from .appraisal.roads.choice import NITROTPM_BANK, PLATFORMS
from .appraisal.roads.trust import RoadName
from .appraisal.rules.table import REQUIRED_PCRS
from .appraisal.structures import parse_public
from .case_file import answer_documents, canonical, reference_documents, unreadable_answers
from .kept_policy import policy_document

NONCE_SIZE = 32
#: PCRs that anyone can set back to zero.
RESETTABLE_PCRS = (16, 23)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


class Attestation:
    """Asks one machine once. Nonce and secret are made here and are of no use for a second round.

    Call ``identity_request``, ``evidence_request`` and ``judge`` in this order with the machine's answers. Each raises
    ``AppraisalError`` for an answer that has not the form of one.
    """

    def __init__(
        self,
        grounds: Grounds,
        pcrs: Sequence[int],
        random: Callable[[int], bytes] = secrets.token_bytes,
        clock: Callable[[], datetime.datetime] = _now,
    ) -> None:
        self._grounds = grounds
        self._clock = clock
        banks = (BANK, NITROTPM_BANK) if RoadName.AWS_NITROTPM in grounds.allowed.roads else (BANK,)
        selection = dict.fromkeys(banks, frozenset(pcrs))
        self._challenge = Challenge(random(NONCE_SIZE), random(SECRET_SIZE), selection, clock())
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
        self._answers = [answer]
        return contained(lambda: self._second(answer))

    def _second(self, answer: Any) -> dict[str, Any]:
        self._identity = parse_identity(answer)
        attestation, endorsement = parse_public(self._identity.attestation), parse_public(self._identity.endorsement)
        credential = make_credential(endorsement, attestation.name, self._challenge.secret)
        return {
            "round": "evidence",
            "nonce": base64.b64encode(self._challenge.nonce).decode(),
            "pcrs": sorted(self._challenge.selection[BANK]),
            "banks": list(self._challenge.selection),
            "platform": sorted({PLATFORMS[road] for road in self._grounds.allowed.roads if road in PLATFORMS}),
            "credential": base64.b64encode(credential.blob).decode(),
            "encrypted_seed": base64.b64encode(credential.secret).decode(),
        }

    def judge(self, answer: Any) -> Result:
        """Return the verdict over both answers."""
        if self._identity is None:
            raise AppraisalError("malformed", "the machine was not asked for its identity before it was judged")
        self._answers.append(answer)
        evidence = contained(lambda: parse_evidence(answer))
        self.hydration = evidence.hydration
        self._grounds = replace(self._grounds, now=self._clock())
        self._result = appraise(self._identity, evidence, self._challenge, self._grounds)
        return self._result

    @property
    def judged_at(self) -> datetime.datetime:
        """When the answers came."""
        return self._grounds.now

    def archive(self, result: Result, answers: Optional[Mapping[str, Any]] = None) -> bytes:
        """Return everything that the verdict rests on, so that it can be judged again: canonical JSON.

        ``answers`` are those of ``unreadable``, where there are no others.
        """
        manifests = (hashlib.sha256(one.manifest).hexdigest() for one in result.references)
        return canonical(
            {
                "version": 1,
                "judged": self._grounds.now.isoformat(timespec="seconds"),
                "manifest_sha256": list(dict.fromkeys(manifests)),
                "policy": {"name": self._grounds.policy.name, "sha256": self._grounds.policy.digest},
                **self._asked(),
                "answers": self._answers if answers is None else answers,
                "verdict": result.verdict.value,
                "checks": [asdict(check) for check in result.checks],
            }
        )

    def _asked(self) -> dict[str, Any]:
        made = self._challenge.made
        return {
            "made": made and made.isoformat(),
            "nonce": base64.b64encode(self._challenge.nonce).decode(),
            "secret": base64.b64encode(self._challenge.secret).decode(),
            "pcrs": sorted(self._challenge.selection[BANK]),
            "banks": list(self._challenge.selection),
        }

    def documents(self) -> dict[str, bytes]:
        """Return what the verdict rests on, as the ledger keeps it: see `case_file`.

        Only fields that were read, and hence are bounded, are kept. The parts that differ little from one attestation
        to the next are documents of their own, so that the ledger keeps them once.
        """
        identity, evidence = self._answers
        return {
            **self._asked_and_policy(self.result.references),
            **answer_documents(identity, evidence, self.hydration),
        }

    def unreadable(self, printed: Optional[str] = None) -> dict[str, Any]:
        """Return what came in place of answers that can be read, ``printed`` where it was not even JSON; its size is
        bounded by `case_file.MALFORMED_LIMIT`.
        """
        answers: dict[str, Any] = dict(zip(("identity", "evidence"), self._answers))
        return unreadable_answers(answers if printed is None else {**answers, "printed": printed})

    def documents_of_unreadable(self, answers: Mapping[str, Any]) -> dict[str, bytes]:
        """Return the same as the ledger keeps it, so that a reader that understands it can judge it some day."""
        return {**self._asked_and_policy(self._grounds.references), "answers": canonical(answers)}

    def _asked_and_policy(self, references: Sequence[Reference]) -> dict[str, bytes]:
        challenge = {"version": 1, "judged": self._grounds.now.isoformat(), **self._asked()}
        return {
            **reference_documents(references),
            "challenge": canonical(challenge),
            "policy": canonical(policy_document(self._grounds)),
        }


def check_pcrs(pcrs: Sequence[int]) -> Optional[str]:
    """Return what is wrong with PCRs that an operator wants to ask for, or None."""
    missing = [pcr for pcr in REQUIRED_PCRS if pcr not in pcrs]
    if missing:
        return f"PCR {', '.join(map(str, missing))} must be among them"
    if any(pcr in RESETTABLE_PCRS or not 0 <= pcr < 24 for pcr in pcrs):
        return "there are only PCRs 0 to 23, and 16 and 23 prove nothing because anyone can reset them"
    return "a PCR is named twice" if len(set(pcrs)) != len(pcrs) else None
