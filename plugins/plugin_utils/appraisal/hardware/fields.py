# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The layout that processors use: little endian, fixed places, reserved bytes."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from ..errors import AppraisalError
from ..structures import Reader


class Fields(Reader):
    """A reader of numbers in little endian."""

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "little")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def zeros(self, count: int) -> None:
        """Pass over reserved bytes, which must be zero."""
        if any(self.take(count)):
            raise AppraisalError("malformed", f"the {self._what} has reserved bytes that are not zero")


def ecdsa_signature(raw: bytes) -> bytes:
    """Return r and s, of equal length and big endian, as ``cryptography`` takes them."""
    half = len(raw) // 2
    return encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))
