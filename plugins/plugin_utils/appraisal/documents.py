# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""JSON from strangers: bounded in size and depth, without the ambiguities that two readers may resolve differently."""

from __future__ import annotations

import json
from typing import Any

from .errors import AppraisalError

#: Deeper than anything we read (the deepest, a manifest, has four levels).
DEPTH_LIMIT = 8
#: Integers beyond 64 bits have no meaning in our documents, and converting very long ones takes quadratic time.
_DIGIT_LIMIT = 20


def parse_json(raw: bytes, what: str, limit: int) -> Any:
    """Read JSON of at most ``limit`` bytes.

    Refused, by ``AppraisalError``: a name twice in one object, NaN and infinities, numbers of more than 20 digits,
    nesting deeper than 8, text that is not Unicode (invalid UTF-8, half a surrogate pair).
    """
    if len(raw) > limit:
        raise AppraisalError("malformed", f"the {what} is longer than {limit} bytes")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise AppraisalError("malformed", f"the {what} has an object with the same name twice")
        return found

    def integer(digits: str) -> int:
        if len(digits) > _DIGIT_LIMIT:
            raise AppraisalError("malformed", f"the {what} has a number that is too long")
        return int(digits)

    def no_constant(_name: str) -> Any:
        raise AppraisalError("malformed", f"the {what} has a number that is not one")

    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=once, parse_int=integer, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise AppraisalError("malformed", f"the {what} is not JSON") from error
    _shallow(found, what, DEPTH_LIMIT)
    return found


def _shallow(found: Any, what: str, left: int) -> None:
    """Refuse nesting deeper than ``left`` and text that cannot be encoded again."""
    if isinstance(found, str) and not found.isascii():
        try:
            found.encode()
        except UnicodeEncodeError as error:
            raise AppraisalError("malformed", f"the {what} has text that is not Unicode") from error
    if not isinstance(found, (dict, list)):
        return
    if left == 0:
        raise AppraisalError("malformed", f"the {what} is nested deeper than {DEPTH_LIMIT} levels")
    inner = [*found.keys(), *found.values()] if isinstance(found, dict) else found
    for part in inner:
        _shallow(part, what, left - 1)
