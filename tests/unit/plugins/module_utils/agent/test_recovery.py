# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which refused boots may be recovered, and what is said of the others. The recovery itself: tests/integration."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import recovery
from ansible_collections.cvm.fde.plugins.module_utils.agent.configuration import Configuration, Recovery, Strategy
from ansible_collections.cvm.fde.plugins.module_utils.codes import Code, refuse, without_recovery
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError, Refusal

#: The volume is there, and only the TPM's memory of it is in doubt.
RECOVERABLE = {
    "anchor-unreadable",
    "anchor-foreign",
    "volume-without-anchor",
    "header-mismatch",
    "rolled-back",
    "key-unavailable",
}


def machine(allowed: Recovery) -> Any:
    return SimpleNamespace(configuration=Configuration(bytes(32), Strategy.CLONE, recovery=allowed))


def offered(allowed: Recovery, error: FdeError) -> bool:
    return recovery.offered(machine(allowed), error)


@pytest.mark.parametrize("allowed", Recovery)
@pytest.mark.parametrize("code", Code)
def test_a_recovery_is_offered_where_the_image_allows_it_and_the_code_can_be_recovered(
    allowed: Recovery, code: Code
) -> None:
    expected = allowed is Recovery.CONSOLE and code.value in RECOVERABLE
    assert offered(allowed, refuse(code, "/dev/vda4")) is expected


def test_what_is_no_refusal_of_a_known_code_is_never_recovered() -> None:
    assert not offered(Recovery.CONSOLE, FdeError("header-mismatch", "header-mismatch", "header-mismatch"))
    assert not offered(Recovery.CONSOLE, Refusal("unnamed", "/dev/vda4", "it differs", "Look at it"))


@pytest.mark.parametrize("code", Code)
def test_what_promises_a_recovery_can_be_said_without(code: Code) -> None:
    refusal = refuse(code, "/dev/vda4", "detail")
    said = without_recovery(refusal)
    assert isinstance(said, Refusal)
    assert (said.code, said.subject, said.cause) == (refusal.code, refusal.subject, refusal.cause)
    if code.value in RECOVERABLE:
        assert "with its recovery key" in refusal.remedy and "with its recovery key" not in said.remedy
        assert said.remedy.startswith("This image offers no recovery: ")
    else:
        assert said is refusal


@pytest.mark.parametrize(
    "error",
    [
        FdeError("header-mismatch", "header-mismatch", "header-mismatch"),
        Refusal("unnamed", "/dev/vda4", "it differs", "Look at it"),
    ],
)
def test_an_error_of_no_known_code_keeps_its_words(error: FdeError) -> None:
    assert without_recovery(error) is error
