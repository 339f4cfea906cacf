# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The strategies by their names."""

from __future__ import annotations

from typing import Mapping

from .configuration import Strategy
from .strategy import Root
from .strategy_clone import Cloned
from .strategy_copy import Copied
from .strategy_ephemeral import Ephemeral
from .strategy_overlay import Overlaid

ROOTS: Mapping[Strategy, Root] = {
    Strategy.CLONE: Cloned(),
    Strategy.OVERLAY: Overlaid(),
    Strategy.COPY: Copied(),
    Strategy.EPHEMERAL: Ephemeral(),
}
