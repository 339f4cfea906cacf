# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A reference set from a unified kernel image alone: what machines that boot it may show.

It has the fields of a manifest that a verifier reads, and no others: the disk is not known here.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Mapping, Optional

from ..agent.configuration import parse
from ..errors import FdeError
from .command_line import root_hash_of
from .manifest import VERSION
from .prediction import BANKS, predicted
from .secure_boot import Variable, fingerprint, read_der
from .uki import describe_sections, parse_uki

#: The first stub that measures its sections into PCR 11.
OLDEST_STUB = 252


@dataclass(frozen=True)
class Request:
    """What a set is made from. ``certificate`` (DER) is the entry of db that admits the image; it and ``variables`` may
    be unknown. Times are as RFC 3339 writes them.
    """

    name: str
    uki: bytes
    variables: Optional[Mapping[Variable, bytes]] = None
    certificate: Optional[bytes] = None
    secure_boot: bool = True
    not_before: Optional[str] = None
    not_after: Optional[str] = None


def reference_set(request: Request) -> dict[str, Any]:
    """Return the set. Raises ``FdeError`` for an image that is not one of ours, or not admitted by the variables."""
    uki = parse_uki(request.uki, request.name, OLDEST_STUB)
    if ".pcrpkey" not in uki.sections:
        raise FdeError(request.name, "it has no key for signed PCR policies (.pcrpkey)", "Build it with ukify")
    public_key = uki.sections[".pcrpkey"].rstrip(b"\0")
    found: dict[str, Any] = {
        "version": VERSION,
        "name": request.name,
        "strategy": parse(uki.command_line).strategy.value,
        "root": {"hash": root_hash_of(uki.command_line)},
        "uki": {
            "sha256": hashlib.sha256(request.uki).hexdigest(),
            "authenticode_sha256": uki.image.authenticode().hex(),
            "stub_version": uki.stub_version,
            "command_line": uki.command_line,
            "sections": describe_sections(uki),
        },
        "pcr_policy": {
            "public_key": public_key.decode("ascii"),
            "fingerprint": fingerprint(read_der(public_key, "PUBLIC KEY", ".pcrpkey")),
        },
        "pcrs": {
            bank: predicted(uki, request.variables, request.certificate, bank, request.secure_boot) for bank in BANKS
        },
    }
    if request.certificate is not None:
        found["secure_boot"] = {"signer_sha256": fingerprint(request.certificate)}
    return _with_validity(found, request.not_before, request.not_after)


def limited(
    manifest: bytes, subject: str, name: Optional[str], not_before: Optional[str], not_after: Optional[str]
) -> dict[str, Any]:
    """Return the set in a manifest under another name, or with a period in which it is valid. Raises ``FdeError``."""
    try:
        found: Any = json.loads(manifest)
    except (ValueError, RecursionError) as error:
        raise FdeError(subject, "it is not JSON", "Name the manifest of a sealed image") from error
    if not isinstance(found, dict) or found.get("version") != VERSION or "pcrs" not in found:
        raise FdeError(subject, "it is not a manifest of a known version", "Name the manifest of a sealed image")
    return _with_validity({**found, "name": name or found.get("name")}, not_before, not_after)


def _with_validity(found: dict[str, Any], not_before: Optional[str], not_after: Optional[str]) -> dict[str, Any]:
    limits = {"not_before": not_before, "not_after": not_after}
    for name, text in limits.items():
        _check_moment(name, text)
    return {**found, "validity": limits} if not_before or not_after else found


def _check_moment(name: str, text: Optional[str]) -> None:
    try:
        if text is not None:
            datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z")
    except ValueError as error:
        raise FdeError(name, "it is not a time with its zone", "Write it as 2026-12-01T00:00:00Z") from error
