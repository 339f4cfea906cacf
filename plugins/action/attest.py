# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control node's half of attestation: it chooses what is asked, carries the questions, and judges the answers."""

from __future__ import annotations

import datetime
import hashlib
import os
import tempfile
import urllib.parse
from typing import Any, Optional

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..plugin_utils.appraisal.case import Grounds
from ..plugin_utils.appraisal.endorsement import load_authorities
from ..plugin_utils.appraisal.errors import AppraisalError
from ..plugin_utils.appraisal.policy import Naming, Status, Verdict
from ..plugin_utils.appraisal.reference import load_reference
from ..plugin_utils.appraisal.rules import DEFAULT_PCRS
from ..plugin_utils.attestation import Attestation, check_pcrs
from ..plugin_utils.report import check_entry, entry, quoted, reasons, unjudged

ARGUMENTS = {
    "manifest": {"type": "path", "required": True},
    "manifest_signature": {"type": "path"},
    "manifest_key": {"type": "path", "required": True, "no_log": False},
    "endorsement_ca": {"type": "list", "elements": "path", "default": []},
    "endorsement_key": {"type": "str", "no_log": False},
    "strategy": {"type": "str", "choices": ["clone", "overlay", "copy"]},
    "pcrs": {"type": "list", "elements": "int", "default": list(DEFAULT_PCRS)},
    "require": {"type": "str", "choices": ["trusted", "nothing"], "default": "trusted"},
    "evidence_dir": {"type": "path"},
    "tcti": {"type": "str"},
    "firmware_log": {"type": "path"},
    "userspace_log": {"type": "path"},
    "header": {"type": "path"},
}
#: Passed on to the target as they are; left out, the module's own defaults hold.
_SOURCES = ("tcti", "firmware_log", "userspace_log", "header")
#: Manifests, keys and authorities are small; a larger file is a mistake.
_FILE_LIMIT = 1024 * 1024


class Unanswered(Exception):
    """The module failed on the target; the text is the target's own, made harmless."""


class ActionModule(ActionBase):
    """Attests one machine."""

    _supports_check_mode = True
    _supports_async = False
    _requires_connection = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        del tmp
        _validation, args = self.validate_argument_spec(argument_spec=ARGUMENTS)
        variables = task_vars or {}
        host = str(variables.get("inventory_hostname", "this host"))
        manifest = self._read(args["manifest"])
        attestation = Attestation(self._grounds(args, manifest), self._pcrs(args))
        try:
            judged = self._attest(attestation, args, variables, host, manifest)
        except Unanswered as error:
            judged = self._unjudged(host, Status.UNKNOWN, f"the machine did not answer: {error}")
        except AppraisalError as error:
            judged = self._unjudged(host, Status.FAILED, error.reason)
        judged["changed"] = False
        judged["failed"] = args["require"] == "trusted" and judged["verdict"] != Verdict.TRUSTED.value
        return judged

    def _attest(
        self, attestation: Attestation, args: dict[str, Any], variables: dict[str, Any], host: str, manifest: bytes
    ) -> dict[str, Any]:
        """Hold both rounds and return the task's result."""
        sources = {name: str(args[name]) for name in _SOURCES if args.get(name) is not None}
        identity = self._ask(attestation.identity_request(), sources, variables)
        evidence = self._ask(attestation.evidence_request(identity), sources, variables)
        result = attestation.judge(evidence)
        archive = attestation.archive(result, manifest)
        judged: dict[str, Any] = {
            "verdict": result.verdict.value,
            "road": result.road,
            "checks": [check_entry(check) for check in result.checks],
            "claims": dict(result.claims),
            "report": entry(host, result, attestation.hydration),
            "evidence_sha256": hashlib.sha256(archive).hexdigest(),
        }
        judged["msg"] = _message(judged["report"])
        if args["evidence_dir"] is not None and not self._task.check_mode:
            judged["evidence_file"] = self._keep(str(args["evidence_dir"]), host, archive)
        return judged

    def _ask(self, request: dict[str, Any], sources: dict[str, str], variables: dict[str, Any]) -> Any:
        result = self._execute_module(
            module_name="cvm.fde.attest_round", module_args={**request, **sources}, task_vars=variables
        )
        if result.get("unreachable") or result.get("failed") or "answer" not in result:
            raise Unanswered(quoted(result.get("msg", "its module ended without an answer")))
        return result["answer"]

    def _unjudged(self, host: str, status: Status, reason: str) -> dict[str, Any]:
        found = unjudged(host, status, reason)
        return {
            "verdict": found["verdict"],
            "road": found["road"],
            "checks": found["checks"],
            "claims": {},
            "report": found,
            "msg": _message(found),
        }

    def _grounds(self, args: dict[str, Any], manifest: bytes) -> Grounds:
        """Read what is judged by. Whatever is wrong with it is the operator's mistake and fails the task."""
        signature = self._read(args["manifest_signature"] or f"{args['manifest']}.sig")
        try:
            reference = load_reference(manifest, signature, self._read(args["manifest_key"]))
        except AppraisalError as error:
            raise AnsibleActionFail(
                f"{args['manifest']}: {error.reason}. Seal the image again, or name the right files"
            ) from error
        authorities = []
        for path in args["endorsement_ca"]:
            try:
                authorities.extend(load_authorities(self._read(path)))
            except AppraisalError as error:
                raise AnsibleActionFail(f"{path}: {error.reason}. Name a file with certificates in PEM form") from error
        return Grounds(
            reference=reference,
            authorities=tuple(authorities),
            now=datetime.datetime.now(datetime.timezone.utc),
            strategy=args["strategy"] and str(args["strategy"]),
            endorsement_key=args["endorsement_key"] and str(args["endorsement_key"]),
        )

    def _pcrs(self, args: dict[str, Any]) -> list[int]:
        pcrs = [int(pcr) for pcr in args["pcrs"]]
        wrong = check_pcrs(pcrs)
        if wrong:
            raise AnsibleActionFail(f"pcrs: {wrong}. Leave the option out to ask for all that matter")
        return pcrs

    def _read(self, path: str) -> bytes:
        """Return the content of a small file of the control node; relative paths are those of the playbook."""
        real = self._loader.path_dwim(str(path))
        try:
            with open(real, "rb") as file:
                content = file.read(_FILE_LIMIT + 1)
        except OSError as error:
            raise AnsibleActionFail(
                f"{real}: it cannot be read: {error.strerror}. Name a file on the control node"
            ) from error
        if len(content) > _FILE_LIMIT:
            raise AnsibleActionFail(f"{real}: it is larger than {_FILE_LIMIT} bytes. Name the right file")
        return content

    def _keep(self, folder: str, host: str, archive: bytes) -> str:
        """Write the evidence to its place at once or not at all, readable for its owner only."""
        real = self._loader.path_dwim(folder)
        path = os.path.join(real, f"{urllib.parse.quote(host, safe='')}.json")
        try:
            os.makedirs(real, mode=0o700, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=real, prefix=".evidence-")
            with os.fdopen(descriptor, "wb") as file:
                file.write(archive)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise AnsibleActionFail(
                f"{real}: evidence cannot be kept there: {error.strerror}. Name another directory"
            ) from error
        return path


def _message(report: dict[str, Any]) -> str:
    """Return the verdict and the first reasons for it."""
    listed = reasons(report)
    if report["verdict"] == Verdict.TRUSTED.value:
        if report["identity"] == Naming.PINNED.value:
            return "trusted: every check passed, for the machine of this endorsement key"
        return "trusted: every check passed, but endorsement_key is not set, so another machine may have answered"
    more = f" (and {len(listed) - 3} more)" if len(listed) > 3 else ""
    return f"{report['verdict']}: {'; '.join(listed[:3])}{more}"
