# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Azure's metadata service, which every machine there reaches over its link: it keeps what the host's processor signs.

An answer is evidence like any other. None means that there was no usable one.
Source: Azure, "THIM" (trusted hardware identity management) and "acc/tdquote" of the instance metadata service.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Optional

ADDRESS = "http://169.254.169.254"
#: Bytes of an answer, and seconds that one may take: making a quote needs tens of milliseconds.
ANSWER_LIMIT = 65536
TIMEOUT = 5
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")
_CHAIN_LIMIT = 4


@dataclass(frozen=True)
class MetadataService:
    """The service at ``address``; None stands for a machine that shall not ask it."""

    address: Optional[str] = ADDRESS

    def chip_certificates(self) -> Optional[tuple[bytes, ...]]:
        """Return the certificate of the processor's key (DER), and those of its chain."""
        answer = self._ask("/metadata/THIM/amd/certification", None)
        try:
            found = _der(answer["vcekCert"])[:1] + _der(answer["certificateChain"])[:_CHAIN_LIMIT]
        except (KeyError, TypeError, binascii.Error):
            return None
        return found or None

    def td_quote(self, report: bytes) -> Optional[bytes]:
        """Return a quote over a TD report."""
        body = {"report": base64.urlsafe_b64encode(report).decode().rstrip("=")}
        answer = self._ask("/acc/tdquote", json.dumps(body).encode())
        try:
            text = str(answer["quote"])
            return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) or None
        except (KeyError, TypeError, binascii.Error):
            return None

    def _ask(self, path: str, body: Optional[bytes]) -> Any:
        if self.address is None:
            return None
        headers = {"Metadata": "true", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.address}{path}", body, headers)
        # A proxy of the machine's environment has no business between it and its host.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=TIMEOUT) as answer:
                return json.loads(answer.read(ANSWER_LIMIT + 1)[:ANSWER_LIMIT])
        except (OSError, urllib.error.URLError, ValueError, RecursionError):
            return None


def _der(pem: str) -> tuple[bytes, ...]:
    return tuple(base64.b64decode("".join(body.split())) for body in _CERTIFICATE.findall(pem))
