# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalogue of attacks: every test that proves a promise against one says so, and docs/attacks.md is made of that.

python -m tests.attacks.catalogue            # write docs/attacks.md
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypeVar

CHECKOUT = Path(__file__).resolve().parents[2]
DOCUMENT = CHECKOUT / "docs/attacks.md"
STOCK = Path(__file__).with_name("stock.json")

Test = TypeVar("Test", bound=Callable[..., None])


class Kind(str, Enum):
    """The kinds of attack, each with the heading that it has in the document."""

    EVIL_TWIN = "An evil twin: another volume, sealed to the same TPM"
    PRE_CREATED = "A partition or volume that is there before the first boot"
    NULL_CIPHER = "A header that encrypts nothing"
    OLD_HEADER = "An old header, with a keyslot that was removed since"
    SWAPPED = "The volumes of two instances exchanged"
    DISKS = "Partitions and disks added, removed or copied"
    CLONE_METADATA = "The record of what was copied, changed"
    VERITY = "The image's data, hashes or root hash changed"
    CONFIGURATION = "Kernel image, command line, add-on, credential or extra file changed or added"
    ANCHOR = "The anchor deleted or redefined"
    OTHER_TPM = "Another TPM, or the same one in another state"
    EVIDENCE = "The evidence token removed, copied from another instance or forged"
    CIPHERTEXT = "Sectors of the encrypted volume flipped, moved or exchanged"


@dataclass(frozen=True)
class Attack:
    """One attack: what the attacker ``does``, what is ``promised``, what ``stops`` it, and the test that proves it."""

    kind: Kind
    does: str
    promise: str
    stops: str
    file: str
    test: str

    @property
    def where(self) -> str:
        """Where the test runs."""
        if "/inside/" in self.file:
            return "User-mode Linux"
        return "booted guest" if self.file.startswith("tests/e2e/") else "verifier"


def attack(*, kind: Kind, does: str, promise: str, stops: str) -> Callable[[Test], Test]:
    """Mark a test as the proof that an attack fails; the arguments are literals, they are read from the source."""

    def mark(test: Test) -> Test:
        return test

    return mark


def attacks() -> Iterator[Attack]:
    """Yield every attack of the test suite, without importing the tests."""
    for path in sorted((CHECKOUT / "tests").rglob("test_*.py")):
        for node in ast.parse(path.read_text(), str(path)).body:
            for call in getattr(node, "decorator_list", ()):
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "attack":
                    assert isinstance(node, ast.FunctionDef)
                    yield _attack(call, str(path.relative_to(CHECKOUT)), node.name)


def _attack(call: ast.Call, file: str, test: str) -> Attack:
    words = {str(keyword.arg): keyword.value for keyword in call.keywords}
    kind = words.pop("kind")
    assert isinstance(kind, ast.Attribute), f"{file}, {test}: the kind is not written as Kind.NAME"
    texts = {name: ast.literal_eval(value) for name, value in words.items()}
    return Attack(kind=Kind[kind.attr], file=file, test=test, **texts)


_HEAD = """\
# Attacks

Made by `python -m tests.attacks.catalogue` from the tests that prove what stands here; do not edit.

The attacker is the host: it holds the disk and the power switch, and may start another system on the same TPM (see the
[threat model](threat-model.md)). Codes like `header-mismatch` are [refusal codes](refusal-codes.md). *Where* says where
the test runs: with the boot agent on a real device-mapper and a software TPM in User-mode Linux, in a guest that
firmware has booted, or at the verifier. Those in a booted guest are part of `make more-e2e` and, but for the one with
the add-on, not of `make test`.

**systemd {version} as it comes** is what that version's own programs do in the same place when they are used as their
manual pages show it: an encrypted partition of `systemd-repart` (`Encrypt=tpm2`), opened by `systemd-cryptsetup` with
`tpm2-device=auto` and no further options. It is one case of a kind, or two, and not every row of its table.
`python -m tests.attacks.stock` runs that in User-mode Linux.
"""


_TABLE = "| attack | promise | what stops it | where | test |\n|---|---|---|---|---|\n"


def document() -> str:
    """Return the document."""
    stock = json.loads(STOCK.read_text())
    listed = list(attacks())
    parts = [_HEAD.format(version=stock["systemd"])]
    for kind in Kind:
        rows = [one for one in listed if one.kind is kind]
        parts.append(f"\n## {kind.value}\n\n{_TABLE}")
        parts += [f"| {one.does} | {one.promise} | {one.stops} | {one.where} | {_link(one)} |\n" for one in rows]
        compared = _outcomes([one for one in stock["results"] if one["kind"] == kind.name])
        parts.append(f"\n**systemd {stock['systemd']} as it comes:**{compared or ' nothing to compare.'}\n")
    return "".join(parts)


def _link(one: Attack) -> str:
    return f"[`{one.test}`](../{one.file})"


def _outcomes(found: list[dict[str, str]]) -> str:
    if len(found) == 1:
        return f" {found[0]['does']}: **{found[0]['outcome']}**. {found[0]['detail']}"
    return "\n" + "".join(f"\n- {one['does']}: **{one['outcome']}**. {one['detail']}" for one in found) if found else ""


if __name__ == "__main__":
    DOCUMENT.write_text(document())
    sys.exit(0)
