# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs between two headers of one volume, in words; and whether they are headers of one volume."""

from __future__ import annotations

from typing import Any, Iterator, Mapping

from ..luks2.area import HeaderArea
from ..luks2.header import Header

#: What says which volume key a digest belongs to; the list of its keyslots is left out, since it changes with them.
_KEY_DIGEST = ("type", "hash", "iterations", "salt", "digest", "segments")


def same_volume(old: Header, new: Header) -> bool:
    """Tell whether both headers open the same data with the same volume key.

    The digest of a volume key is salted and slow, and the key is random: a keyslot of the new header that gives another
    key than the digest is for does not open anything. Both must describe the data in the same way, too.
    """
    mine, theirs = (
        [header.uuid, header.metadata["segments"], [_key_digest(one) for one in header.metadata["digests"].values()]]
        for header in (old, new)
    )
    return mine == theirs


def _key_digest(digest: Mapping[str, Any]) -> list[Any]:
    return [digest.get(name) for name in _KEY_DIGEST]


def differences(old: HeaderArea, new: HeaderArea) -> list[str]:
    """Return a sentence for each keyslot and token that was added, removed or changed.

    Empty where only what cannot open anything differs, as the number of the last change. Raises ``HeaderError``.
    """
    before, after = old.header(), new.header()
    found = []
    for kind in ("keyslots", "tokens"):
        mine, theirs = before.metadata[kind], after.metadata[kind]
        for name in sorted({*mine, *theirs}, key=int):
            what = f"{kind[:-1]} {name}"
            if name not in theirs:
                found.append(f"{what} was removed ({_describe(kind, name, before)})")
            elif name not in mine:
                found.append(f"{what} was added ({_describe(kind, name, after)})")
            elif mine[name] != theirs[name] or kind == "keyslots" and _material(old, name) != _material(new, name):
                found.append(f"{what} was changed ({_describe(kind, name, after)})")
    return found


def contents(area: HeaderArea) -> list[str]:
    """Return a phrase for each keyslot of a header: how it is opened. Raises ``HeaderError``."""
    header = area.header()
    return [f"keyslot {name}: {_describe('keyslots', name, header)}" for name in sorted(header.metadata["keyslots"])]


def _describe(kind: str, name: str, header: Header) -> str:
    """Return by what a keyslot is opened, or the type of a token."""
    if kind == "tokens":
        return str(header.metadata["tokens"][name]["type"])
    return " and ".join(_openers(name, header)) or "opened by a passphrase or a key file"


def _openers(keyslot: str, header: Header) -> Iterator[str]:
    for token in header.metadata["tokens"].values():
        if keyslot in token.get("keyslots", []):
            yield str(token["type"])


def _material(area: HeaderArea, keyslot: str) -> bytes:
    """Return the encrypted key of a keyslot as it lies in the header area."""
    place = area.header().metadata["keyslots"][keyslot]["area"]
    return area.content[int(place["offset"]) : int(place["offset"]) + int(place["size"])]
