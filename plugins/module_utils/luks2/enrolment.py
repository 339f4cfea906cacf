# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which unlock methods a header has, and what is to be changed so that it has others: nothing here changes anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Collection, Mapping, Optional, Sequence

from ..errors import FdeError
from .expectation import TokenType
from .header import Header
from .method import Method, Passphrase, Recovery, Tpm2
from .stretching import PASSPHRASE_MINIMUM


@dataclass(frozen=True)
class Enrolled:
    """A keyslot and what opens it. ``method`` is None for a temporary key, which is never meant to stay."""

    method: Optional[Method]
    keyslot: int
    token: Optional[int] = None


@dataclass(frozen=True)
class Plan:
    """What has to be added, and what has to go once that is proven."""

    adds: tuple[Method, ...] = ()
    removes: tuple[Enrolled, ...] = ()

    @property
    def changes(self) -> bool:
        return bool(self.adds or self.removes)


def enrolled(header: Header) -> tuple[Enrolled, ...]:
    """Return the keyslots of a header that was judged, in order."""
    tokens = {
        keyslot: (int(number), token)
        for number, token in header.metadata["tokens"].items()
        for keyslot in token["keyslots"]
    }
    found = []
    for name, keyslot in header.metadata["keyslots"].items():
        number, token = tokens.get(name, (None, None))
        method = _untold(keyslot) if token is None else _told(token)
        found.append(Enrolled(method, int(name), number))
    return tuple(sorted(found, key=lambda slot: slot.keyslot))


def _untold(keyslot: Mapping[str, Any]) -> Optional[Method]:
    """A keyslot without a token has a passphrase, unless it is stretched so little that its key must be random."""
    kdf = keyslot["kdf"]
    return None if kdf["type"] == "pbkdf2" and kdf["iterations"] < PASSPHRASE_MINIMUM else Passphrase()


def _told(token: Mapping[str, Any]) -> Optional[Method]:
    if token["type"] == TokenType.RECOVERY.value:
        return Recovery()
    if token["type"] != TokenType.TPM2.value or token.get("tpm2-pin", False):
        return None
    return Tpm2.told(token)


def plan(found: Sequence[Enrolled], wanted: Sequence[Method], dead: Collection[int] = ()) -> Plan:
    """Return how to come from the keyslots of a header to the wanted unlock methods, one keyslot each.

    ``dead`` are keyslots that were tried and do not open, or whose secret is to be replaced. Raises ``FdeError`` when
    nothing is wanted: a volume that nothing opens is lost.
    """
    if not wanted:
        raise FdeError(
            "unlock", "the last unlock method cannot be removed", "Name at least one way to unlock the volume"
        )
    kept: dict[Method, int] = {}
    for slot in found:
        if slot.method is not None and slot.method in wanted and slot.keyslot not in dead:
            kept.setdefault(slot.method, slot.keyslot)
    adds = tuple(method for method in dict.fromkeys(wanted) if method not in kept)
    return Plan(adds, tuple(slot for slot in found if slot.keyslot not in kept.values()))
