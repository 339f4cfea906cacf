# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the content of Secure Boot variables is given; what it is good for, each module says itself."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  secure_boot_variables:
    type: list
    elements: dict
    suboptions:
      variable:
        description: The variable that this is part of.
        type: str
        choices: [PK, KEK, db, dbx]
        required: true
      certificate:
        description: A certificate (PEM or DER) that is enrolled in it, as a signature list of its own.
        type: path
      owner:
        description: Owner GUID under which O(secure_boot_variables[].certificate) is enrolled.
        type: str
      content:
        description: A file with signature lists, that is the content of the variable without its attributes.
        type: path
"""
