# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The recovery key on its way to the control node, encrypted before it leaves the machine."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field

from ..escrow.envelope import Belonging, document, seal
from ..luks2.secret import wipe
from ..runner import Runner
from .wanted import Wanted


@dataclass(frozen=True)
class Handover:
    """``content`` is CMS EnvelopedData in DER, ``digest`` its SHA-256 as hexadecimal digits."""

    content: bytes = field(repr=False)
    digest: str

    def report(self) -> dict[str, str]:
        """Return the handover in types that JSON has."""
        return {"content": base64.b64encode(self.content).decode(), "digest": self.digest}


def seal_recovery_key(runner: Runner, wanted: Wanted, uuid: str, key: bytearray) -> Handover:
    """Encrypt a recovery key to the certificates of a volume. Raises ``FdeError``."""
    secret = document(key, Belonging(wanted.host, wanted.name, uuid))
    try:
        content = seal(runner, secret, wanted.certificates)
    finally:
        wipe(secret)
    return Handover(content, hashlib.sha256(content).hexdigest())
