# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said to differ between two headers, and when both are of one volume."""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.commit import Action, Root, plan
from ansible_collections.cvm.fde.plugins.module_utils.agent.differences import contents, differences, same_volume
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import HeaderArea
from ansible_collections.cvm.fde.plugins.module_utils.luks2.header import Header
from ansible_collections.cvm.fde.plugins.module_utils.tpm.anchor import Anchor, State

COPY = 256 << 10
FIXTURE = Path(__file__).parents[1] / "luks2/fixtures/2.8.8-root.xz"
#: Behind both copies of the fixture's header lie its keyslots.
ROOM = 4 << 20


@pytest.fixture(scope="module")
def genuine() -> bytes:
    return lzma.decompress(FIXTURE.read_bytes()).ljust(ROOM, b"\0")


def edited(content: bytes, edit: Callable[[dict[str, Any]], object]) -> HeaderArea:
    """Return a header with changed JSON and right checksums."""
    metadata = json.loads(content[4096:COPY].rstrip(b"\0"))
    edit(metadata)
    new = bytearray(content)
    for start in (0, COPY):
        new[start + 4096 : start + COPY] = json.dumps(metadata).encode().ljust(COPY - 4096, b"\0")
        new[start + 448 : start + 512] = bytes(64)
        new[start + 448 : start + 480] = hashlib.sha256(new[start : start + COPY]).digest()
    return HeaderArea("/dev/x", bytes(new))


def area(content: bytes) -> HeaderArea:
    return HeaderArea("/dev/x", content)


def add_recovery(metadata: dict[str, Any]) -> None:
    metadata["keyslots"]["2"] = json.loads(json.dumps(metadata["keyslots"]["1"]))
    metadata["keyslots"]["2"]["area"]["offset"] = "1294336"
    metadata["tokens"]["2"] = {"type": "systemd-recovery", "keyslots": ["2"]}
    metadata["digests"]["0"]["keyslots"].append("2")


def test_the_same_header_differs_in_nothing(genuine: bytes) -> None:
    assert differences(area(genuine), area(genuine)) == []


def test_what_was_added_is_named_by_what_opens_it(genuine: bytes) -> None:
    new = edited(genuine, add_recovery)
    assert differences(area(genuine), new) == [
        "keyslot 2 was added (systemd-recovery)",
        "token 2 was added (systemd-recovery)",
    ]
    assert differences(new, area(genuine)) == [
        "keyslot 2 was removed (systemd-recovery)",
        "token 2 was removed (systemd-recovery)",
    ]
    assert contents(new) == ["keyslot 1: systemd-tpm2", "keyslot 2: systemd-recovery"]


def test_a_keyslot_without_a_token_is_called_what_it_is(genuine: bytes) -> None:
    def edit(metadata: dict[str, Any]) -> None:
        add_recovery(metadata)
        del metadata["tokens"]["2"]

    assert differences(area(genuine), edited(genuine, edit)) == [
        "keyslot 2 was added (opened by a passphrase or a key file)"
    ]


def test_other_key_material_under_the_same_words_is_a_change(genuine: bytes) -> None:
    place = int(area(genuine).header().metadata["keyslots"]["1"]["area"]["offset"])
    changed = bytearray(genuine)
    changed[place + 5000] ^= 1
    assert differences(area(genuine), area(bytes(changed))) == ["keyslot 1 was changed (systemd-tpm2)"]


def test_keyslots_come_and_go_within_one_volume(genuine: bytes) -> None:
    assert same_volume(Header.parse(genuine), edited(genuine, add_recovery).header())


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m["digests"]["0"].update(digest="A" * 43 + "="),
        lambda m: m["digests"]["0"].update(salt="A" * 43 + "="),
        lambda m: m["digests"]["0"].update(iterations=1234567),
        lambda m: m["digests"].update({"1": dict(m["digests"]["0"])}),
        lambda m: m["segments"]["0"].update(encryption="cipher_null-ecb"),
        lambda m: m["segments"]["0"].update(offset="16777216"),
    ],
)
def test_another_key_or_other_data_is_another_volume(genuine: bytes, edit: Callable[[dict[str, Any]], object]) -> None:
    assert not same_volume(Header.parse(genuine), edited(genuine, edit).header())


A, B, C = (area(letter * 4096) for letter in (b"a", b"b", b"c"))


@pytest.mark.parametrize(
    ("disk", "following", "expected"),
    [
        (A, None, Action.NOTHING),
        (A, B, Action.ABANDON),
        (B, B, Action.FINISH),
        (C, B, Action.COMMIT),
        (C, None, Action.COMMIT),
    ],
)
def test_what_is_left_to_do_about_a_header(disk: HeaderArea, following: HeaderArea | None, expected: Action) -> None:
    anchor = Anchor(State.READY, header_current=A.digest, header_next=following.digest if following else bytes(32))
    assert plan(Root(disk, A, anchor)) is expected
