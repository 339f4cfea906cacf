# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this boot has measured by systemd's own programs, and words of the agent's own.

systemd logs each measurement that it makes. Its programs end well where they make none, for example when the stub did
not measure the kernel image; so only the log tells.
"""

from __future__ import annotations

import hashlib
import json
from typing import Iterator

from ..errors import FdeError
from ..runner import Runner


def measure(runner: Runner, pcr: int, word: str, log: str) -> None:
    """Measure a word into a PCR. Raises ``FdeError`` unless systemd's log, a path, says that it was done."""
    before = len(measured(log, pcr))
    runner.run(["systemd-pcrextend", f"--pcr={pcr}", word])
    if hashlib.sha256(word.encode()).digest() not in measured(log, pcr)[before:]:
        raise FdeError(f"PCR {pcr}", f"'{word}' was not measured into it", "Check the TPM")


def measured(log: str, pcr: int) -> list[bytes]:
    """Return what was measured into a PCR in this boot, in order; nothing where there is no log."""
    try:
        with open(log, "rb") as file:
            return list(digests(file.read(), pcr))
    except OSError:
        return []


def digests(log: bytes, pcr: int) -> Iterator[bytes]:
    """Yield the SHA-256 digests that systemd's log (JSON-SEQ, RFC 7464) has for a PCR, in the order of extension.

    What a digest is said to stand for is not measured; that it is the first one is.
    """
    for record in log.split(b"\x1e"):
        try:
            event = json.loads(record)
            if event["pcr"] == pcr:
                yield from (bytes.fromhex(one["digest"]) for one in event["digests"] if one["hashAlg"] == "sha256")
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
