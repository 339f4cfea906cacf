# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is accepted of a header is what cryptsetup reads in it: nothing hides between the two readers.

cryptsetup alone would not do: it mends what it reads, and leaves fields out that it does not know (2.8.8).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.luks2.header import Header, HeaderError
from ansible_collections.cvm.fde.plugins.module_utils.luks2.policy import judge
from ansible_collections.cvm.fde.plugins.module_utils.runner import Runner
from ansible_collections.cvm.fde.tests.fuzz import luks2_header as fuzzed

#: A device of this size holds the header and a little data.
SIZE = fuzzed.OFFSET + (1 << 20)


@pytest.fixture
def read(runner: Runner, tmp_path: Path) -> Callable[[bytes], Any]:
    """Return a function that has cryptsetup read a header; None where it refuses."""

    def dumped(area: bytes) -> Any:
        path = tmp_path / "header"
        path.write_bytes(area)
        with path.open("r+b") as file:
            file.truncate(SIZE)
        done = runner.run(["cryptsetup", "luksDump", "--dump-json-metadata", str(path)], ok=())
        return json.loads(done.stdout) if done.status == 0 else None

    return dumped


def accepted(area: bytes) -> Header | None:
    """Return the header if it is sound and any kind of volume may have it."""
    try:
        header = Header.parse(area)
    except HeaderError:
        return None
    return header if any(judge(header, kind).accepted for kind in (fuzzed.ROOT, *fuzzed.DATA)) else None


def test_cryptsetup_reads_what_is_accepted_of_a_changed_header(read: Callable[[bytes], Any]) -> None:
    rng, found = random.Random(1), 0
    seeds = [seed for seed in fuzzed.seeds() if seed[:1] == b"\1"]

    def natural(content: bytes, longest: int) -> bytes:
        at = rng.randrange(len(content) + 1)
        return (content[:at] + rng.randbytes(rng.randrange(4)) + content[at + rng.randrange(4) :])[:longest]

    for number in range(4000):
        content = fuzzed.mutate(rng.choice(seeds), fuzzed.TARGET.limit, number, natural)
        if content in seeds:
            continue
        area = fuzzed.expanded(content)
        header = accepted(area)
        if header is not None:
            assert read(area) == header.metadata, content
            found += 1
    assert found > 10


#: The same JSON in other words.
SPELLINGS: dict[str, Callable[[Any], str]] = {
    "spaces": lambda metadata: json.dumps(metadata, indent=" "),
    "tabs": lambda metadata: json.dumps(metadata, indent="\t"),
    "carriage returns": lambda metadata: json.dumps(metadata, indent=" ").replace("\n", "\r\n"),
    "escaped slashes": lambda metadata: json.dumps(metadata).replace("/", "\\/"),
    "escaped letters": lambda metadata: json.dumps(metadata).replace("aes", "\\u0061e\\u0073"),
    "escaped names": lambda metadata: json.dumps(metadata).replace('"keyslots"', '"\\u006beyslots"'),
    "other order": lambda metadata: json.dumps({name: metadata[name] for name in sorted(metadata, reverse=True)}),
    "sorted names": lambda metadata: json.dumps(metadata, sort_keys=True),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_cryptsetup_reads_another_spelling_as_the_same_or_not_at_all(
    read: Callable[[bytes], Any], spelling: str
) -> None:
    seeds = [seed for seed in fuzzed.seeds() if seed[:1] == b"\1"]
    spelled = [b"\1" + SPELLINGS[spelling](json.loads(seed[1:])).encode() for seed in seeds]
    headers = [(area, accepted(area)) for area in map(fuzzed.expanded, spelled)]
    kept = [(area, header) for area, header in headers if header is not None]
    assert kept
    for area, header in kept:
        assert read(area) in (header.metadata, None)
