# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A header as a report: read, parsed and judged, and never an exception for what the disk says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Optional

from .area import read_area
from .header import Header, HeaderError
from .policy import Expectation, judge


@dataclass(frozen=True)
class Inspection:
    """``digest`` is None where the device ends before the data would begin, ``header`` where it is absent or
    malformed.
    """

    present: bool
    digest: Optional[bytes]
    defect: Optional[HeaderError]
    header: Optional[Header]
    expectation: Expectation

    def report(self) -> dict[str, Any]:
        """Return the report in types that JSON has."""
        header = self.header
        violations = judge(header, self.expectation).violations if header is not None else ()
        return {
            "present": self.present,
            "digest": None if self.digest is None else self.digest.hex(),
            "sound": header is not None,
            "defect": None if self.defect is None else {"code": self.defect.defect.value, "message": str(self.defect)},
            "uuid": None if header is None else header.uuid,
            "label": None if header is None else header.binary.label,
            "sequence_id": None if header is None else header.binary.sequence_id,
            "metadata_size": None if header is None else header.binary.size,
            "metadata": None if header is None else _metadata(header.metadata),
            "accepted": header is not None and not violations,
            "violations": [{"reason": v.reason.value, "where": v.where, "found": v.found} for v in violations],
        }


def inspect(path: str, expectation: Expectation) -> Inspection:
    """Read the header of a device or file once and look at it. Raises ``FdeError`` when it cannot be read."""
    offset = expectation.layout.offset
    area = read_area(path, offset)
    digest = area.digest if len(area.content) == offset else None
    if not area.present:
        return Inspection(False, digest, None, None, expectation)
    try:
        return Inspection(True, digest, None, area.header(), expectation)
    except HeaderError as error:
        return Inspection(True, digest, error, None, expectation)


def _metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON without the content of tokens, which can be long and means something to their owners only."""
    tokens = {
        name: {"type": token["type"], "keyslots": token.get("keyslots")} for name, token in metadata["tokens"].items()
    }
    return {**metadata, "tokens": tokens}
