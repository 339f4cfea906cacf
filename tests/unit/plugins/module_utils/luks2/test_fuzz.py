# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fuzzer's target holds for its seeds, for plain random changes, and for what atheris finds in a short run."""

from __future__ import annotations

import importlib
import random
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.luks2.header import Header
from ansible_collections.cvm.fde.plugins.module_utils.luks2.policy import judge

CHECKOUT = Path(__file__).resolve().parents[5]


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(CHECKOUT))
    return importlib.import_module("tests.fuzz.luks2_header")


def test_the_seeds_are_genuine_headers_in_short_form(target):
    sound = [Header.parse(target.expanded(seed)) for seed in target.seeds() if seed[:1] == b"\1"]
    assert len(sound) == 17
    assert {header.binary.size for header in sound} == {target.SIZE}


def test_every_profile_and_every_kind_of_token_begins_with_a_seed_that_is_accepted(target):
    kinds = set()
    for number, expectation in enumerate((target.ROOT, *target.DATA)):
        seeds = [seed for seed in target.seeds() if seed[:1] == b"\1"]
        headers = [Header.parse(target.expanded(seed)) for seed in seeds]
        accepted = [header for header in headers if judge(header, expectation).accepted]
        assert accepted
        kinds |= {(bool(number), token["type"]) for header in accepted for token in header.metadata["tokens"].values()}
    assert kinds == {
        *((False, "systemd-tpm2"), (False, "cvm-fde")),
        *((True, "systemd-tpm2"), (True, "systemd-recovery")),
    }


def test_seeds_and_random_changes_of_them_keep_the_promises(target):
    check, rng = target.TARGET.once, random.Random(1)

    def natural(content: bytes, longest: int) -> bytes:
        at = rng.randrange(len(content) + 1)
        return (content[:at] + rng.randbytes(rng.randrange(4)) + content[at + rng.randrange(4) :])[:longest]

    seeds = list(target.seeds())
    for seed in seeds:
        check(seed)
    for number in range(1500):
        content = rng.choice(seeds)
        for _change in range(rng.randrange(1, 4)):
            content = target.mutate(content, target.TARGET.limit, number, natural)
        check(content)


def test_atheris_finds_nothing_in_a_short_run(tmp_path):
    pytest.importorskip("atheris", reason="atheris is not installed (pip install atheris)")
    words = ["--folder", str(tmp_path), "--seed", "1", "--seconds", "0", "--runs", "4000", "luks2_header"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *words], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "findings: none" in done.stdout
    assert re.search(r"luks2_header +4,000 inputs", done.stdout), done.stdout
