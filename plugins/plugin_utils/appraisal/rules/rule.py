# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a check is, and what several of them rest on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

from ..case import Case
from ..reference import BANK
from ..structures import PublicArea

#: What every check of quoted values rests on.
SIGNED = ("quote_signature", "quote_digest")


@dataclass(frozen=True)
class Rule:
    """One check: its name, the checks it rests on, and the judge, which returns why it passed or raises why it did
    not.
    """

    name: str
    needs: tuple[str, ...]
    judge: Callable[[Case], str]


def signing_hash(key: PublicArea) -> str:
    """Return the hash of a key's scheme; a key that passed as an attestation key has one."""
    return key.scheme.hash_name if key.scheme else BANK
