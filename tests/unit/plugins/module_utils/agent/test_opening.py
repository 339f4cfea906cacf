# SPDX-License-Identifier: GPL-3.0-or-later
"""Only a volume-key event of PCR 15 proves that the key was measured."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.opening import measured_volume_keys

KEY = "ab" * 32
EVENT: dict[str, Any] = {
    "pcr": 15,
    "digests": [{"hashAlg": "sha256", "digest": KEY}, {"hashAlg": "sha1", "digest": "cd" * 20}],
    "content_type": "systemd",
    "content": {"eventType": "volume-key", "string": "cryptsetup:fde-crypt:uuid"},
}


def sequence(*events: Any) -> bytes:
    return b"".join(b"\x1e" + json.dumps(event).encode() + b"\n" for event in events)


def test_the_volume_key_event_is_found_among_others() -> None:
    phase = {**EVENT, "pcr": 11, "content": {"eventType": "phase", "string": "enter-initrd"}}
    assert list(measured_volume_keys(sequence(phase, EVENT, phase))) == [bytes.fromhex(KEY)]


@pytest.mark.parametrize(
    "event",
    [
        {**EVENT, "pcr": 14},
        {**EVENT, "pcr": "15"},
        {**EVENT, "content": {"eventType": "phase"}},
        {**EVENT, "content": None},
        {**EVENT, "content": "volume-key"},
        {**EVENT, "digests": None},
        {**EVENT, "digests": [{"hashAlg": "sha1", "digest": KEY}]},
        {**EVENT, "digests": [{"hashAlg": "sha256"}]},
        {**EVENT, "digests": [{"hashAlg": "sha256", "digest": "zz"}]},
        {**EVENT, "digests": [{"hashAlg": "sha256", "digest": 7}]},
        {},
        [],
        None,
        15,
    ],
)
def test_nothing_else_counts(event: Any) -> None:
    assert list(measured_volume_keys(sequence(event))) == []


@pytest.mark.parametrize("log", [b"", b"\x1e", b"\xff\xfe", sequence(EVENT)[:-20], b"{}" * 1000])
def test_a_damaged_log_proves_nothing(log: bytes) -> None:
    assert list(measured_volume_keys(log)) == []
