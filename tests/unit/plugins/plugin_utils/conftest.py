# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One image and its policy, one honest machine, and a ledger in which verdicts on it are recorded."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.case import Grounds
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.endorsement import load_authorities
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.judgement import Result
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.policy import Freshness, Policy
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.reference import load_reference
from ansible_collections.cvm.fde.plugins.plugin_utils.attestation import Attestation
from ansible_collections.cvm.fde.plugins.plugin_utils.case_file import Today
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.ledger import Ledger
from ansible_collections.cvm.fde.plugins.plugin_utils.recording import Recorder
from ansible_collections.cvm.fde.tests.unit.plugins.plugin_utils.asked import attest


@pytest.fixture(scope="module")
def signed(image: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, bytes]:
    """Manifest, signature and key."""
    manifest, key = image.signed_manifest(tmp_path_factory.mktemp("manifest"))
    return manifest.read_bytes(), manifest.with_name("manifest.json.sig").read_bytes(), key.read_bytes()


@pytest.fixture(scope="module")
def grounds(signed: tuple[bytes, bytes, bytes], authority: Path, tomorrow: datetime.datetime) -> Grounds:
    reference = load_reference(*signed)
    return Grounds((reference,), tuple(load_authorities((authority / "ca.pem").read_bytes())), tomorrow)


@pytest.fixture(scope="module")
def demanding(grounds: Grounds) -> Grounds:
    """The grounds of an operator whose policy takes nothing for fresh that the ledger does not know."""
    return replace(grounds, policy=Policy(name="lab", freshness=Freshness.LEDGER))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger.db")


@pytest.fixture(scope="module")
def honest(machine: Any, grounds: Grounds) -> Attestation:
    return attest(machine, grounds)


@pytest.fixture
def record(ledger: Ledger, signed: tuple[bytes, bytes, bytes]) -> Callable[..., Result]:
    def run(attestation: Attestation, host: str = "web1", result: Any = None, **options: Any) -> Result:
        recorder = Recorder(ledger, host, **options)
        return recorder.judged(result or attestation.result, attestation.documents())[0]

    return run


@pytest.fixture
def today(signed: tuple[bytes, bytes, bytes], grounds: Grounds) -> Today:
    return Today([signed[2]], grounds.authorities)
