# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""JSON objects of a stranger: each field is taken by its name, type, length and one encoding, or not at all."""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import re
import zlib
from dataclasses import dataclass
from typing import Any, Mapping

from .errors import AppraisalError
from .structures import HASH_IDS, PCR_COUNT, STRUCTURE_LIMIT

_HEX = re.compile(r"[0-9a-f]*")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: Names as they are printed and compared: no spaces, no control characters, no markup.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._()+-]{0,63}")


@dataclass(frozen=True)
class Signed:
    """TPMS_ATTEST and TPMT_SIGNATURE."""

    attest: bytes
    signature: bytes


class Fields:
    """A JSON object of a stranger, from which fields are taken by name, type and length."""

    def __init__(self, found: Any, what: str) -> None:
        if not isinstance(found, dict):
            raise AppraisalError("malformed", f"the {what} is not an object")
        self._found: Mapping[str, Any] = found
        self._what = what

    def wrong(self, name: str, why: str) -> AppraisalError:
        return AppraisalError("malformed", f"{name} of the {self._what} {why}")

    def only(self, *names: str) -> None:
        """Refuse fields other than these."""
        if set(self._found) - set(names):
            raise AppraisalError("malformed", f"the {self._what} has a field that does not belong there")

    def absent(self, name: str) -> bool:
        return self._found.get(name) is None

    def plain(self, name: str) -> Any:
        """Return a field as it is, None where it is absent; whoever asks must take it apart."""
        return self._found.get(name)

    def text(self, name: str, limit: int) -> str:
        value = self._found.get(name)
        if not isinstance(value, str) or len(value) > limit:
            raise self.wrong(name, f"is not text of at most {limit} characters")
        return str(value)

    def word(self, name: str) -> str:
        value = self.text(name, 64)
        if not _WORD.fullmatch(value):
            raise self.wrong(name, "is not a plain name")
        return value

    def uuid(self, name: str) -> str:
        value = self.text(name, 36)
        if not _UUID.fullmatch(value):
            raise self.wrong(name, "is not a UUID in lower case")
        return value

    def moment(self, name: str) -> datetime.datetime:
        """Return a field with a time and its zone, as ``isoformat`` writes it."""
        try:
            moment = datetime.datetime.fromisoformat(self.text(name, 40))
        except ValueError as error:
            raise self.wrong(name, "is not a time") from error
        if moment.tzinfo is None:
            raise self.wrong(name, "is a time without its zone")
        return moment

    def number(self, name: str, maximum: int) -> int:
        value = self._found.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= maximum:
            raise self.wrong(name, f"is not a number from 0 to {maximum}")
        return int(value)

    def truth(self, name: str) -> bool:
        value = self._found.get(name)
        if not isinstance(value, bool):
            raise self.wrong(name, "is neither true nor false")
        return value

    def hexadecimal(self, name: str, size: int) -> bytes:
        value = self.text(name, 2 * size)
        if len(value) != 2 * size or not _HEX.fullmatch(value):
            raise self.wrong(name, f"is not {size} bytes in lower-case hexadecimal")
        return bytes.fromhex(value)

    def binary(self, name: str, limit: int) -> bytes:
        """Return a field in base64 of at most ``limit`` bytes."""
        value = self.text(name, (limit + 2) // 3 * 4)
        try:
            found = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise self.wrong(name, "is not base64") from error
        if len(found) > limit:
            raise self.wrong(name, f"is longer than {limit} bytes")
        return found

    def binaries(self, name: str, count: int, limit: int) -> tuple[bytes, ...]:
        """Return a list of at most ``count`` fields in base64, each of at most ``limit`` bytes."""
        listed = self._found.get(name)
        if not isinstance(listed, list) or len(listed) > count:
            raise self.wrong(name, f"is not a list of at most {count}")
        return tuple(Fields({name: entry}, self._what).binary(name, limit) for entry in listed)

    def compressed(self, name: str, limit: int) -> bytes:
        """Return a field in base64 of zlib, of at most ``limit`` bytes unpacked; a missing one is empty."""
        if self.absent(name):
            return b""
        packed = self.binary(name, limit)
        unpacker = zlib.decompressobj()
        try:
            found = unpacker.decompress(packed, limit + 1)
        except zlib.error as error:
            raise self.wrong(name, "is not compressed by zlib") from error
        if len(found) > limit or not unpacker.eof or unpacker.unused_data:
            raise self.wrong(name, f"does not unpack to one stream of at most {limit} bytes")
        return found

    def inner(self, name: str) -> Fields:
        return Fields(self._found.get(name), f"{self._what}'s {name}")

    def signed(self, name: str) -> Signed:
        inner = self.inner(name)
        inner.only("attest", "signature")
        return Signed(inner.binary("attest", STRUCTURE_LIMIT), inner.binary("signature", STRUCTURE_LIMIT))

    def values(self, name: str) -> dict[str, dict[int, bytes]]:
        """Return PCR values: bank → PCR → digest."""
        banks = self.inner(name)
        if len(banks._found) > len(HASH_IDS) or set(banks._found) - set(HASH_IDS):
            raise self.wrong(name, "has a bank that does not exist")
        found: dict[str, dict[int, bytes]] = {}
        for bank in banks._found:
            inner = banks.inner(bank)
            size = hashlib.new(bank).digest_size
            numbers = {str(pcr): pcr for pcr in range(PCR_COUNT)}
            inner.only(*numbers)
            found[bank] = {numbers[pcr]: inner.hexadecimal(pcr, size) for pcr in inner._found}
        return found
