# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module that answers a verifier, as Ansible starts it: what it tells of the header on the disk."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Optional

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import commit
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import read_area
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.credential import make_credential
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.evidence import parse_evidence, parse_identity
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import parse_public
from instance import Lab
from test_commit import cryptenroll, system

MODULE = "ansible_collections.cvm.fde.plugins.modules.attest_round"


def run_module(instance: Lab, **arguments: Any) -> Any:
    """Run the module and return its answer."""
    library = instance.directory / "lib"
    library.mkdir(exist_ok=True)
    if not (library / "ansible").exists():
        (library / "ansible").symlink_to(os.environ["FDE_ANSIBLE"])
    given = instance.directory / "arguments.json"
    given.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": {"tcti": instance.tcti, **arguments}}))
    environment = {**os.environ, "PYTHONPATH": f"{library}:{os.environ['PYTHONPATH']}"}
    done = subprocess.run(["python3", "-m", MODULE, str(given)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)["answer"]


def told(instance: Lab) -> Optional[bytes]:
    """Hold both rounds, and return what the machine says of the header on its disk."""
    identity = parse_identity(run_module(instance, round="identity"))
    name = parse_public(identity.attestation).name
    credential = make_credential(parse_public(identity.endorsement), name, bytes(32))
    answer = run_module(
        instance,
        round="evidence",
        nonce=base64.b64encode(bytes(32)).decode(),
        pcrs=[11],
        credential=base64.b64encode(credential.blob).decode(),
        encrypted_seed=base64.b64encode(credential.secret).decode(),
    )
    return parse_evidence(answer).header


@pytest.fixture
def labelled(disk: Callable[..., str]) -> Iterator[None]:
    """The host attached a disk with a partition that has the label of ours, and udev's link leads there."""
    link = Path("/dev/disk/by-partlabel/fde")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(disk(64 << 20))
    yield
    link.unlink()


@pytest.mark.usefixtures("labelled")
def test_an_attestation_tells_of_the_header_below_the_open_volume_and_of_no_other(installed: Lab) -> None:
    with installed.booting():
        assert told(installed) is None, "nothing is open yet"
    with system(installed) as instance:
        assert told(instance) == instance.anchored().header_current
        cryptenroll(instance, "--recovery-key")
        assert told(instance) == read_area(instance.partition).digest
        assert told(instance) not in instance.anchored().pinned
        commit.commit(instance.machine)
        assert told(instance) == instance.anchored().header_current
