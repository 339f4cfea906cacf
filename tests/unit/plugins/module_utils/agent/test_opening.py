# SPDX-License-Identifier: GPL-3.0-or-later
"""Only the first measurement in PCR 15 proves that the key was measured: what a digest stands for is not measured."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.machine import Paths
from ansible_collections.cvm.fde.plugins.module_utils.agent.opening import check_measured
from ansible_collections.cvm.fde.plugins.module_utils.errors import Refusal
from ansible_collections.cvm.fde.tests.unit.plugins.module_utils.agent.systemd_log import EVENT, KEY, sequence


@pytest.mark.parametrize("events", [[], [{**EVENT, "content": {"eventType": "machine-id"}}, EVENT]])
def test_a_key_that_is_not_the_first_measurement_is_refused(tmp_path: Path, events: list[Any]) -> None:
    log = tmp_path / "log"
    other = {**EVENT, "digests": [{"hashAlg": "sha256", "digest": "ef" * 32}]}
    log.write_bytes(sequence(*([other, *events] if events else [])))
    machine = SimpleNamespace(paths=Paths(measurements=str(log)))
    with pytest.raises(Refusal) as caught:
        check_measured(machine, bytes.fromhex(KEY))
    assert caught.value.code == "not-measured"


def test_a_key_that_is_the_first_measurement_is_accepted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(sequence(EVENT, {**EVENT, "digests": [{"hashAlg": "sha256", "digest": "ef" * 32}]}))
    check_measured(SimpleNamespace(paths=Paths(measurements=str(log))), bytes.fromhex(KEY))
