# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What whole-boot tests share. A boot costs minutes of both cores, so each is made once and asked many questions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ansible_collections.cvm.fde.tests.lab.guest import Guest, boot, together
from ansible_collections.cvm.fde.tests.lab.sealed import Sealed, sealed_image


@pytest.fixture(scope="session")
def sealed() -> Sealed:
    """The sealed image of this state of the checkout."""
    return sealed_image()


@pytest.fixture(scope="session")
def instances(sealed: Sealed) -> Iterator[list[Guest]]:
    """Two instances of the image after their first boot, on or off."""
    guests = [Guest("e2e-1"), Guest("e2e-2")]

    def first_boot(guest: Guest) -> None:
        Guest.create(guest.name, sealed.image)
        boot(guest)

    try:
        together(first_boot, guests)
        yield guests
    finally:
        for guest in guests:
            guest.power_off()


@pytest.fixture(scope="module")
def fleet(instances: list[Guest]) -> list[Guest]:
    """Both instances, switched on."""
    together(boot, [guest for guest in instances if not guest.running])
    return instances
