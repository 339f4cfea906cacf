# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A refusal is said, remembered and measured, in this order, whatever goes wrong on the way."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import console
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError, Refusal
from ansible_collections.cvm.fde.plugins.module_utils.runner import MissingProgram

REFUSAL = Refusal("header-mismatch", "/dev/vda4", "it differs", "Recover it")


class Recorder:
    """Notes what is run, in the order of everything else that is noted, and logs a measurement as systemd does."""

    def __init__(self, log: Path, measures: bool = True) -> None:
        self.noted: list[str] = []
        self._log, self._measures = log, measures

    def run(self, argv: Any, **_options: Any) -> Any:
        self.noted.append(" ".join(argv))
        if self._measures:
            digest = hashlib.sha256(argv[-1].encode()).hexdigest()
            event = {"pcr": 11, "digests": [{"hashAlg": "sha256", "digest": digest}]}
            with self._log.open("ab") as log:
                log.write(b"\x1e" + json.dumps(event).encode() + b"\n")

    def find(self, name: str) -> str:
        return name


@pytest.fixture(autouse=True)
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have a console and a kernel's log to which one line is written after the other."""
    opened = []
    for name in ("CONSOLE", "KERNEL_LOG"):
        os.mkfifo(tmp_path / name)
        opened.append(os.open(tmp_path / name, os.O_RDWR))
        monkeypatch.setattr(console, name, str(tmp_path / name))
    yield tmp_path
    for descriptor in opened:
        os.close(descriptor)


def heard(device: Path) -> str:
    """Return what was written to a device since it was listened to last."""
    descriptor = os.open(device, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(descriptor, 1 << 16).decode()
    finally:
        os.close(descriptor)


def refuse(devices: Path, runner: Any, error: FdeError = REFUSAL, **options: Any) -> None:
    console.refuse(error, runner, devices / "state", log=str(devices / "log"), **options)


def test_a_refusal_is_remembered_before_the_measurement_closes_the_tpm(devices: Path) -> None:
    recorder = Recorder(devices / "log")
    refuse(devices, recorder, remember=lambda code, _error: recorder.noted.append(code))
    assert recorder.noted == ["header-mismatch", "systemd-pcrextend --pcr=11 cvm-fde:refused:header-mismatch"]
    said = heard(devices / "CONSOLE")
    assert "refused [header-mismatch] /dev/vda4: it differs. Recover it" in said
    assert "cvm-fde: the refusal is measured into PCR 11" in said
    assert json.loads((devices / "state" / console.REFUSAL_FILE).read_text())["code"] == "header-mismatch"


def test_a_refusal_that_cannot_be_remembered_is_measured_all_the_same(devices: Path) -> None:
    def broken(_code: str, _error: FdeError) -> None:
        raise ValueError("a defect")

    recorder = Recorder(devices / "log")
    refuse(devices, recorder, remember=broken)
    assert recorder.noted == ["systemd-pcrextend --pcr=11 cvm-fde:refused:header-mismatch"]
    assert "a defect" in heard(devices / "KERNEL_LOG")


def test_the_first_refusal_of_a_boot_is_the_one_that_is_remembered(devices: Path) -> None:
    recorder = Recorder(devices / "log")
    for error in (REFUSAL, Refusal("initrd-failed", "the initrd", "it stopped", "Look above")):
        refuse(devices, recorder, error, remember=lambda code, _error: recorder.noted.append(code))
    assert recorder.noted[0] == "header-mismatch" and "initrd-failed" not in recorder.noted


def test_a_tpm_that_does_not_listen_does_not_stop_the_refusal(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(devices / "log")

    def missing(_argv: Any, **_options: Any) -> None:
        raise MissingProgram("systemd-pcrextend")

    monkeypatch.setattr(recorder, "run", missing)
    refuse(devices, recorder, FdeError("the TPM", "it is gone", "Look"))
    said = heard(devices / "CONSOLE")
    assert "refused [failed] the TPM" in said and "the refusal is not measured into PCR 11" in said
    assert "could not be measured" in heard(devices / "KERNEL_LOG")


def test_a_measurement_that_systemd_passed_over_is_not_taken_for_one(devices: Path) -> None:
    """Its program ends well where the stub has not measured the kernel image."""
    refuse(devices, Recorder(devices / "log", measures=False))
    said = heard(devices / "CONSOLE")
    assert "the refusal is not measured into PCR 11" in said and "is measured into" not in said
