# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What platform makers put into extensions of their certificates: a few values of DER, read strictly.

Source: ITU-T X.690, sections 8 and 10 (definite lengths in the shortest form).
"""

from __future__ import annotations

from ..errors import AppraisalError

BOOLEAN = 0x01
INTEGER = 0x02
OCTET_STRING = 0x04
UTF8_STRING = 0x0C
IA5_STRING = 0x16
SEQUENCE = 0x30
CONTEXT = 0xA0


class Values:
    """Takes the values inside ``data`` one after the other. Every method raises ``AppraisalError``."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self._position = 0

    def _malformed(self) -> AppraisalError:
        return AppraisalError("malformed", f"the {self._what} is not the DER that it should be")

    @property
    def tag(self) -> int:
        """The tag of the next value; 0, which no value has, at the end."""
        return self._data[self._position] if self._position < len(self._data) else 0

    def take(self, tag: int) -> bytes:
        """Return the content of the next value, which must have this tag."""
        if self.tag != tag:
            raise self._malformed()
        head = self._position + 2
        length = int.from_bytes(self._data[head - 1 : head], "big")
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(self._data[head : head + size], "big")
            if size not in (1, 2) or length < (0x80 if size == 1 else 0x100):
                raise self._malformed()
            head += size
        if head + length > len(self._data):
            raise self._malformed()
        self._position = head + length
        return self._data[head : head + length]

    def inside(self, tag: int) -> Values:
        """Return the values inside the next value."""
        return Values(self.take(tag), self._what)

    def integer(self) -> int:
        """Return the next value, a number that is not negative."""
        raw = self.take(INTEGER)
        if not raw or raw[0] & 0x80 or (len(raw) > 1 and raw[0] == 0 and not raw[1] & 0x80) or len(raw) > 9:
            raise self._malformed()
        return int.from_bytes(raw, "big")

    def boolean(self) -> bool:
        raw = self.take(BOOLEAN)
        if raw not in (b"\0", b"\xff"):
            raise self._malformed()
        return raw != b"\0"

    def text(self, tag: int = UTF8_STRING) -> str:
        """Return the next value, text of printable ASCII: names of zones, projects and products have nothing else."""
        raw = self.take(tag)
        if any(not 0x20 < byte < 0x7F for byte in raw):
            raise self._malformed()
        return raw.decode("ascii")

    def end(self) -> None:
        """Refuse values that are left over."""
        if self._position != len(self._data):
            raise self._malformed()
