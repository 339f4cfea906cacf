# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which host has which keys: decided from the records of the ledger alone, in their order.

The first key that a host proves to hold is its own, unless another host holds it. From then on two things are
conflicts until an operator decides: a key that is another host's too (a cloned TPM, a renamed machine, or a connection
that ends at the wrong host), and a known host with a new key (a machine built anew, or another one in its place).
A conflict concerns every host that it names, because nothing here tells which of them is the right one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Iterable, Iterator, Optional

from .records import Action, Decision, Identity, Record


class Trouble(str, Enum):
    SHARED_KEY = "shared-key"
    NEW_KEY = "new-key"


@dataclass(frozen=True)
class Conflict:
    """A claim that waits for an operator.

    ``key`` is the fingerprint to approve. ``others`` are the hosts that hold a key of the claim too (`SHARED_KEY`),
    ``known`` is the key that the host had before (`NEW_KEY`; None where it came with several and none was approved).
    """

    trouble: Trouble
    host: str
    key: str
    others: frozenset[str] = frozenset()
    known: Optional[str] = None

    def __str__(self) -> str:
        if self.trouble is Trouble.SHARED_KEY:
            return f"{self.host} holds key {self.key}, and so does {', '.join(sorted(self.others))}"
        return (
            f"{self.host} holds key {self.key}, but {f'was known by key {self.known}' if self.known else 'others too'}"
        )


@dataclass
class _Standing:
    accepted: Optional[Identity] = None
    pending: dict[str, Identity] = field(default_factory=dict)

    def identities(self) -> Iterator[Identity]:
        if self.accepted:
            yield self.accepted
        yield from self.pending.values()

    def stays(self, identity: Identity) -> bool:
        """Say whether the identity is no change of TPM for a host that is known by its accepted one."""
        return self.accepted is None or self.accepted.key == identity.key


class Register:
    """The state of all identities after a number of records."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._hosts: dict[str, _Standing] = {}
        for record in records:
            self.note(record)

    def note(self, record: Record) -> None:
        """Take the next record into account; those that say nothing about identities change nothing."""
        if isinstance(record, Identity):
            self._claim(record)
        elif isinstance(record, Decision) and record.action is Action.APPROVE_IDENTITY:
            self._approve(record.host, record.key)
        elif isinstance(record, Decision) and record.action is Action.RETIRE_HOST:
            self._retire(record.host)

    def knows(self, identity: Identity) -> bool:
        """Say whether recording this identity again would add nothing."""
        return identity in self._standing(identity.host).identities()

    def claimed(self, host: str) -> frozenset[str]:
        """Return the keys that a host has claimed and that were not settled otherwise."""
        return frozenset(identity.key for identity in self._standing(host).identities())

    def accepted(self, host: str) -> Optional[Identity]:
        """Return the identity by which a host is known, if it is."""
        return self._standing(host).accepted

    def hosts(self) -> frozenset[str]:
        return frozenset(self._hosts)

    def conflicts(self, host: Optional[str] = None) -> tuple[Conflict, ...]:
        """Return the conflicts that concern a host, or all of them, ordered by host and key."""
        found = [
            conflict
            for name in sorted(self._hosts)
            for _key, identity in sorted(self._hosts[name].pending.items())
            for conflict in self._conflicts_of(identity)
        ]
        return tuple(conflict for conflict in found if host is None or host in {conflict.host, *conflict.others})

    def _standing(self, host: str) -> _Standing:
        return self._hosts.get(host, _Standing())

    def _holders(self, identity: Identity) -> frozenset[str]:
        return frozenset(
            name
            for name, standing in self._hosts.items()
            if name != identity.host
            and any(identity.fingerprints & other.fingerprints for other in standing.identities())
        )

    def _claim(self, identity: Identity) -> None:
        standing = self._hosts.setdefault(identity.host, _Standing())
        if identity in standing.identities():
            return
        known = standing.accepted
        approved = known is not None and identity.key == known.key and identity.fingerprints <= known.fingerprints
        first = known is None and not standing.pending
        same_tpm = known is not None and standing.stays(identity)
        if approved or ((first or same_tpm) and not self._holders(identity)):
            standing.accepted = identity
        else:
            standing.pending[identity.key] = identity

    def _approve(self, host: str, key: Optional[str]) -> None:
        standing = self._standing(host)
        claimed = {identity.key: identity for identity in standing.identities()}
        if key in claimed:
            standing.accepted = standing.pending.get(key, claimed[key])
            standing.pending.clear()

    def _retire(self, host: str) -> None:
        """Forget a host. Whoever only waited because of it waits no longer."""
        self._hosts.pop(host, None)
        for standing in self._hosts.values():
            waiting = list(standing.pending.values())
            if len(waiting) == 1 and standing.stays(waiting[0]) and not self._holders(waiting[0]):
                standing.accepted = waiting[0]
                standing.pending.clear()

    def _conflicts_of(self, identity: Identity) -> Iterator[Conflict]:
        standing = self._standing(identity.host)
        others = self._holders(identity)
        if others:
            yield Conflict(Trouble.SHARED_KEY, identity.host, identity.key, others=others)
        if standing.accepted is None and len(standing.pending) > 1:
            yield Conflict(Trouble.NEW_KEY, identity.host, identity.key)
        elif standing.accepted is not None and not standing.stays(identity):
            yield Conflict(Trouble.NEW_KEY, identity.host, identity.key, known=standing.accepted.key)
