# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The boot: do the logs explain the PCRs, and are those the image's."""

from __future__ import annotations

from ..booted import enforced, explain, listed, secure_boot_configuration
from ..case import Case
from ..errors import AppraisalError, Undecided
from ..reference import PHASE_READY
from .rule import SIGNED, Rule


def _firmware_log(case: Case) -> str:
    log = case.grounds.cache.firmware(case.evidence.firmware_log)
    if log is None:
        raise Undecided("the machine's firmware has no event log")
    return f"{len(log.events)} events up to and after leaving the boot services (event {log.boundary})"


def _userspace_log(case: Case) -> str:
    log = case.grounds.cache.userspace(case.evidence.userspace_log)
    if log is None:
        raise Undecided("the machine has no log of systemd's measurements")
    if not case.evidence.userspace_complete:
        raise Undecided("systemd's log is marked incomplete: a writer died")
    return f"{len(log.records)} measurements"


def _log_replay(case: Case) -> str:
    return explain(case.replay, case.evidence.values)


def _secure_boot(case: Case) -> str:
    return enforced(case.replay)


def _pcr_4(case: Case) -> str:
    return listed(case.evidence.values, 4, case.reference.pcr_4)


def _pcr_7(case: Case) -> str:
    explained = "log_replay" in case.passed
    return secure_boot_configuration(case.evidence.values, case.reference, lambda: case.replay if explained else None)


def _pcr_11(case: Case) -> str:
    return listed(case.evidence.values, 11, frozenset((case.reference.pcr_11[PHASE_READY],)))


def _pcr_12(case: Case) -> str:
    return listed(case.evidence.values, 12, case.reference.pcr_12)


def _pcr_13(case: Case) -> str:
    return listed(case.evidence.values, 13, case.reference.pcr_13)


def _pcr_14(case: Case) -> str:
    try:
        return listed(case.evidence.values, 14, case.reference.pcr_14)
    except AppraisalError as error:
        shim = "a shim measures its machine owner keys there, and what they admit was not checked by Secure Boot"
        raise AppraisalError(error.code, f"{error.reason}: {shim}") from error


RULES = (
    Rule("firmware_log", (), _firmware_log),
    Rule("userspace_log", (), _userspace_log),
    Rule("log_replay", (*SIGNED, "firmware_log", "userspace_log"), _log_replay),
    Rule("secure_boot", ("log_replay",), _secure_boot),
    Rule("pcr_4", SIGNED, _pcr_4),
    Rule("pcr_7", SIGNED, _pcr_7),
    Rule("pcr_11", SIGNED, _pcr_11),
    Rule("pcr_12", SIGNED, _pcr_12),
    Rule("pcr_13", SIGNED, _pcr_13),
    Rule("pcr_14", SIGNED, _pcr_14),
)
