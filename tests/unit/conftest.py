# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all unit tests share: how properties are tried, and real attestation inputs."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.cvm.fde.tests.vectors import MISSING, VECTORS
from hypothesis import HealthCheck, settings

# The same examples in every run, however long one takes. New ones are searched by ``make fuzz``, or by
# ``pytest --hypothesis-profile=default``.
settings.register_profile("fde", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fde")


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of real attestation inputs."""
    if not VECTORS.is_dir():
        pytest.skip(MISSING)
    return VECTORS
