# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make and check hash trees.

The seam for other builders: whatever makes a tree gets a file with the data and the parameters, writes the hash file
and returns the root hash; ``verify`` then reads everything again.
"""

from __future__ import annotations

import os

from ..boot.tools import File, Tools
from ..errors import FdeError
from .superblock import SIZE, Superblock, parse


def format_tree(tools: Tools, data: str, target: str, wanted: Superblock) -> bytes:
    """Write superblock and hash tree of the file ``data`` to ``target``; return the root hash.

    Raises ``FdeError`` when what was written is not what was asked for.
    """
    hash_file = f"{target}.roothash"
    for path in (target, hash_file):
        with open(path, "wb"):
            pass
    tools.run(
        [
            "veritysetup",
            "format",
            f"--hash={wanted.algorithm}",
            f"--data-block-size={wanted.data_block_size}",
            f"--hash-block-size={wanted.hash_block_size}",
            f"--data-blocks={wanted.data_blocks}",
            f"--salt={wanted.salt.hex()}",
            f"--uuid={wanted.uuid}",
            File(hash_file, writable=True, prefix="--root-hash-file="),
            File(data),
            File(target, writable=True),
        ]
    )
    with open(hash_file, encoding="ascii") as file:
        root_hash = bytes.fromhex(file.read().strip())
    os.unlink(hash_file)
    with open(target, "rb") as file:
        written = parse(file.read(SIZE), target)
    if written != wanted or len(root_hash) != 32 or os.path.getsize(target) != wanted.area_size:
        raise FdeError(
            target,
            "veritysetup wrote another hash tree than was asked for",
            "Use veritysetup of cryptsetup 2.4 or later",
        )
    return root_hash


def verify_tree(tools: Tools, data: str, target: str, root_hash: bytes) -> None:
    """Read all data and all hashes again and compare. Raises ``FdeError`` when a block differs."""
    tools.run(["veritysetup", "verify", File(data), File(target), root_hash.hex()])
