# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A header as a report: read, parsed and judged, and never an exception for what the disk says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Optional

from .area import read_area
from .fields import printable
from .header import Header, HeaderError
from .policy import Expectation, Judgement, Reason, Violation, judge

#: A text of the JSON that is longer is cut in the report: no field that means anything has one.
_LONGEST = 80


@dataclass(frozen=True)
class Inspection:
    """``digest`` is None where the device ends before the data would begin, ``header`` where it is absent or
    malformed. ``length`` is how many bytes of the header area there are.
    """

    present: bool
    length: int
    digest: Optional[bytes]
    defect: Optional[HeaderError]
    header: Optional[Header]
    expectation: Expectation

    def report(self) -> dict[str, Any]:
        """Return the report in types that JSON has."""
        header = self.header
        judgement = Judgement(()) if header is None else self._judge(header)
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
            "accepted": header is not None and judgement.accepted,
            "violations": [
                {"reason": v.reason.value, "where": v.where, "found": v.found} for v in judgement.violations
            ],
            "more_violations": judgement.more,
        }

    def _judge(self, header: Header) -> Judgement:
        """A header may be sound where the device ends before its keyslots or data do."""
        judgement, offset = judge(header, self.expectation), self.expectation.layout.offset
        if self.length >= offset:
            return judgement
        short = Violation(Reason.DEVICE_SIZE, "device", f"{self.length} bytes, and data from byte {offset} on")
        return Judgement((short, *judgement.violations), judgement.more)


def inspect(path: str, expectation: Expectation, offset: int = 0) -> Inspection:
    """Read the header of the volume at byte ``offset`` of a device or file once, and look at it.

    Raises ``FdeError`` when it cannot be read.
    """
    size = expectation.layout.offset
    area = read_area(path, size, offset)
    length = len(area.content)
    digest = area.digest if length == size else None
    if not area.present:
        return Inspection(False, length, digest, None, None, expectation)
    try:
        return Inspection(True, length, digest, None, area.header(), expectation)
    except HeaderError as error:
        return Inspection(True, length, digest, error, None, expectation)


def _metadata(metadata: Mapping[str, Any]) -> Any:
    """The JSON without the content of tokens, which can be long and means something to their owners only."""
    tokens = {
        name: {"type": token["type"], "keyslots": token.get("keyslots")} for name, token in metadata["tokens"].items()
    }
    return _reported({**metadata, "tokens": tokens})


def _reported(value: Any) -> Any:
    """A part of the JSON as it may be printed: no long texts, and nothing that a console would obey."""
    if isinstance(value, dict):
        return {_text(name): _reported(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_reported(entry) for entry in value]
    if isinstance(value, str):
        return _text(value)
    return value


def _text(text: str) -> str:
    shown = printable(text[: _LONGEST + 1])
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 3] + "..."
