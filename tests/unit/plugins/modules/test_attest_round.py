# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module takes from a header on the disk, which anybody may have written."""

from __future__ import annotations

import base64
import hashlib
import json
import lzma
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.modules.attest_round import read_tokens

FIXTURES = Path(__file__).parents[1] / "module_utils/luks2/fixtures"
SIZE = 256 << 10


@pytest.fixture
def header(tmp_path):
    def make(claims):
        content = bytearray(lzma.decompress((FIXTURES / "2.8.8-root.xz").read_bytes()))
        metadata = json.loads(content[4096:SIZE].rstrip(b"\0"))
        metadata["tokens"]["1"]["claims"] = claims
        for start in (0, SIZE):
            content[start + 4096 : start + SIZE] = json.dumps(metadata).encode().ljust(SIZE - 4096, b"\0")
            content[start + 448 : start + 512] = bytes(64)
            content[start + 448 : start + 480] = hashlib.sha256(content[start : start + SIZE]).digest()
        path = tmp_path / "header"
        path.write_bytes(content)
        return str(path)

    return make


def _claims(text: bytes) -> str:
    return base64.b64encode(text).decode()


def test_evidence_is_told_apart_by_its_purpose(header):
    creation = read_tokens(header(_claims(b'{"purpose":"volume-creation"}')))
    recovery = read_tokens(header(_claims(b'{"purpose":"volume-recovery"}')))
    assert [name for name, token in creation.items() if token is not None] == ["token"]
    assert [name for name, token in recovery.items() if token is not None] == ["recovery"]


@pytest.mark.parametrize(
    "claims",
    [_claims(b"[" * 100_000), _claims(b"\xff"), _claims(b"[]"), _claims(b"9" * 5000), "%", "é", 1, None, ["AA=="]],
    ids=["nested", "no UTF-8", "a list", "a long number", "no base64", "no ASCII", "a number", "null", "texts"],
)
def test_claims_that_cannot_be_read_are_evidence_of_nothing_else(header, claims):
    found = read_tokens(header(claims))
    assert found["recovery"] is None
    assert json.loads(found["token"])["claims"] == claims
