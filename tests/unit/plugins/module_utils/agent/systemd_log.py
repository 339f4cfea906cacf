# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd's log of measurements, as its programs write it."""

from __future__ import annotations

import json
from typing import Any

KEY = "ab" * 32
EVENT: dict[str, Any] = {
    "pcr": 15,
    "digests": [{"hashAlg": "sha256", "digest": KEY}, {"hashAlg": "sha1", "digest": "cd" * 20}],
    "content_type": "systemd",
    "content": {"eventType": "volume-key", "string": "cryptsetup:fde-crypt:uuid"},
}


def sequence(*events: Any) -> bytes:
    """Return the log of these events (JSON-SEQ, RFC 7464)."""
    return b"".join(b"\x1e" + json.dumps(event).encode() + b"\n" for event in events)
