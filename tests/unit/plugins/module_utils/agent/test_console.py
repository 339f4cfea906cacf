# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A refusal is said, remembered and measured, in this order, whatever goes wrong on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import console
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError, Refusal
from ansible_collections.cvm.fde.plugins.module_utils.runner import MissingProgram

REFUSAL = Refusal("header-mismatch", "/dev/vda4", "it differs", "Recover it")


class Recorder:
    """Notes what is run, in the order of everything else that is noted."""

    def __init__(self) -> None:
        self.noted: list[str] = []

    def run(self, argv: Any, **_options: Any) -> Any:
        self.noted.append(" ".join(argv))

    def find(self, name: str) -> str:
        return name


@pytest.fixture(autouse=True)
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CONSOLE", "KERNEL_LOG"):
        (tmp_path / name).touch()
        monkeypatch.setattr(console, name, str(tmp_path / name))
    return tmp_path


def test_a_refusal_is_remembered_before_the_measurement_closes_the_tpm(devices: Path) -> None:
    recorder = Recorder()
    console.refuse(REFUSAL, recorder, devices / "state", lambda code, _error: recorder.noted.append(code))
    assert recorder.noted == ["header-mismatch", "systemd-pcrextend cvm-fde:refused:header-mismatch"]
    assert "refused [header-mismatch] /dev/vda4: it differs. Recover it" in (devices / "CONSOLE").read_text()
    assert json.loads((devices / "state" / console.REFUSAL_FILE).read_text())["code"] == "header-mismatch"


def test_a_refusal_that_cannot_be_remembered_is_measured_all_the_same(devices: Path) -> None:
    def broken(_code: str, _error: FdeError) -> None:
        raise ValueError("a defect")

    recorder = Recorder()
    console.refuse(REFUSAL, recorder, devices / "state", broken)
    assert recorder.noted == ["systemd-pcrextend cvm-fde:refused:header-mismatch"]
    assert "a defect" in (devices / "KERNEL_LOG").read_text()


def test_the_first_refusal_of_a_boot_is_the_one_that_is_remembered(devices: Path) -> None:
    recorder = Recorder()
    for error in (REFUSAL, Refusal("initrd-failed", "the initrd", "it stopped", "Look above")):
        console.refuse(error, recorder, devices / "state", lambda code, _error: recorder.noted.append(code))
    assert recorder.noted[0] == "header-mismatch" and "initrd-failed" not in recorder.noted


def test_a_tpm_that_does_not_listen_does_not_stop_the_refusal(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()

    def missing(_argv: Any, **_options: Any) -> None:
        raise MissingProgram("systemd-pcrextend")

    monkeypatch.setattr(recorder, "run", missing)
    console.refuse(FdeError("the TPM", "it is gone", "Look"), recorder, devices / "state")
    assert "refused [failed] the TPM" in (devices / "CONSOLE").read_text()
    assert "could not be measured" in (devices / "KERNEL_LOG").read_text()
