# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control node's half of attestation: it chooses what is asked, carries the questions, and judges the answers."""

from __future__ import annotations

import datetime
import hashlib
import os
import tempfile
import time
import urllib.parse
from typing import TYPE_CHECKING, Any, Optional

from ansible.errors import AnsibleActionFail

from ..module_utils.errors import certain
from ..plugin_utils.appraisal.case import Grounds
from ..plugin_utils.appraisal.ear import attestation_result
from ..plugin_utils.appraisal.errors import AppraisalError
from ..plugin_utils.appraisal.judgement import Result, Status, Verdict, refused
from ..plugin_utils.appraisal.policy import Freshness, Policy
from ..plugin_utils.appraisal.roads.first_use import Approval
from ..plugin_utils.appraisal.roads.trust import RoadName
from ..plugin_utils.appraisal.rules.table import DEFAULT_PCRS
from ..plugin_utils.asking import AskingAction, Unanswered
from ..plugin_utils.attestation import Attestation, check_pcrs
from ..plugin_utils.control_node import authorities_of, import_early, imported, told
from ..plugin_utils.files import ledger_at, located, reader
from ..plugin_utils.naming import Naming
from ..plugin_utils.operator import PLATFORM_CA_OPTIONS, allowed_from, policy_from, references_from
from ..plugin_utils.report import check_entry, entry, reasons, unjudged

if TYPE_CHECKING:
    from ..plugin_utils.ledger.ledger import Ledger
    from ..plugin_utils.recording import Recorder

import_early("ledger.ledger", "recording")

ARGUMENTS = {
    "manifest": {"type": "list", "elements": "path", "required": True},
    "manifest_signature": {"type": "list", "elements": "path"},
    "policy": {"type": "path"},
    "manifest_key": {"type": "path", "required": True, "no_log": False},
    "endorsement_ca": {"type": "list", "elements": "path", "default": []},
    "platform_ca": {"type": "dict", "options": PLATFORM_CA_OPTIONS},
    "endorsement_key": {"type": "str", "no_log": False},
    "roads": {
        "type": "list",
        "elements": "str",
        "choices": [road.value for road in RoadName],
    },
    "pinned_ek": {"type": "list", "elements": "str", "default": [], "no_log": False},
    "tdx_collateral": {
        "type": "dict",
        "options": {
            "tcb_info": {"type": "list", "elements": "path", "required": True},
            "enclave_identity": {"type": "path", "required": True},
            "issuer_chain": {"type": "path", "required": True},
        },
    },
    "ledger": {"type": "str"},
    "strategy": {"type": "str", "choices": ["clone", "overlay", "copy", "ephemeral"]},
    "pcrs": {"type": "list", "elements": "int", "default": list(DEFAULT_PCRS)},
    "require": {"type": "str", "choices": ["trusted", "nothing"], "default": "trusted"},
    "evidence_dir": {"type": "path"},
    "timeout": {"type": "int", "default": 300},
    "tcti": {"type": "str"},
    "firmware_log": {"type": "path"},
    "userspace_log": {"type": "path"},
    "header": {"type": "path"},
    "metadata_service": {"type": "str"},
}
_MODULE = "cvm.fde.attest_round"
#: Passed on to the target as they are; left out, the module's own defaults hold.
_SOURCES = ("tcti", "firmware_log", "userspace_log", "header", "metadata_service")


class ActionModule(AskingAction):
    """Attests one machine."""

    _supports_check_mode = True
    _supports_async = False
    _requires_connection = True
    #: Whether a host that the ledger does not know becomes known.
    _enrols = False

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        del tmp
        args = self._arguments()
        variables = task_vars or {}
        host = str(variables.get("inventory_hostname", "this host"))
        return self._judged(args, variables, host)

    def _arguments(self) -> dict[str, Any]:
        _validation, args = self.validate_argument_spec(argument_spec=ARGUMENTS)
        return dict(args)

    def _judged(self, args: dict[str, Any], variables: dict[str, Any], host: str) -> dict[str, Any]:
        if args["timeout"] < 1:
            raise AnsibleActionFail("timeout: nobody answers in less than a second. Leave the option out for 300")
        policy = self._policy(args)
        recorder = self._recorder(args, host, policy)
        grounds = self._grounds(args, policy, host, recorder)
        attestation = Attestation(grounds, self._pcrs(args))
        try:
            self._hold(attestation, args, variables)
        except Unanswered as error:
            result = refused(Status.UNKNOWN, f"the machine did not answer: {error}")
            judged = self._unjudged(attestation, result, args, host, policy, recorder)
        except AppraisalError as error:
            result = refused(Status.FAILED, error.reason)
            # What was too much to read is too much to keep.
            answers = None if error.code == "too-much" else attestation.unreadable(self.printed)
            judged = self._unjudged(attestation, result, args, host, policy, recorder, answers)
        else:
            judged = self._concluded(attestation, args, host, policy, recorder)
        judged.setdefault("changed", False)
        judged["failed"] = args["require"] == "trusted" and judged["verdict"] != Verdict.TRUSTED.value
        return judged

    def _hold(self, attestation: Attestation, args: dict[str, Any], variables: dict[str, Any]) -> None:
        """Hold both rounds and have them judged."""
        self.deadline = time.monotonic() + args["timeout"]
        sources = {name: str(args[name]) for name in _SOURCES if args.get(name) is not None}
        identity = self.ask(_MODULE, {**attestation.identity_request(), **sources}, variables)
        evidence = self.ask(_MODULE, {**attestation.evidence_request(identity), **sources}, variables)
        attestation.judge(evidence)

    def _concluded(
        self,
        attestation: Attestation,
        args: dict[str, Any],
        host: str,
        policy: Policy,
        recorder: Optional[Recorder],
    ) -> dict[str, Any]:
        """Ask the ledger, if there is one, keep the evidence, and return the task's result."""
        result, added = attestation.result, False
        if recorder is not None:
            with told():
                result, added = recorder.judged(result, attestation.documents())
        judged = self._result(host, result, attestation)
        judged["changed"] = self._enrols and added
        return {**judged, **self._particulars(attestation, result, args, host, policy, attestation.archive(result))}

    def _particulars(
        self,
        attestation: Attestation,
        result: Result,
        args: dict[str, Any],
        host: str,
        policy: Policy,
        archive: Optional[bytes],
    ) -> dict[str, Any]:
        """Return what every result says of the policy, the parts of the machine, and the evidence where some is left,
        which is kept where the operator wants that.
        """
        found: dict[str, Any] = {
            "policy": {"name": policy.name, "sha256": policy.digest},
            "ear": attestation_result(result, policy, attestation.judged_at),
        }
        if archive is not None:
            found["evidence_sha256"] = hashlib.sha256(archive).hexdigest()
            if args["evidence_dir"] is not None and not self._task.check_mode:
                found["evidence_file"] = self._keep(str(args["evidence_dir"]), host, archive)
        return found

    def _result(self, host: str, result: Result, attestation: Attestation) -> dict[str, Any]:
        report = entry(host, result, attestation.hydration)
        return {
            "verdict": result.verdict.value,
            "road": result.road,
            "checks": [check_entry(check) for check in result.checks],
            "claims": dict(result.claims),
            "freshness": result.freshness.value,
            "trust": None if result.trust is None else result.trust.document(),
            "keys": None if result.keys is None else {"ek": result.keys.ek, "ak": result.keys.ak},
            "report": report,
            "msg": _message(report),
        }

    def _unjudged(
        self,
        attestation: Attestation,
        result: Result,
        args: dict[str, Any],
        host: str,
        policy: Policy,
        recorder: Optional[Recorder],
        answers: Optional[dict[str, Any]] = None,
    ) -> dict[str, Any]:
        """Record and return a verdict that rests on nothing, or on ``answers`` that could not be read."""
        (check,) = result.checks
        found = unjudged(host, check.status, check.reason)
        if recorder is not None:
            with told():
                recorder.unjudged(found, {} if answers is None else attestation.documents_of_unreadable(answers))
        archive = None if answers is None else attestation.archive(result, answers)
        return {
            "verdict": found["verdict"],
            "road": found["road"],
            "checks": found["checks"],
            "claims": {},
            "freshness": Freshness.BOOT.value,
            "trust": None,
            "keys": None,
            "report": found,
            "msg": _message(found),
            **self._particulars(attestation, result, args, host, policy, archive),
        }

    def _recorder(self, args: dict[str, Any], host: str, policy: Policy) -> Optional[Recorder]:
        """Open the ledger before anybody is asked. One that is not there fails the task: it may have been taken."""
        if args["ledger"] is None:
            return None
        recording = imported("recording")
        return recording.Recorder(
            self._ledger(args),
            host,
            policy,
            enrol=self._enrols,
            first_use=RoadName.FIRST_USE in policy.roads,
            write=not self._task.check_mode,
        )

    def _ledger(self, args: dict[str, Any]) -> Ledger:
        with told():
            return imported("ledger.ledger").Ledger(ledger_at(self._loader, args["ledger"]))

    def _policy(self, args: dict[str, Any]) -> Policy:
        return policy_from(args["policy"] and str(args["policy"]), args["roads"], reader(self._loader))

    def _grounds(self, args: dict[str, Any], policy: Policy, host: str, recorder: Optional[Recorder]) -> Grounds:
        """Read what is judged by."""
        read = reader(self._loader)

        def approval() -> Optional[Approval]:
            with told():
                return _approval(certain(recorder).ledger, host)

        return Grounds(
            references=references_from(args, read),
            authorities=authorities_of(args["endorsement_ca"], read),
            now=datetime.datetime.now(datetime.timezone.utc),
            strategy=args["strategy"] and str(args["strategy"]),
            endorsement_key=args["endorsement_key"] and str(args["endorsement_key"]),
            allowed=allowed_from(args, host, policy, None if recorder is None else approval, read),
            policy=policy,
        )

    def _pcrs(self, args: dict[str, Any]) -> list[int]:
        pcrs = [int(pcr) for pcr in args["pcrs"]]
        wrong = check_pcrs(pcrs)
        if wrong:
            raise AnsibleActionFail(f"pcrs: {wrong}. Leave the option out to ask for all that matter")
        return pcrs

    def _keep(self, folder: str, host: str, archive: bytes) -> str:
        """Write the evidence to its place at once or not at all, readable for its owner only."""
        real = located(self._loader, folder)
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


def _approval(ledger: Ledger, host: str) -> Optional[Approval]:
    found = ledger.approval(host)
    if found is None:
        return None
    decision: Any = found.record
    return Approval(host, decision.key, decision.operator, found.recorded)


def _message(report: dict[str, Any]) -> str:
    """Return the verdict and the first reasons for it."""
    listed = reasons(report)
    if report["verdict"] == Verdict.TRUSTED.value:
        if report["identity"] == Naming.PINNED.value:
            return "trusted: every check passed, for the machine of this endorsement key"
        return "trusted: every check passed, but endorsement_key is not set, so another machine may have answered"
    more = f" (and {len(listed) - 3} more)" if len(listed) > 3 else ""
    return f"{report['verdict']}: {'; '.join(listed[:3])}{more}"
