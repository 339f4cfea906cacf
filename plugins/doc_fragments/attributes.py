# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The attributes that the documentation of every module lists, described once.

A module that changes something extends ``cvm.fde.attributes`` and adds its own ``support`` (and ``details``) for
``check_mode``, ``diff_mode`` and ``idempotent``. A module that only reads extends ``cvm.fde.attributes.info`` as well,
which says it for all three. A module with an action plugin of its name extends ``cvm.fde.attributes.action`` as well.
"""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and tell what it would change without changing it.
  diff_mode:
    description: Shows in C(diff) mode what it changes, or would change.
  idempotent:
    description: When run twice in a row with the same options, the second run changes nothing and says so.
  platform:
    description: Target operating systems that it works on.
    support: full
    platforms: linux
  action_group:
    description: Takes the C(module_defaults) that are set for this group.
    support: full
    membership:
      - cvm.fde.fde
"""

    INFO = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and tell what it would change without changing it.
    support: full
    details:
      - It only reads.
  diff_mode:
    description: Shows in C(diff) mode what it changes, or would change.
    support: N/A
    details:
      - It only reads.
  idempotent:
    description: When run twice in a row with the same options, the second run changes nothing and says so.
    support: full
    details:
      - It only reads.
"""

    ACTION = r"""
options: {}
attributes:
  action:
    description: Has an action plugin of the same name, so a part of the work is done on the control node.
    support: full
  async:
    description: Can be used with C(async).
    support: none
"""
