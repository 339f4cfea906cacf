# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation names what the code has, no more and no less."""

from __future__ import annotations

import ast
import re
import xml.etree.ElementTree
from enum import Enum
from pathlib import Path
from typing import Any, Optional

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.decision import (
    Action,
    Decision,
    Probed,
    Volume,
    decide,
)
from ansible_collections.cvm.fde.plugins.module_utils.codes import RECOVERABLE, Code, refuse, without_recovery
from ansible_collections.cvm.fde.plugins.module_utils.luks2.expectation import Reason
from ansible_collections.cvm.fde.plugins.module_utils.luks2.header import Defect
from ansible_collections.cvm.fde.plugins.module_utils.tpm import anchor as anchors
from ansible_collections.cvm.fde.plugins.module_utils.tpm.anchor import Anchor, Found, Standing, State

CHECKOUT = Path(__file__).resolve().parents[3]
PAGES = sorted([CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")])

CURRENT, NEXT, OTHER, PREVIOUS = b"\1" * 32, b"\2" * 32, b"\3" * 32, b"\4" * 32


def table(page: str, first_heading: str) -> list[tuple[str, ...]]:
    """Return the rows of the table of a page whose first column has that heading."""
    lines = (CHECKOUT / "docs" / page).read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first_heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(tuple(cell.strip() for cell in line.strip("|").split("|")))
    return rows


def volume(header_digest: Optional[bytes], ours: bool = True) -> Volume:
    return Volume("/dev/sda3", ours_by_type=ours, header_digest=header_digest)


READY = Anchor(State.READY, header_current=CURRENT, header_previous=PREVIOUS)
#: Of `ready` there are two, which differ only where a row says so.
NEXT_PINNED = "`ready` with a next header"
ANCHORS = {
    "absent": Found(Standing.ABSENT),
    "never written": Found(Standing.UNWRITTEN),
    "foreign index": Found(Standing.FOREIGN),
    "unknown content": Found(Standing.UNREADABLE),
    "`initializing`": Found(Standing.OURS, Anchor(State.INITIALIZING)),
    "`ready`": Found(Standing.OURS, READY),
    NEXT_PINNED: Found(Standing.OURS, READY.changing(NEXT)),
}
#: What can be on the disk, by the words of the table: several where they make no difference.
Partitions = dict[str, list[dict[str, Any]]]
ALWAYS: Partitions = {
    "none": [{}],
    "without LUKS2 header": [{"volumes": (volume(None),)}],
    "two": [{"volumes": (volume(one), volume(other))} for one in (None, CURRENT) for other in (None, CURRENT, OTHER)],
    "of another kind": [
        {"foreign": ("/dev/sda4",)},
        {"volumes": (volume(CURRENT),), "foreign": ("/dev/sda4",)},
        {"volumes": (volume(CURRENT, ours=False),)},
    ],
}
NOTHING_PINNED: Partitions = {
    **ALWAYS,
    "with LUKS2 header": [{"volumes": (volume(digest),)} for digest in (CURRENT, NEXT, PREVIOUS, OTHER)],
}
PINNED: Partitions = {
    **ALWAYS,
    "header digest is the current one": [{"volumes": (volume(CURRENT),)}],
    "header digest is the previous one": [{"volumes": (volume(PREVIOUS),)}],
    "another header digest": [{"volumes": (volume(OTHER),)}, {"volumes": (volume(OTHER),), "saved_header": OTHER}],
}
SAVED = "not a pinned header, but a saved copy of one"
BOTH_PINNED: Partitions = {
    **PINNED,
    "header digest is the next one": [{"volumes": (volume(NEXT),)}],
    SAVED: [
        {"volumes": (volume(digest),), "saved_header": saved}
        for digest in (None, PREVIOUS, OTHER)
        for saved in (CURRENT, NEXT)
    ],
}


def states(anchor: str) -> Partitions:
    """Return what the code tells apart on the disk while the TPM holds this anchor."""
    return {"`ready`": PINNED, NEXT_PINNED: BOTH_PINNED}.get(anchor, NOTHING_PINNED)


def outcome(anchor: str, partition: str) -> str:
    """Return in the words of the table what the boot does."""
    (said,) = {_said(Probed(ANCHORS[anchor], ("/dev/sda",), **state)) for state in states(anchor)[partition]}
    return said


def _said(probed: Probed) -> str:
    decided = decide(probed)
    if not isinstance(decided, Decision):
        return f"refusal `{decided.code}`"
    words = {Action.FIRST_BOOT: "first boot", Action.OPEN: "open", Action.REPAIR: "write the copy, then open"}
    return words[decided.action]


def meant(cell: str) -> list[str]:
    """Return the anchors that a cell of the table stands for."""
    named = list(ANCHORS) if cell == "any" else cell.split(", ")
    return [*named, *[NEXT_PINNED] * ("`ready`" in named and cell != "any")]


def test_the_boot_agent_decides_as_the_table_says_and_the_table_says_all() -> None:
    rows = table("how-it-works.md", "anchor in the TPM")
    written = [((anchor, partition), what) for cell, partition, what in rows for anchor in meant(cell)]
    decided = {(anchor, partition): outcome(anchor, partition) for anchor in ANCHORS for partition in states(anchor)}
    assert dict(written) == decided
    assert len(written) == len(decided), "a state has two rows"


def test_the_codes_that_can_be_recovered_are_listed() -> None:
    listed = {code for row in table("recovery.md", "code") for code in re.findall(r"`([a-z-]+)`", row[0])}
    assert listed == {code.value for code in RECOVERABLE}


def test_only_what_can_be_recovered_is_said_to_be() -> None:
    assert {code for code in BOOT if "with its recovery key" in code.remedy} == set(RECOVERABLE)


def test_what_an_image_without_recovery_says_instead_is_listed() -> None:
    said = {code: without_recovery(refuse(code, "/dev/vda4")).remedy for code in BOOT if code in RECOVERABLE}
    expected = [(f"`{code.value}`", remedy) for code, remedy in said.items()]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in expected)
    assert table("refusal-codes.md", "code without recovery") == expected, (
        f"docs/refusal-codes.md should hold:\n{lines}"
    )


def test_the_anchor_is_as_long_as_its_table() -> None:
    assert sum(int(row[0]) for row in table("how-it-works.md", "bytes")) == anchors.SIZE


#: The codes of a boot, in their order, and those that only data volumes have.
BOOT = list(Code)[: list(Code).index(Code.FAILED) + 1]
FURTHER = [code for code in Code if code not in BOOT]


@pytest.mark.parametrize(("heading", "codes"), [("code", BOOT), ("further code", FURTHER)])
def test_every_refusal_code_is_explained_in_its_own_words_and_its_order(heading: str, codes: list[Code]) -> None:
    expected = [(f"`{code.value}`", code.sentence, code.remedy) for code in codes]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in expected)
    assert table("refusal-codes.md", heading) == expected, f"docs/refusal-codes.md should hold:\n{lines}"


def raised_codes() -> set[str]:
    """Return the codes that the core gives to ``Refusal`` with words of the moment."""
    calls = (
        node
        for path in (CHECKOUT / "plugins/module_utils").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Refusal" and node.args
    )
    return {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)}


def test_no_refusal_has_a_code_of_its_own() -> None:
    raised = raised_codes()
    assert "header-changed" in raised, "or none was found at all"
    assert raised - {code.value for code in Code} == set()


def test_a_refusal_of_a_boot_has_the_words_of_its_code() -> None:
    # What a data volume may say beside them is what only its owner can do: set an option, attach the right disk.
    places = [
        path for part in ("agent", "dm", "luks2") for path in (CHECKOUT / "plugins/module_utils" / part).iterdir()
    ]
    sources = {path.name: path.read_text() for path in places if path.suffix == ".py"}
    assert [name for name, source in sources.items() if re.search(r"(?<!def )\bRefusal\(", source)] == []


@pytest.mark.parametrize(("heading", "words"), [("defect", Defect), ("reason", Reason)])
def test_what_is_refused_in_a_header_is_explained(heading: str, words: type[Enum]) -> None:
    explained = [
        word for row in table("reference-header.md", heading) for word in re.findall(r"`([a-z0-9-]+)`", row[0])
    ]
    assert sorted(explained) == sorted(word.value for word in words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_that_exists(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_role_and_playbook_that_is_named_exists(page: Path) -> None:
    known = {
        path.stem
        for folder in ("plugins/modules", "plugins/test", "playbooks")
        for path in (CHECKOUT / folder).iterdir()
    }
    known |= {path.name for path in (CHECKOUT / "roles").iterdir()}
    named = set(re.findall(r"\bcvm\.fde\.([a-z0-9_]+)", page.read_text()))
    assert named - known == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_of_the_checkout_that_is_named_exists(page: Path) -> None:
    named = re.findall(r"`((?:docs|extensions|meta|playbooks|plugins|roles|tests)/[\w./-]+)`", page.read_text())
    assert [path for path in named if not (CHECKOUT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z0-9-]+)", page.read_text())) - targets == set()


@pytest.mark.parametrize("picture", sorted((CHECKOUT / "docs/images").glob("*.svg")), ids=lambda path: path.name)
def test_every_picture_is_well_formed_and_has_a_title(picture: Path) -> None:
    root = xml.etree.ElementTree.parse(picture).getroot()
    assert root.find("{http://www.w3.org/2000/svg}title") is not None
