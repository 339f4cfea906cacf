# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Envelopes with recovery keys on the control node: kept in a directory, or handed to a lookup plugin of the user's.

The control node cannot open them. Whoever lost a recovery key finds out when it is too late, so everything is read back
before the target is told to rely on it, and an older envelope is never written over.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Mapping, Optional, Sequence
from urllib.parse import quote

from ..module_utils.errors import FdeError
from ..module_utils.escrow.envelope import Belonging

#: As cryptsetup writes it into a header.
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

#: Runs a lookup plugin: name, terms, options.
Lookup = Callable[[str, Sequence[str], Mapping[str, Any]], Sequence[Any]]


@dataclass(frozen=True)
class Envelope:
    """``content`` is CMS EnvelopedData in DER. Raises ``FdeError`` for a UUID that no LUKS2 header has: a machine says
    which one it is, and the name of its envelope must be no other machine's.
    """

    belonging: Belonging
    content: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not _UUID.fullmatch(self.belonging.luks_uuid):
            raise FdeError(
                self.belonging.host,
                f"it says that the UUID of volume '{self.belonging.volume}' is {self.belonging.luks_uuid!r}",
                "Nothing was stored. Find out why it does not tell the truth before anything relies on this machine",
            )

    @property
    def name(self) -> str:
        """The name of its file: ``HOST-VOLUME-UUID.cms``; what a file name cannot have is percent-encoded.

        Read from its end it is of one host and volume only: a UUID is as long as every other, and a ``-`` of the
        volume's name is percent-encoded as well. Hosts' names have many, and stay readable.
        """
        host, volume = (quote(part, safe="") for part in (self.belonging.host, self.belonging.volume))
        return f"{host}-{volume.replace('-', '%2D')}-{self.belonging.luks_uuid}.cms"

    @property
    def text(self) -> str:
        """The content in base64."""
        return base64.b64encode(self.content).decode()


@dataclass(frozen=True)
class Kept:
    """Where an envelope is now, and where an older one of the same volume went; whether that was news."""

    place: str
    changed: bool
    older: Optional[str] = None


def keep(directory: str, envelope: Envelope) -> Kept:
    """Store an envelope in a directory, readable by its owner only, and read it back.

    An older envelope of the same volume stays, with a part of its digest at the end of its name: the machine may still
    have the key that is in it. Raises ``FdeError``.
    """
    target = Path(directory) / envelope.name
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = target.read_bytes() if target.exists() else None
        if found == envelope.content:
            return Kept(str(target), False)
        older = None if found is None else target.with_name(f"{target.name}.{hashlib.sha256(found).hexdigest()[:16]}")
        if older is not None and not older.exists():
            os.link(target, older)
        _replace(target, envelope.content)
        read_back = target.read_bytes()
    except OSError as error:
        raise FdeError(
            str(target), f"the recovery key's envelope cannot be stored: {error.strerror}", "Check the directory"
        ) from error
    _compare(str(target), envelope.content, read_back)
    return Kept(str(target), True, None if older is None else str(older))


def _replace(target: Path, content: bytes) -> None:
    """Write a file so that it is there as a whole or not at all, even after a power cut."""
    descriptor, temporary = tempfile.mkstemp(prefix=".escrow-", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def hand_over(lookup: Lookup, plugin: str, options: Mapping[str, Any], envelope: Envelope) -> Kept:
    """Give an envelope to a lookup plugin, and ask for it back.

    The plugin is called with the envelope's name as its only term and with ``options``: first without more, to return
    ``[escrow]`` (base64) where it is stored already; unless it is, with ``escrow``, ``host``, ``volume`` and
    ``luks_uuid`` as well, to store it; then once more without these. Raises ``FdeError`` when it fails or returns
    something else.
    """
    reserved = {"escrow": envelope.text, **vars(envelope.belonging)}
    if taken := sorted(set(reserved) & set(options)):
        raise FdeError(plugin, f"its options include {', '.join(taken)}, which are given to it", "Remove them")
    before = _ask(lookup, plugin, options, envelope.name, may_fail=True)
    if before == envelope.text:
        return Kept(f"{plugin}:{envelope.name}", False)
    _call(lookup, plugin, {**options, **reserved}, envelope.name)
    found = _ask(lookup, plugin, options, envelope.name)
    try:
        content = base64.b64decode(found or "", validate=True)
    except ValueError:
        content = b""
    _compare(f"{plugin}:{envelope.name}", envelope.content, content)
    return Kept(f"{plugin}:{envelope.name}", True)


def _ask(
    lookup: Lookup, plugin: str, options: Mapping[str, Any], name: str, *, may_fail: bool = False
) -> Optional[str]:
    """Return what the plugin holds under a name; a store that has nothing there yet may answer by a failure."""
    try:
        found = _call(lookup, plugin, options, name)
    except FdeError:
        if may_fail:
            return None
        raise
    return str(found[0]) if len(found) == 1 and isinstance(found[0], str) else None


def _call(lookup: Lookup, plugin: str, options: Mapping[str, Any], name: str) -> Sequence[Any]:
    try:
        return list(lookup(plugin, [name], options))
    except Exception as error:  # whatever a plugin of somebody else's raises
        raise FdeError(
            plugin, f"the lookup plugin failed for '{name}': {error}", "Check the plugin, its options and its service"
        ) from error


def _compare(place: str, written: bytes, found: bytes) -> None:
    if not hmac.compare_digest(written, found):
        raise FdeError(
            place,
            "the recovery key's envelope reads back otherwise than it was written",
            "Nothing relies on it yet; check the store and run again",
        )
