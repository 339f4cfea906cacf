# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What operators decided: whether there is anything to decide, and what of it still holds."""

from __future__ import annotations

from typing import Optional, cast

from sqlalchemy import Connection, select

from ...module_utils.errors import FdeError
from .memory import began, register_of
from .reading import last_of
from .records import Action, Decision, Entry, Kind
from .schema import entries


def approval(connection: Connection, host: str) -> Optional[Entry]:
    """Return the last approval of a key of this host since it was last retired, if an operator gave one."""
    columns = entries.c
    query = select(entries).where(
        columns.host == host,
        columns.kind == Kind.DECISION.value,
        columns.action == Action.APPROVE_IDENTITY.value,
        columns.sequence > began(connection, host),
    )
    return last_of(connection, query)


def escrowed(connection: Connection, host: str, volume: str) -> Optional[Entry]:
    """Return the record of the last recovery key of this volume that was put into escrow, if there is one."""
    columns = entries.c
    query = select(entries).where(
        columns.host == host,
        columns.kind == Kind.DECISION.value,
        columns.action == Action.ESCROW_KEY.value,
        columns.volume == volume,
        columns.sequence > began(connection, host, volume),
    )
    return last_of(connection, query)


def stands(connection: Connection, decision: Decision) -> bool:
    """Tell whether deciding this would settle nothing, because the same was decided and still holds."""
    host = decision.host
    if decision.action is Action.APPROVE_IDENTITY:
        register = register_of(connection, host)
        accepted = register.accepted(host)
        settled = not any(conflict.host == host for conflict in register.conflicts(host))
        holds = settled and accepted is not None and accepted.key == decision.key
        return holds and _key(approval(connection, host)) == decision.key
    if decision.action is Action.ESCROW_KEY:
        return _key(escrowed(connection, host, str(decision.volume))) == decision.key
    last = last_of(connection, select(entries).where(entries.c.host == host))
    return last is not None and isinstance(last.record, Decision) and last.record.action is decision.action


def check(connection: Connection, decision: Decision) -> None:
    """Raise FdeError if there is nothing to decide."""
    host = decision.host
    if decision.action in (Action.RENEW_VOLUME, Action.ESCROW_KEY):
        known = entries.c.volume == decision.volume
        cause = f"no volume {decision.volume} of this host was ever recorded"
    else:
        known = entries.c.kind.in_((Kind.ATTESTATION.value, Kind.IDENTITY.value))
        cause = "nothing is recorded about this host"
    query = select(entries.c.sequence).where(
        known, entries.c.host == host, entries.c.sequence > began(connection, host)
    )
    found = connection.scalar(query.limit(1)) is not None
    if found and decision.action is Action.APPROVE_IDENTITY:
        found = decision.key in register_of(connection, host).claimed(host)
        cause = f"it never showed key {decision.key}, or that was settled already"
    if not found:
        name = connection.engine.url.render_as_string(hide_password=True)
        raise FdeError(host, cause, f"Look at the host's entries in {name} and name it as they do")


def _key(entry: Optional[Entry]) -> Optional[str]:
    return None if entry is None else cast(Decision, entry.record).key
