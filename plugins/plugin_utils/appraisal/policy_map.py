# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plain data of an operator's, read strictly: every value by its name and type, and no name that is not known."""

from __future__ import annotations

import datetime
import re
from typing import Any, Mapping, NoReturn, Optional

from .errors import AppraisalError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,63}")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_LIST_LIMIT = 256


class PolicyMap:
    """A mapping from which values are taken by name and type; what is absent (or null) takes the default."""

    def __init__(self, found: Any, path: str) -> None:
        if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
            raise AppraisalError("bad-policy", f"the {path} is not a mapping of names")
        self._found, self._path = found, path

    def wrong(self, name: str, why: str) -> NoReturn:
        raise AppraisalError("bad-policy", f"the {self._path}'s {name} {why}")

    def only(self, *names: str) -> None:
        unknown = sorted(set(self._found) - set(names))
        if unknown:
            raise AppraisalError("bad-policy", f"the {self._path} has the unknown key {unknown[0]!r:.80}")

    def names(self) -> tuple[str, ...]:
        for name in self._found:
            if not _WORD.fullmatch(name):
                self.wrong(repr(name)[:80], "is not a word")
        return tuple(self._found)

    def absent(self, name: str) -> bool:
        return self._found.get(name) is None

    def inner(self, name: str) -> PolicyMap:
        return PolicyMap({} if self.absent(name) else self._found[name], f"{self._path}'s {name}")

    def entries(self, name: str) -> list[PolicyMap]:
        return [PolicyMap(entry, f"{self._path}'s {name}") for entry in self._list(name)]

    def text(self, name: str, default: Optional[str]) -> str:
        value = default if self.absent(name) else self._found[name]
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            self.wrong(name, "is not a name of at most 64 letters, digits, spaces, dots, hyphens and underscores")
        return value

    def word(self, name: str, default: str, choices: Any) -> str:
        value = default if self.absent(name) else self._found[name]
        if value not in choices:
            self.wrong(name, f"is none of {', '.join(choices)}")
        return str(value)

    def words(self, name: str, default: Any, choices: Any = None, some: bool = False) -> tuple[str, ...]:
        if self.absent(name):
            return tuple(default)
        listed = self._list(name)
        for value in listed:
            if not isinstance(value, str) or not _WORD.fullmatch(value):
                self.wrong(name, "has an entry that is not a word")
            if choices is not None and value not in choices:
                self.wrong(name, f"has {value!r}, which is none of {', '.join(sorted(choices))}")
        if len(set(listed)) != len(listed) or (some and not listed):
            self.wrong(name, "is empty, or has an entry twice")
        return tuple(listed)

    def texts(self, name: str, pattern: re.Pattern[str]) -> tuple[str, ...]:
        listed = self._list(name)
        if not all(isinstance(value, str) and pattern.fullmatch(value) for value in listed):
            self.wrong(name, "has an entry that is not a digest in lower-case hexadecimal")
        return tuple(listed)

    def number(self, name: str, default: int, least: int = 0) -> int:
        value = default if self.absent(name) else self._found[name]
        if isinstance(value, bool) or not isinstance(value, int) or (value != default and not least <= value < 1 << 64):
            self.wrong(name, f"is not a whole number from {least} on")
        return int(value)

    def numbers(self) -> dict[str, int]:
        return {name: self.number(name, 0) for name in self.names()}

    def truth(self, name: str, default: bool) -> bool:
        value = default if self.absent(name) else self._found[name]
        if not isinstance(value, bool):
            self.wrong(name, "is neither true nor false")
        return value

    def moment(self, name: str) -> Optional[datetime.datetime]:
        """Return a time, as text by RFC 3339 or as YAML's own type, or None; a time without its zone is refused."""
        value = self._found.get(name)
        if isinstance(value, str):
            try:
                value = datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
            except ValueError:
                self.wrong(name, "is not a time such as 2026-11-24T00:00:00Z")
        if value is not None and (not isinstance(value, datetime.datetime) or value.tzinfo is None):
            self.wrong(name, "is not a time with its zone, such as 2026-11-24T00:00:00Z")
        return value

    def _list(self, name: str) -> list[Any]:
        value = [] if self.absent(name) else self._found[name]
        if not isinstance(value, list) or len(value) > _LIST_LIMIT:
            self.wrong(name, f"is not a list of at most {_LIST_LIMIT}")
        return value
