# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands for a guest that has no network, as files in a directory that it shares with this machine.

A request is NAME.json with NAME.in; the answer is NAME.told, the status, with NAME.out and NAME.err. What answers in
the guest is ``peer_inside.py``.
"""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

#: Seconds between two looks, and until a guest that says nothing is given up.
_GLANCE, _LIMIT = 0.03, 1800


def ask(guest: Path, command: str, given: bytes = b"") -> tuple[int, bytes, bytes]:
    """Run a shell's command in the guest; return status, output and errors. Raises ``TimeoutError``."""
    request = guest / uuid.uuid4().hex
    request.with_suffix(".in").write_bytes(given)
    draft = request.with_suffix(".draft")
    draft.write_text(json.dumps({"command": command}))
    draft.rename(request.with_suffix(".json"))
    told, end = request.with_suffix(".told"), time.monotonic() + _LIMIT
    while not told.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"the guest has not answered for {_LIMIT} s")
        time.sleep(_GLANCE)
    files = [request.with_suffix(suffix) for suffix in (".told", ".out", ".err", ".in")]
    status, out, err, _given = (file.read_bytes() for file in files)
    for file in files:
        file.unlink()
    return int(status), out, err
