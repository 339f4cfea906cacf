# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest: what a verifier must expect of a machine that runs a sealed image.

Documented in docs/reference-manifest.md, with a JSON schema in docs/schema/manifest.schema.json.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any, Mapping, Optional

from ..verity.superblock import Superblock
from .command_line import Choices
from .prediction import BANKS, predicted
from .secure_boot import Variable, fingerprint, read_der
from .tools import File, Tools
from .uki import Uki, describe_sections

VERSION = 1
UKI_PATH = "/EFI/BOOT/BOOTX64.EFI"


@dataclass(frozen=True)
class Facts:
    """What the manifest is made from.

    ``certificate`` is DER; ``variables`` is None when Secure Boot's are not known.
    """

    name: str
    root_hash: bytes
    root_partition: str
    file_system: str
    root_size: int
    verity: Superblock
    verity_partition: str
    verity_size: int
    uki: Uki
    certificate: bytes
    variables: Optional[Mapping[Variable, bytes]]
    choices: Choices = Choices()


def manifest(facts: Facts) -> dict[str, Any]:
    """Return the manifest. Raises ``FdeError`` when db is given and does not hold the signing certificate."""
    content = facts.uki.image.content
    public_key = facts.uki.sections[".pcrpkey"].rstrip(b"\0")
    return {
        "version": VERSION,
        "name": facts.name,
        "strategy": facts.choices.strategy.value,
        "root": {
            "hash": facts.root_hash.hex(),
            "partition_uuid": facts.root_partition,
            "file_system": facts.file_system,
            "size": facts.root_size,
        },
        "verity": {
            "algorithm": facts.verity.algorithm,
            "data_block_size": facts.verity.data_block_size,
            "hash_block_size": facts.verity.hash_block_size,
            "data_blocks": facts.verity.data_blocks,
            "salt": facts.verity.salt.hex(),
            "uuid": str(facts.verity.uuid),
            "partition_uuid": facts.verity_partition,
            "size": facts.verity_size,
        },
        "uki": {
            "path": UKI_PATH,
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "authenticode_sha256": facts.uki.image.authenticode().hex(),
            "stub_version": facts.uki.stub_version,
            "command_line": facts.uki.command_line,
            "sections": describe_sections(facts.uki),
        },
        "secure_boot": {"signer_sha256": fingerprint(facts.certificate)},
        "pcr_policy": {
            "public_key": public_key.decode("ascii"),
            "fingerprint": fingerprint(read_der(public_key, "PUBLIC KEY", ".pcrpkey")),
        },
        "pcrs": {bank: predicted(facts.uki, facts.variables, facts.certificate, bank) for bank in BANKS},
    }


def encode(document: Mapping[str, Any]) -> bytes:
    """Return the bytes that are written and signed."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def sign(tools: Tools, path: str, key: str, target: str) -> None:
    """Sign the bytes of a file (SHA-256, RSA PKCS #1 v1.5 or ECDSA) with a private key given by its path."""
    tools.run(["openssl", "dgst", "-sha256", "-sign", File(key), "-out", File(target, writable=True), File(path)])


def public_key(tools: Tools, private_key: str) -> bytes:
    """Return the public half (PEM) of a private key given by its path."""
    return tools.run(["openssl", "pkey", "-pubout", "-in", File(private_key)]).stdout


def is_signed_by(tools: Tools, path: str, signature: str, key: str, scratch: str) -> bool:
    """Tell whether the signature beside a file is one of this private key over its present bytes."""
    if not os.path.isfile(path) or not os.path.isfile(signature):
        return False
    public = os.path.join(scratch, "manifest-key.pem")
    with open(public, "wb") as file:
        file.write(public_key(tools, key))
    verdict = tools.run(
        ["openssl", "dgst", "-sha256", "-verify", File(public), "-signature", File(signature), File(path)], ok=(0, 1)
    )
    return verdict.status == 0
