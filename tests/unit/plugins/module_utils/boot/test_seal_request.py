# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is chosen for all instances of an image is checked before anything is sealed."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.configuration import (
    SVN_MAXIMUM,
    Place,
    Recovery,
    Strategy,
    VolumeDisk,
)
from ansible_collections.cvm.fde.plugins.module_utils.boot.command_line import Choices
from ansible_collections.cvm.fde.plugins.module_utils.boot.seal_request import make_choices
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError


def params(**given: Any) -> dict[str, Any]:
    return {"strategy": "overlay", "volume_disk": "root", "recovery": "none", "security_version": 0, **given}


def test_what_is_chosen_is_taken() -> None:
    assert make_choices(params()) == Choices(Strategy.OVERLAY)
    given = params(volume_disk="other", recovery="console", security_version=SVN_MAXIMUM)
    wanted = Choices(Strategy.OVERLAY, VolumeDisk(Place.OTHER), Recovery.CONSOLE, SVN_MAXIMUM)
    assert make_choices(given) == wanted


@pytest.mark.parametrize(
    ("option", "value"), [("volume_disk", "third"), ("security_version", -1), ("security_version", SVN_MAXIMUM + 1)]
)
def test_what_no_machine_could_keep_is_an_error_that_names_the_option(option: str, value: Any) -> None:
    with pytest.raises(FdeError) as caught:
        make_choices(params(**{option: value}))
    assert caught.value.subject == option


@pytest.mark.parametrize(
    ("option", "value"), [("volume_disk", "other"), ("recovery", "console"), ("security_version", 1)]
)
def test_an_ephemeral_image_has_no_volume_to_choose_for(option: str, value: Any) -> None:
    assert make_choices(params(strategy="ephemeral")) == Choices(Strategy.EPHEMERAL)
    with pytest.raises(FdeError, match="no encrypted volume") as caught:
        make_choices(params(strategy="ephemeral", **{option: value}))
    assert f"'{option}'" in caught.value.remedy
