# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a secret would look in a file or a log that must not have it."""

from __future__ import annotations

import base64


def spelt(secret: bytes) -> tuple[bytes, ...]:
    """Return a secret as it is, in base 16 and in base 64, whatever follows it there."""
    encoded = base64.b64encode(secret[: len(secret) // 3 * 3])
    return secret, secret.hex().encode(), secret.hex().upper().encode(), secret.hex(" ").encode(), encoded


def spelt_recovery_key(key: str) -> tuple[bytes, ...]:
    """Return all that of a recovery key, with its dashes and without them."""
    return (*spelt(key.encode()), *spelt(key.replace("-", "").encode()))
