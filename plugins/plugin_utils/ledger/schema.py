# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of the ledger and the triggers that keep them append-only.

The triggers stop accidents and accounts that may only write. Whoever owns the database can drop them; what happens
then is found by the chain.
"""

from __future__ import annotations

from typing import Callable

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    column,
    event,
    func,
    select,
    table,
)

#: Version of everything in this file and of what a digest covers.
SCHEMA_VERSION = 1

metadata = MetaData()

versions = Table("ledger_schema", metadata, Column("version", Integer, primary_key=True, autoincrement=False))

documents = Table(
    "ledger_documents",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("content", LargeBinary, nullable=False),
)

entries = Table(
    "ledger_entries",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("recorded", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("verdict", Text),
    Column("road", Text),
    Column("volume", Text),
    Column("volume_key_id", Text),
    Column("root_hash", Text),
    Column("reference_set", Text),
    Column("generation", Text),
    Column("state", Integer),
    Column("reset_count", BigInteger),
    Column("ek", Text),
    Column("ak", Text),
    Column("action", Text),
    Column("operator", Text),
    Column("reason", Text),
    Column("key", Text),
    Column("documents", Text, nullable=False),
    Column("previous", Text, nullable=False),
    Column("digest", Text, nullable=False),
)
Index("ledger_entries_host", entries.c.host, entries.c.kind, entries.c.volume)
Index("ledger_entries_volume_key_id", entries.c.volume_key_id)
Index("ledger_entries_ek", entries.c.ek)
Index("ledger_entries_ak", entries.c.ak)

# SQLAlchemy's DDL has no annotations.
_ddl: Callable[[str], DDL] = DDL
_TABLES = (versions, documents, entries)

_SQLITE_GUARD = """
CREATE TRIGGER %(table)s_no_{operation} BEFORE {operation} ON %(table)s {condition}
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END
"""
_POSTGRESQL_FUNCTION = """
CREATE FUNCTION ledger_append_only() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$
"""
_POSTGRESQL_GUARD = """
CREATE TRIGGER %(table)s_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON %(table)s
FOR EACH STATEMENT EXECUTE FUNCTION ledger_append_only()
"""


def _guard_tables() -> None:
    event.listen(metadata, "before_create", _ddl(_POSTGRESQL_FUNCTION).execute_if(dialect="postgresql"))
    for guarded in _TABLES:
        (key,) = guarded.primary_key.columns
        # INSERT OR REPLACE deletes without asking the trigger on DELETE.
        replaced = f"WHEN EXISTS (SELECT 1 FROM {guarded.name} WHERE {key.name} = NEW.{key.name})"
        for operation, condition in (("update", ""), ("delete", ""), ("insert", replaced)):
            statement = _SQLITE_GUARD.format(operation=operation, condition=condition)
            event.listen(guarded, "after_create", _ddl(statement).execute_if(dialect="sqlite"))
        event.listen(guarded, "after_create", _ddl(_POSTGRESQL_GUARD).execute_if(dialect="postgresql"))


_guard_tables()


def create(connection: Connection) -> None:
    """Make tables and guards, and say which version they are, in the transaction of the caller."""
    metadata.create_all(connection, checkfirst=False)
    connection.execute(versions.insert().values(version=SCHEMA_VERSION))


def missing_guards(connection: Connection) -> list[str]:
    """Return the names of the triggers that should be there and are not, or are switched off."""
    if connection.dialect.name == "sqlite":
        wanted = {
            f"{guarded.name}_no_{operation}" for guarded in _TABLES for operation in ("update", "delete", "insert")
        }
        master = table("sqlite_master", column("type"), column("name"))
        query = select(master.c.name).where(master.c.type == "trigger")
    else:
        wanted = {f"{guarded.name}_no_change" for guarded in _TABLES}
        triggers = table("pg_trigger", column("tgname"), column("tgenabled"), column("tgrelid"))
        query = select(triggers.c.tgname).where(
            triggers.c.tgenabled.in_(("O", "A")), func.pg_table_is_visible(triggers.c.tgrelid)
        )
    return sorted(wanted - set(connection.execute(query).scalars()))
