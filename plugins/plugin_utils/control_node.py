# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the action plugins read on the control node, and how an operator is told what is wrong with it."""

from __future__ import annotations

import importlib
from contextlib import contextmanager, suppress
from typing import Any, Iterator, Sequence

from ansible.errors import AnsibleActionFail
from cryptography import x509

from ..module_utils.errors import FdeError
from .appraisal.endorsement import load_authorities
from .appraisal.errors import AppraisalError
from .files import Read


@contextmanager
def told() -> Iterator[None]:
    """Turn failures that an operator can act on, and values that the ledger does not take, into the task's."""
    try:
        yield
    except FdeError as error:
        raise AnsibleActionFail(str(error)) from error
    except ValueError as error:
        raise AnsibleActionFail(f"ledger: it does not take this: {error}. Nothing was recorded") from error


def import_early(*names: str) -> None:
    """Import modules that `imported` returns; that they cannot be is told by it, where a ledger is used.

    Ansible loads an action plugin before it starts a process for each host. What is imported then is imported once: a
    process would need longer for that than to judge its host.
    """
    with suppress(ImportError):
        for name in names:
            importlib.import_module(f"{__package__}.{name}")


def imported(name: str) -> Any:
    """Return a module of ``plugin_utils`` that needs SQLAlchemy, which is not needed where no ledger is used."""
    try:
        return importlib.import_module(f"{__package__}.{name}")
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "sqlalchemy":
            raise
        raise AnsibleActionFail(
            "ledger: the Python package SQLAlchemy is missing. Install SQLAlchemy 2.0 or newer for the Python "
            "that runs Ansible"
        ) from error


def authorities_of(paths: Sequence[str], read: Read) -> tuple[x509.Certificate, ...]:
    """Return the certificates of PEM files."""
    found: list[x509.Certificate] = []
    for path in paths:
        try:
            found.extend(load_authorities(read(path)))
        except AppraisalError as error:
            raise AnsibleActionFail(f"{path}: {error.reason}. Name a file with certificates in PEM form") from error
    return tuple(found)
