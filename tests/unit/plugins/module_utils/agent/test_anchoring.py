# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whoever has time waits for a TPM that lets nobody write yet."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import anchoring
from ansible_collections.cvm.fde.plugins.module_utils.agent.machine import Machine
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.tpm.anchor import Anchor, Found, Standing, State
from ansible_collections.cvm.fde.plugins.module_utils.tpm.policy import PolicyError
from ansible_collections.cvm.fde.plugins.module_utils.tpm.quote import PcrsChanged


@pytest.mark.parametrize("trouble", [PolicyError("PCR 11", "it is not signed", "Wait"), PcrsChanged("8 uses")])
@pytest.mark.parametrize("wait", [0, 600])
def test_an_anchor_that_cannot_be_written_yet_is_written_later_by_whoever_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: FdeError, wait: float
) -> None:
    troubles, written = [trouble], []

    def write(_esys: object, _key: object, _policies: object, anchor: Anchor) -> None:
        if troubles:
            raise troubles.pop()
        written.append(anchor)

    machine: Any = SimpleNamespace(paths=SimpleNamespace(state=tmp_path), tcti="", key=None, policies=())
    monkeypatch.setattr(anchoring, "_INTERVAL", 0.0)
    monkeypatch.setattr(anchoring, "opened", lambda _tcti: nullcontext())
    monkeypatch.setattr(anchoring.anchors, "probe", lambda *_: Found(Standing.OURS, Anchor(State.READY)))
    monkeypatch.setattr(anchoring.anchors, "write", write)
    if wait:
        assert anchoring.update(cast(Machine, machine), Anchor.completed, wait).complete
        assert written == [Anchor(State.READY).completed()]
    else:
        with pytest.raises(type(trouble)):
            anchoring.update(cast(Machine, machine), Anchor.completed, wait)
        assert written == []
