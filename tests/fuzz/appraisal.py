# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verifier: every parser of what a machine sends, and the judgement over one machine's honest answers, damaged."""

from __future__ import annotations

import contextlib
import datetime
from dataclasses import replace
from functools import cache
from typing import Callable

from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal import cbor, event_log, userspace_log
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.case import Challenge, Grounds
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.documents import parse_json
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.endorsement import (
    load_authorities,
    parse_certificate,
    verify_chain,
)
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.errors import FAULT, AppraisalError
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.evidence import (
    Evidence,
    Identity,
    Signed,
    parse_evidence,
    parse_identity,
)
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.certificates import read_certificate
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.hcl import parse_hcl
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.nitrotpm import parse_document
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.snp import parse_report
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.tdx import parse_quote as parse_tdx_quote
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.hardware.tdx import parse_td_report
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.judgement import Result, Verdict, appraise
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.reference import parse_manifest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.replay import LogCache, replay
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.rules.table import DEFAULT_PCRS
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.secure_boot import judge as judge_secure_boot
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import (
    parse_creation,
    parse_nv_certification,
    parse_nv_public,
    parse_public,
    parse_quote,
    parse_signature,
    qualified_name,
)
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.tokens import parse_recovery, parse_token
from ansible_collections.cvm.fde.plugins.plugin_utils.asking import read_result

from .target import SEEDS, Target

REFUSALS = (AppraisalError,)
JSON_LIMIT = 1 << 20


def public(data: bytes) -> None:
    """Read a public area and all that is derived from it."""
    found = parse_public(data)
    assert found.raw == data
    qualified_name(found)
    assert found.key.key_size >= 224


def firmware_log(data: bytes) -> None:
    """Read, replay, and look for the state of Secure Boot."""
    try:
        log = event_log.parse(data)
    except AppraisalError as error:
        if error.code != "not-a-tpm-log":
            raise
        log = event_log.parse_confidential(data)
    if log is None:
        return
    for bank in log.banks:
        log.values(bank)
        _or_refused(lambda bank=bank: judge_secure_boot(log, bank))
    _or_refused(lambda: log.boundary)


def systemd_log(data: bytes) -> None:
    """Read and replay behind an honest firmware's log."""
    log = userspace_log.parse(data)
    firmware = event_log.parse((SEEDS / "firmware_log/honest").read_bytes())
    assert firmware is not None
    replay(firmware, log, "sha256")


def certificate(data: bytes) -> None:
    """Read a certificate in both of the ways there are, and look for a chain from it."""
    grounds = honest()[3]
    _or_refused(lambda: verify_chain(parse_certificate(data), grounds.authorities, (), grounds.now))
    read_certificate(data)


def endorsement_certificate(data: bytes) -> None:
    """Let a machine that is honest otherwise be judged with another certificate of its endorsement key."""
    identity, evidence, challenge, grounds = honest()
    _judged(replace(identity, endorsement_certificate=data), evidence, challenge, grounds)


def _or_refused(read: Callable[[], object]) -> None:
    with contextlib.suppress(AppraisalError):
        read()


@cache
def honest() -> tuple[Identity, Evidence, Challenge, Grounds]:
    """Return one machine's honest answers and what they are judged by."""
    identity = parse_identity(parse_json((SEEDS / "identity/honest").read_bytes(), "identity", JSON_LIMIT))
    evidence = parse_evidence(parse_json((SEEDS / "evidence/honest").read_bytes(), "evidence", JSON_LIMIT))
    grounds = Grounds(
        references=(parse_manifest((SEEDS / "manifest/manifest.json").read_bytes()),),
        authorities=load_authorities((SEEDS / "authority/ca.pem").read_bytes()),
        now=datetime.datetime(2027, 1, 1, tzinfo=datetime.timezone.utc),
        cache=LogCache(8),
    )
    challenge = Challenge(bytes(32), bytes(32), {"sha256": frozenset(DEFAULT_PCRS)}, grounds.now)
    return identity, evidence, challenge, grounds


def judgement(data: bytes) -> None:
    """Damage one part of honest evidence, and let it be judged: nobody may be trusted by other signed words.

    The bytes are edits: which part (1), kind of edit (1), place (2), length (1), and that many bytes.
    """
    identity, evidence, challenge, grounds = honest()
    position = 0
    while position + 5 <= len(data):
        part, kind, place, size = (
            data[position],
            data[position + 1],
            data[position + 2 : position + 4],
            data[position + 4],
        )
        piece = data[position + 5 : position + 5 + size]
        position += 5 + size
        identity, evidence = _damaged(identity, evidence, part, kind, int.from_bytes(place, "big"), piece)
    result = _judged(identity, evidence, challenge, grounds)
    before = honest()[1]
    if result.verdict is Verdict.TRUSTED:
        assert evidence.quote.attest == before.quote.attest
        assert evidence.values == before.values
        assert evidence.anchor is not None and before.anchor is not None
        assert evidence.anchor.attest == before.anchor.attest
        assert evidence.token is not None and before.token is not None
        assert parse_token(evidence.token).claims == parse_token(before.token).claims


def _judged(identity: Identity, evidence: Evidence, challenge: Challenge, grounds: Grounds) -> Result:
    """Judge, and let no fault of the verifier pass for one of the machine."""
    result = appraise(identity, evidence, challenge, grounds)
    assert not [check for check in result.checks if check.reason.startswith(FAULT)]
    return result


def _damaged(
    identity: Identity, evidence: Evidence, part: int, kind: int, place: int, piece: bytes
) -> tuple[Identity, Evidence]:
    def edit(raw: bytes) -> bytes:
        at = place % (len(raw) + 1)
        return raw[:at] + (b"" if kind % 3 == 0 else piece) + raw[at + (0 if kind % 3 == 1 else len(piece)) :]

    def signed(found: Signed) -> Signed:
        if kind & 4:
            return replace(found, attest=edit(found.attest))
        return replace(found, signature=edit(found.signature))

    if part % 9 == 0:
        return replace(identity, endorsement=edit(identity.endorsement)), evidence
    if part % 9 == 1:
        return replace(identity, attestation=edit(identity.attestation)), evidence
    if part % 9 == 2:
        return replace(identity, endorsement_certificate=edit(identity.endorsement_certificate or b"")), evidence
    if part % 9 == 3:
        return identity, replace(evidence, quote=signed(evidence.quote))
    if part % 9 == 4:
        return identity, replace(evidence, anchor=evidence.anchor and signed(evidence.anchor))
    if part % 9 == 5:
        return identity, replace(evidence, firmware_log=edit(evidence.firmware_log))
    if part % 9 == 6:
        return identity, replace(evidence, userspace_log=edit(evidence.userspace_log))
    if part % 9 == 7:
        return identity, replace(evidence, token=edit(evidence.token or b""))
    if kind & 8:
        return identity, replace(evidence, activated=edit(evidence.activated))
    values = dict(evidence.values.get("sha256", {}))
    values[place % 24] = edit(values.get(place % 24, b""))
    return identity, replace(evidence, values={"sha256": values})


LOGS = ("eventlogs/*",)
TARGETS = (
    Target("quote", parse_quote, REFUSALS, ("quote",), limit=4200),
    Target("nv_certification", parse_nv_certification, REFUSALS, ("nv_certification",), limit=4200),
    Target("creation", parse_creation, REFUSALS, ("quote",), limit=4200, strict=False),
    Target("public", public, REFUSALS, ("public",), limit=4200),
    Target("nv_public", parse_nv_public, REFUSALS, ("public",), limit=4200, strict=False),
    Target("signature", parse_signature, REFUSALS, ("signature",), limit=4200),
    Target("firmware_log", firmware_log, REFUSALS, ("firmware_log",), LOGS),
    Target("userspace_log", systemd_log, REFUSALS, ("userspace_log",), words=(b'"pcr"', b'"nv_index"', b'"digests"')),
    Target("hcl", parse_hcl, REFUSALS, ("hcl",)),
    Target("snp", parse_report, REFUSALS, ("snp",), ("hardware/*attestation.bin",), limit=4200),
    Target("tdx", parse_tdx_quote, REFUSALS, ("tdx",)),
    Target("td_report", parse_td_report, REFUSALS, ("td_report",), limit=4200),
    Target("nitro", parse_document, REFUSALS, ("nitro",)),
    Target("cbor", lambda data: cbor.decode(data, "item", 16384, open_map=True), REFUSALS, ("nitro",), strict=False),
    Target("certificate", certificate, REFUSALS, ("certificate",), ("hardware/*",), limit=8192),
    Target("endorsement_certificate", endorsement_certificate, (), ("certificate", "timeless"), limit=8192),
    Target("identity", lambda data: parse_identity(parse_json(data, "identity", JSON_LIMIT)), REFUSALS, ("identity",)),
    Target("evidence", lambda data: parse_evidence(parse_json(data, "evidence", JSON_LIMIT)), REFUSALS, ("evidence",)),
    Target("token", parse_token, REFUSALS, ("token",)),
    Target("recovery", parse_recovery, REFUSALS, ("token",), strict=False, words=(b'"recovered"', b'"recovery"')),
    Target("manifest", parse_manifest, REFUSALS, ("manifest",)),
    Target(
        "result",
        lambda data: read_result(data.decode("utf-8", "surrogateescape"), data.decode("latin-1")),
        REFUSALS,
        ("identity", "evidence"),
    ),
    Target("judgement", judgement, (), limit=512),
)
