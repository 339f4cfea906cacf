# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Properties are tried with the same examples in every run, however long an example takes. New ones are searched by
``make fuzz``, or by ``pytest --hypothesis-profile=default``.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("fde", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fde")
