# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is remembered of a host at a moment: its keys, its volume's highest anchor, and who else showed the same.

A moment is a place in the chain: ``before`` is the sequence of the first entry that is not remembered yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Union

from sqlalchemy import Connection, and_, func, or_, select

from .identities import Conflict, Register
from .reading import entries_of
from .records import NO_ROAD, Action, Anchor, Identity, Kind
from .schema import entries

#: A sequence beyond every entry: what is asked for "before" it is asked for as of now.
NOW = (1 << 63) - 1


@dataclass(frozen=True)
class Past:
    """What is remembered at the moment in which a host is judged.

    ``enrolled`` says whether the host showed a key before, ``new`` whether the one that it shows now is another one
    or its first. ``conflicts`` are those that concern the host, with what it shows now taken into account.
    """

    enrolled: bool
    new: bool
    conflicts: tuple[Conflict, ...]
    highest: Optional[Anchor]
    #: Other hosts that showed a volume with the same key.
    sharing: frozenset[str] = frozenset()


def past(
    connection: Connection,
    host: str,
    volume: Optional[str],
    shown: Optional[Identity],
    volume_key_id: Optional[str],
    before: int = NOW,
) -> Past:
    """Return what is remembered of a host that shows these keys, and a volume with this key."""
    register = register_of(connection, shown or host, before)
    enrolled, new = host in register.hosts(), shown is not None and not register.knows(shown)
    if shown is not None:
        register.note(shown)
    highest = None if volume is None else highest_anchor(connection, host, volume, before)
    sharing = hosts_of_volume_key(connection, volume_key_id, before) if volume_key_id else frozenset()
    return Past(enrolled, new, register.conflicts(host), highest, sharing - {host})


def began(connection: Connection, host: str, volume: Optional[str] = None, before: int = NOW) -> int:
    """Return the entry after which the life of a host, or of a volume of it, began that it had at a moment; 0 for its
    first.
    """
    columns = entries.c
    begins = columns.action == Action.RETIRE_HOST.value
    if volume is not None:
        begins = or_(begins, and_(columns.action == Action.RENEW_VOLUME.value, columns.volume == volume))
    query = select(func.max(columns.sequence)).where(columns.host == host, begins, columns.sequence < before)
    return connection.execute(query).scalar() or 0


def highest_anchor(connection: Connection, host: str, volume: str, before: int = NOW) -> Optional[Anchor]:
    """Return the highest anchor that a volume ever proved, part by part.

    The parts only grow in the life of a volume, so the highest of each is what the last honest state has. A renewal of
    the volume or the retirement of the host, both an operator's decisions, begin a new life.
    """
    columns = entries.c
    generation, state, reset_count = connection.execute(
        select(func.max(columns.generation), func.max(columns.state), func.max(columns.reset_count)).where(
            columns.host == host,
            columns.kind == Kind.ATTESTATION.value,
            columns.volume == volume,
            columns.sequence < before,
            columns.sequence > began(connection, host, volume, before),
        )
    ).one()
    return None if generation is None else Anchor(int(generation), state, reset_count)


def hosts_of_volume_key(connection: Connection, volume_key_id: str, before: int = NOW) -> frozenset[str]:
    """Return the hosts that showed a volume with this key, behind a TPM that a road led to, and were not retired since.
    More than one: a clone.
    """
    shown = connection.execute(
        select(entries.c.host, func.max(entries.c.sequence))
        .where(
            entries.c.volume_key_id == volume_key_id,
            # Behind a TPM that nobody vouches for, a machine may show any key: such a lie must not lock out others.
            entries.c.road != NO_ROAD,
            entries.c.sequence < before,
        )
        .group_by(entries.c.host)
    ).all()
    return frozenset(host for host, last in shown if last > began(connection, host, before=before))


def register_of(connection: Connection, about: Union[Identity, str, None] = None, before: int = NOW) -> Register:
    """Read the register of all hosts, or of those that what is asked about, an identity or a host, can depend on."""
    columns = entries.c
    query = (
        select(entries)
        .where(columns.kind.in_((Kind.IDENTITY.value, Kind.DECISION.value)), columns.sequence < before)
        .order_by(columns.sequence)
    )
    if about is None:
        return Register(entry.record for entry in entries_of(connection, query))
    hosts = {about if isinstance(about, str) else about.host}
    keys = set() if isinstance(about, str) else set(about.fingerprints)
    while True:
        related = query.where(or_(columns.host.in_(hosts), columns.ek.in_(keys), columns.ak.in_(keys)))
        records = [entry.record for entry in entries_of(connection, related)]
        found_keys = keys.union(*(record.fingerprints for record in records if isinstance(record, Identity)))
        found_hosts = hosts.union(record.host for record in records)
        if found_hosts == hosts and found_keys == keys:
            return Register(records)
        hosts, keys = found_hosts, found_keys
