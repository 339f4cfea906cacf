# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the inputs of one machine anew, by ``python -m tests.fuzz.make_seeds``: where what a machine says has changed.

The machine is that of the unit tests. Its nonce and secret are zeroes, as the judgement that is fuzzed expects. Inputs
of hardware, which are of another machine, stay as they are.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / "build/collections"))

from ansible_collections.cvm.fde.plugins.module_utils.tpm import rounds  # noqa: E402
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.credential import make_credential  # noqa: E402
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.rules.table import DEFAULT_PCRS  # noqa: E402
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.structures import parse_public  # noqa: E402
from ansible_collections.cvm.fde.tests.unit.plugins.conftest import Image, Machine, make_authority, timeless  # noqa: E402

from .target import SEEDS  # noqa: E402


def main() -> None:
    """Boot a machine once, ask it, and keep every part of its answers."""
    with tempfile.TemporaryDirectory() as scratch:
        authority, image = make_authority(Path(scratch) / "authority"), Image()
        folder = Path(scratch) / "machine"
        folder.mkdir()
        machine = Machine(folder, authority, name="seed")
        try:
            machine.boot(image, first=True)
            _keep(machine)
        finally:
            machine.stop()
        _put("authority/ca.pem", (authority / "ca.pem").read_bytes())
        _put("manifest/manifest.json", json.dumps(image.manifest()).encode())


def _keep(machine: Machine) -> None:
    identity = rounds.identity(machine.sources)
    decoded = {name: base64.b64decode(value) for name, value in identity.items() if value is not None}
    keys = [parse_public(decoded[name]) for name in ("endorsement", "attestation")]
    credential = make_credential(keys[0], keys[1].name, bytes(32))
    request = rounds.Request(bytes(32), {"sha256": DEFAULT_PCRS}, credential.blob, credential.secret)
    evidence = {**rounds.evidence(machine.sources, request, machine.token), "hydration": {"hydrated": 1, "total": 4}}
    _put("identity/honest", json.dumps(identity).encode())
    _put("evidence/honest", json.dumps(evidence).encode())
    _put("token/honest", machine.token)
    for signed, kind in (("quote", "quote"), ("anchor", "nv_certification")):
        _put(f"{kind}/honest", base64.b64decode(evidence[signed]["attest"]))
        _put(f"signature/{signed}", base64.b64decode(evidence[signed]["signature"]))
    _put("public/ek", keys[0].raw)
    _put("public/ak", keys[1].raw)
    _put("certificate/ek", decoded["endorsement_certificate"])
    _put("timeless/ek", timeless(keys[0].key))
    _put("firmware_log/honest", machine.firmware_log.read_bytes())
    _put("userspace_log/honest", machine.userspace_log.read_bytes())


def _put(name: str, content: bytes) -> None:
    (SEEDS / name).write_bytes(content)


if __name__ == "__main__":
    main()
