# SPDX-License-Identifier: GPL-3.0-or-later
"""The signed command line decides, and only when it is unambiguous."""

from __future__ import annotations

import uuid

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.configuration import (
    ConfigurationError,
    Strategy,
    first_words,
    parse,
)

HASH = "0123456789abcdef" * 4


def test_the_partitions_follow_from_the_root_hash() -> None:
    found = parse(f"roothash={HASH} root=/dev/mapper/fde-root rw fde.strategy=clone quiet\n")
    assert found.root_hash.hex() == HASH
    assert found.strategy is Strategy.CLONE
    assert found.data_partition == uuid.UUID(HASH[:32])
    assert found.hash_partition == uuid.UUID(HASH[32:])


@pytest.mark.parametrize(
    "line",
    [
        "",
        "fde.strategy=clone",
        f"roothash={HASH}",
        f"roothash={HASH} fde.strategy=tmpfs",
        f"roothash={HASH} fde.strategy=clone fde.disk=third",
        f"roothash={HASH} fde.strategy=clone fde.disk=",
        f"roothash={HASH} fde.strategy=clone fde.disk=serial:",
        f"roothash={HASH} fde.strategy=clone fde.disk=serial:a/b",
        f"roothash={HASH} fde.strategy=clone fde.disk=other fde.disk=other",
        f"roothash={HASH} fde.strategy=clone fde.recovery=ssh",
        f"roothash={HASH} fde.strategy=clone fde.svn=",
        f"roothash={HASH} fde.strategy=clone fde.svn=-1",
        f"roothash={HASH} fde.strategy=clone fde.svn=01",
        f"roothash={HASH} fde.strategy=clone fde.svn=65536",
        f"roothash={HASH} fde.strategy=clone fde.svn=\u0661",
        f"roothash={HASH} fde.strategy=clone fde.svn=1 fde.svn=1",
        f"roothash={HASH} fde.strategy=",
        f"roothash={HASH} fde.strategy",
        f"roothash={HASH.upper()} fde.strategy=clone",
        f"roothash={HASH[:-1]} fde.strategy=clone",
        f"roothash={HASH}0 fde.strategy=clone",
        f"roothash={HASH} roothash={HASH} fde.strategy=clone",
        f"roothash={HASH} fde.strategy=clone fde.strategy=clone",
        f"xroothash={HASH} fde.strategy=clone",
    ],
)
def test_everything_else_is_an_error(line: str) -> None:
    with pytest.raises(ConfigurationError):
        parse(line)


def test_what_is_added_behind_the_signed_words_is_not_taken_for_them() -> None:
    signed = f"roothash={HASH} fde.strategy=clone fde.recovery=none quiet"
    added = f"{signed} fde.strategy=ephemeral roothash={HASH[::-1]} fde.recovery=console quiet debug"
    assert parse(first_words(added)) == parse(signed)
    with pytest.raises(ConfigurationError):
        parse(first_words("quiet"))
