# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet's report: one entry a host, as JSON (``docs/schema/report.schema.json``) and as a table for people."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from dataclasses import asdict
from typing import Any, Iterable, Mapping, Optional, Sequence

from .appraisal.evidence import Hydration
from .appraisal.judgement import Check, Result, Status, Verdict, refused
from .appraisal.policy import Freshness
from .naming import UNIQUE, Naming

VERSION = 1
#: Longest piece of a target's own text that is ever repeated.
QUOTE_LIMIT = 200
_SHORT = 12
#: What an anchor says of itself, beside whether it ``matches``.
_ANCHOR = ("state", "generation", "complete", "recoveries", "refusals", "last_refusal")


def entry(host: str, result: Result, hydration: Optional[Hydration]) -> dict[str, Any]:
    """Return a host's entry. Hydration is the machine's own word; all other values were verified, or are None."""
    claims = result.claims
    return {
        "host": host,
        "verdict": result.verdict.value,
        "road": result.road,
        "identity": claims["identity"],
        "reference_set": claims["image"],
        "freshness": result.freshness.value,
        "strategy": claims["strategy"],
        "hydration": None if hydration is None else _hydration(hydration),
        "endorsement_key": claims["endorsement_key"],
        "attestation_key": claims["attestation_key"],
        "volume_key_id": claims["volume_key_id"],
        "root_hash": claims["root_hash"],
        "secure_boot": claims["secure_boot"],
        "pcr_policy": claims["pcr_policy"],
        "anchor": claims["anchor"],
        "checks": [check_entry(check) for check in result.checks],
    }


def unjudged(host: str, status: Status, reason: str) -> dict[str, Any]:
    """Return the entry of a host whose answers could not be judged; ``reason`` must be of our own making or quoted."""
    result = refused(status, reason)
    return {
        "host": host,
        "verdict": result.verdict.value,
        "road": result.road,
        "identity": Naming.UNPINNED.value,
        "reference_set": None,
        "freshness": Freshness.BOOT.value,
        "strategy": None,
        "hydration": None,
        "endorsement_key": None,
        "attestation_key": None,
        "volume_key_id": None,
        "root_hash": None,
        "secure_boot": None,
        "pcr_policy": None,
        "anchor": {**dict.fromkeys(_ANCHOR), "matches": False},
        "checks": [check_entry(check) for check in result.checks],
    }


def check_entry(check: Check) -> dict[str, str]:
    """Return a check as JSON."""
    return {**asdict(check), "status": check.status.value}


def quoted(text: object) -> str:
    """Return a target's own text made harmless: printable ASCII, one line, at most ``QUOTE_LIMIT`` characters."""
    plain = re.sub(r"[^ -~]+", " ", str(text)[: 4 * QUOTE_LIMIT])
    return plain if len(plain) <= QUOTE_LIMIT else f"{plain[:QUOTE_LIMIT]}..."


def fleet(entries: Sequence[Mapping[str, Any]], created: datetime.datetime) -> dict[str, Any]:
    """Return the report over all hosts; a host that shows the keys of another one is trusted no more."""
    shown = {value: Counter(str(one[value]) for one in entries if one[value] is not None) for value in UNIQUE}
    return {
        "version": VERSION,
        "created": created.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "hosts": [_with_uniqueness(entry, shown) for entry in sorted(entries, key=lambda found: str(found["host"]))],
    }


def _with_uniqueness(found: Mapping[str, Any], shown: Mapping[str, Counter[str]]) -> dict[str, Any]:
    checks = list(found["checks"])
    for value, name in UNIQUE.items():
        if shown[value][str(found[value])] > 1:
            clash = check_entry(Check(name, Status.FAILED, "another host of the fleet shows the same"))
            checks = [*(check for check in checks if check["name"] != name), clash]
    clashes = checks != list(found["checks"])
    return {**found, "checks": checks, "verdict": Verdict.UNTRUSTED.value if clashes else found["verdict"]}


def trusted(report: Mapping[str, Any]) -> bool:
    """Tell whether there are hosts and all of them are trusted."""
    hosts = report["hosts"]
    return bool(hosts) and all(host["verdict"] == Verdict.TRUSTED.value for host in hosts)


def reasons(found: Mapping[str, Any]) -> list[str]:
    """Return why a host is not trusted: what failed, or what is unknown where nothing failed."""
    for status in (Status.FAILED, Status.UNKNOWN):
        listed = [f"{check['name']}: {check['reason']}" for check in found["checks"] if check["status"] == status.value]
        if listed:
            return listed
    return []


_COLUMNS = (
    "HOST",
    "VERDICT",
    "IDENTITY",
    "REFERENCE SET",
    "STRATEGY",
    "HYDRATION",
    "VOLUME KEY",
    "ROOT HASH",
    "SECURE BOOT",
    "PCR POLICY",
    "ANCHOR",
)


def table(report: Mapping[str, Any]) -> str:
    """Return the report as text: a row for each host, and below it the reasons of hosts that are not trusted."""
    rows = [_COLUMNS, *(_row(host) for host in report["hosts"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines: list[str] = []
    for row, host in zip(rows, [None, *report["hosts"]]):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        if host is not None and host["verdict"] != Verdict.TRUSTED.value:
            lines.extend(f"  - {reason}" for reason in reasons(host))
    return "\n".join(lines)


def _row(host: Mapping[str, Any]) -> tuple[str, ...]:
    hydration, anchor = host["hydration"], host["anchor"]
    return (
        str(host["host"]),
        str(host["verdict"]),
        str(host["identity"]),
        host["reference_set"] or "-",
        host["strategy"] or "-",
        "-" if hydration is None else f"{hydration['percent']:.1f} %",
        _short(host["volume_key_id"]),
        _short(host["root_hash"]),
        {True: "on", False: "off", None: "-"}[host["secure_boot"]],
        _short(host["pcr_policy"]),
        _anchor(anchor),
    )


def _anchor(anchor: Mapping[str, Any]) -> str:
    if anchor["state"] is None:
        return "-"
    said = f"{anchor['state']}, {'matches' if anchor['matches'] else 'differs'}"
    times = anchor.get("recoveries")
    return f"{said}, recovered {times} times" if times else said


def _short(digest: Optional[str]) -> str:
    return digest[:_SHORT] if digest else "-"


def _hydration(hydration: Hydration) -> dict[str, Any]:
    percent = 100.0 if hydration.total == 0 else round(100.0 * hydration.hydrated / hydration.total, 1)
    return {"hydrated": hydration.hydrated, "total": hydration.total, "percent": percent}


def missing(entries: Mapping[str, Optional[Mapping[str, Any]]]) -> Iterable[dict[str, Any]]:
    """Return an entry for every host: its own, or for one without, that it could not be asked."""
    for host, found in entries.items():
        yield unjudged(host, Status.UNKNOWN, "the host could not be asked") if found is None else dict(found)
