# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lookup plugins of the user's, called from Python."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from ansible.plugins.loader import lookup_loader

from ..module_utils.errors import FdeError
from .escrow import Lookup


def user_lookup(loader: Any, templar: Any, variables: Mapping[str, Any]) -> Lookup:
    """Return what runs a lookup plugin as a task would; the arguments are those of an action plugin."""

    def run(plugin: str, terms: Sequence[str], options: Mapping[str, Any]) -> Sequence[Any]:
        found = lookup_loader.get(plugin, loader=loader, templar=templar)
        if found is None:
            raise FdeError(plugin, "there is no such lookup plugin", "Install its collection, and name it in full")
        result: Sequence[Any] = found.run(list(terms), variables=variables, **options)
        return result

    return run
