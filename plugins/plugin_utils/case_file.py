# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the ledger keeps of one attestation, written after it and read again to judge it once more.

======================  =====================================================================
``manifest``            that of the image that ran, byte for byte, and ``manifest-signature``
``manifest-of-origin``  that of the image that made the volume, where it is another one, with its signature
``manifest-of-recovery``  the same of the image in whose initrd the volume was recovered last
``challenge``           nonce, secret, PCRs, and the time of the judgement
``policy``              the appraisal policy, authorities, roads, pins, approval, the collateral of the processors'
                        maker, and what else was expected
``identity``            the answer of the first round
``evidence``            the answer of the second round but for the three parts below
``firmware-log``        as the machine sent them: base64
``userspace-log``
``token``
``answers``             in place of the four before: what could not be read, up to `MALFORMED_LIMIT`
``result``              what came of it
======================  =====================================================================
"""

from __future__ import annotations

import datetime
import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any, Iterator, Mapping, Optional, Sequence

from cryptography import x509

from .appraisal.case import Challenge, Grounds
from .appraisal.documents import parse_json
from .appraisal.errors import AppraisalError
from .appraisal.evidence import Hydration, parse_evidence, parse_identity
from .appraisal.fields import Fields
from .appraisal.judgement import Result, appraise
from .appraisal.policy import Policy
from .appraisal.reference import BANK, Reference, load_reference, parse_manifest
from .appraisal.replay import LogCache
from .appraisal.roads.trust import RoadName
from .appraisal.structures import HASH_IDS, PCR_COUNT
from .kept_policy import kept_policy
from .ledger.documents import DOCUMENT_LIMIT

_PARTS = {
    "firmware-log": "firmware_log",
    "userspace-log": "userspace_log",
    "token": "token",
    "recovery": "recovery",
}
_IDENTITY = ("endorsement", "endorsement_certificate", "attestation")
_EVIDENCE = ("activated", "quote", "pcrs", "anchor", "userspace_log_complete", "header", "platform")
#: Names of the documents with the manifests that were used, in the order of `Result.references`.
_MANIFESTS = tuple((name, f"{name}-signature") for name in ("manifest", "manifest-of-origin", "manifest-of-recovery"))
#: Bytes that are kept of answers that could not be read. Honest ones have half of that.
MALFORMED_LIMIT = 256 * 1024
#: The code of what was recorded without anything to judge it by again.
NO_DOCUMENTS = "no-documents"


@dataclass(frozen=True)
class Today:
    """What an operator judges the past by; None takes what was recorded, which whoever wrote the ledger chose."""

    manifest_keys: Optional[Sequence[bytes]] = None
    authorities: Optional[Sequence[x509.Certificate]] = None
    policy: Optional[Policy] = None
    #: With a policy: the moment as of which verdicts must still count. None does not ask for that.
    now: Optional[datetime.datetime] = None
    #: Those of the platforms' roads, as `Allowed.authorities`.
    platforms: Optional[Mapping[RoadName, Sequence[x509.Certificate]]] = None
    #: Machines of one image share their logs; the cache is as small as that of one attestation.
    cache: LogCache = field(default_factory=LogCache)


def reference_documents(references: Sequence[Reference]) -> dict[str, bytes]:
    """Return the manifests that a verdict rests on, with their signatures; that of the image that runs is the first."""
    found: dict[str, bytes] = {}
    for reference, (name, signature) in zip(references, _MANIFESTS):
        if not found or reference is not references[0]:
            found.update({name: reference.manifest, signature: reference.signature})
    return found


def answer_documents(
    identity: Mapping[str, Any], evidence: Mapping[str, Any], hydration: Optional[Hydration]
) -> dict[str, bytes]:
    """Return both answers as documents. They must have been parsed without complaint."""
    small = {name: evidence[name] for name in _EVIDENCE if evidence.get(name) is not None}
    if hydration is not None:
        small["hydration"] = {"hydrated": hydration.hydrated, "total": hydration.total}
    return {
        "identity": canonical({name: identity[name] for name in _IDENTITY if identity.get(name) is not None}),
        "evidence": canonical(small),
        **{name: str(evidence[field]).encode() for name, field in _PARTS.items() if evidence.get(field) is not None},
    }


def unreadable_answers(answers: Mapping[str, Any]) -> dict[str, Any]:
    """Return answers that could not be read: as they are, or where they are long, their beginning and their digest.

    A text that was not even JSON is among them by the name ``printed``.
    """
    whole = canonical(answers)
    if len(whole) <= MALFORMED_LIMIT:
        return {"version": 1, **answers}
    digest = hashlib.sha256(whole).hexdigest()
    # In canonical JSON again, a character takes two at most.
    beginning = whole[: MALFORMED_LIMIT // 2].decode()
    return {"version": 1, "length": len(whole), "sha256": digest, "beginning": beginning}


def judge_again(documents: Mapping[str, bytes], today: Today) -> Result:
    """Appraise kept documents by the rules of now, as of the time of then. Raises ``AppraisalError``.

    A ledger is no better than whoever could write it: nothing in the documents is believed to be well-formed.
    """
    answers = {"answers"} if "answers" in documents else {"identity", "evidence"}
    missing = {"manifest", "manifest-signature", "challenge", "policy", *answers} - set(documents)
    if missing:
        raise AppraisalError(NO_DOCUMENTS, f"nothing was kept that could be judged again: {', '.join(sorted(missing))}")
    try:
        challenge, now = _challenge(documents["challenge"])
        grounds = _grounds(documents, now, today)
        identity, evidence = _answers(documents)
        return appraise(parse_identity(identity), parse_evidence(evidence), challenge, grounds)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise AppraisalError("malformed", "what was kept is not what an attestation leaves behind") from error


def policy_of(documents: Mapping[str, bytes], today: Today) -> Policy:
    """Return the policy that `judge_again` judged these documents by."""
    return today.policy or kept_policy(_read(documents["policy"], "policy")).policy


def nonce_of(challenge: bytes) -> Optional[bytes]:
    """Return the nonce of a kept challenge, which is the part of it that the TPM signed; None where it has none."""
    try:
        return Fields(_read(challenge, "challenge"), "challenge").binary("nonce", 64)
    except AppraisalError:
        return None


def _answers(documents: Mapping[str, bytes]) -> tuple[Any, Any]:
    """Return both answers, as they came."""
    if "answers" in documents:
        found = _read(documents["answers"], "answers")
        if "beginning" in found:
            raise AppraisalError(NO_DOCUMENTS, "the answers could not be read, and only their beginning was kept")
        if "printed" in found:
            raise AppraisalError("malformed", "the machine's answer is not JSON")
        return found.get("identity"), found.get("evidence")
    evidence = dict(_read(documents["evidence"], "evidence"))
    evidence.update((field, documents[name].decode()) for name, field in _PARTS.items() if name in documents)
    return _read(documents["identity"], "identity"), evidence


def canonical(found: object) -> bytes:
    """Return canonical JSON: names sorted, no white space, ASCII."""
    return json.dumps(found, sort_keys=True, separators=(",", ":")).encode()


def _read(raw: bytes, what: str) -> dict[str, Any]:
    found = parse_json(raw, what, DOCUMENT_LIMIT)
    if not isinstance(found, dict):
        raise AppraisalError("malformed", f"the {what} is not an object")
    return found


def _challenge(raw: bytes) -> tuple[Challenge, datetime.datetime]:
    """Return what was asked and when it was judged. The first challenges neither named their bank nor their time."""
    found = {"banks": [BANK], "made": None, **_read(raw, "challenge")}
    fields = Fields(found, "challenge")
    fields.only("version", "made", "judged", "nonce", "secret", "pcrs", "banks")
    pcrs, banks = found["pcrs"], found["banks"]
    known = set(banks) <= set(HASH_IDS) and all(type(pcr) is int and 0 <= pcr < PCR_COUNT for pcr in pcrs)
    if fields.number("version", 1) != 1 or not known:
        raise AppraisalError("unsupported", "the challenge is not one of version 1")
    made = None if fields.absent("made") else fields.moment("made")
    selection = dict.fromkeys(banks, frozenset(pcrs))
    return Challenge(fields.binary("nonce", 64), fields.binary("secret", 64), selection, made), fields.moment("judged")


def _grounds(documents: Mapping[str, bytes], now: datetime.datetime, today: Today) -> Grounds:
    kept = kept_policy(_read(documents["policy"], "policy"))
    allowed = kept.allowed
    if today.policy is not None:
        allowed = replace(allowed, roads=today.policy.roads)
    if today.platforms is not None:
        allowed = replace(allowed, authorities=today.platforms)
    return Grounds(
        tuple(_references(documents, today)),
        kept.authorities if today.authorities is None else tuple(today.authorities),
        now,
        strategy=kept.strategy,
        endorsement_key=kept.endorsement_key,
        allowed=allowed,
        policy=today.policy or kept.policy,
        cache=today.cache,
    )


def _references(documents: Mapping[str, bytes], today: Today) -> Iterator[Reference]:
    for name, signature in _MANIFESTS:
        if name in documents:
            yield _reference(documents[name], documents[signature], today.manifest_keys)


def _reference(manifest: bytes, signature: bytes, keys: Optional[Sequence[bytes]]) -> Reference:
    if keys is None:
        return parse_manifest(manifest)
    refused = AppraisalError("bad-signature", "no key was given for the manifest")
    for key in keys:
        try:
            return load_reference(manifest, signature, key)
        except AppraisalError as error:
            refused = error
    raise refused
