# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task registered for a host, told apart from what the host says of itself.

Ansible makes variables of the facts that any module of a host prints, by any name. Something registered hides such a
variable, but where nothing was registered it looks the same. It always lies among the facts as well, though.
"""

from __future__ import annotations

from collections.abc import Mapping


def registered(hostvars: object, host: str, name: str) -> object:
    """Return the variable of a host, or None where there is none or the host ever sent a fact of that name.

    ``hostvars`` is Ansible's variable of that name, or a mapping of the same form. Nothing is rendered: registered
    results are no templates, and rendering one takes longer than an appraisal.
    """
    if not isinstance(hostvars, Mapping):
        return None
    get = getattr(hostvars, "raw_get", hostvars.get)
    variables = get(host)
    if not isinstance(variables, Mapping):
        return None
    facts = variables.get("ansible_facts")
    return None if isinstance(facts, Mapping) and name in facts else variables.get(name)
