# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of the control node that the options of a task name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable, Sequence

from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader

#: Manifests, keys and authorities are small; a larger file is a mistake.
FILE_LIMIT = 1024 * 1024
#: Returns the content of a small file that an option names.
Read = Callable[[str], bytes]


def located(loader: DataLoader, path: object) -> str:
    """Return where a file of the control node is that an option names.

    Relative paths are those of the playbook, as everywhere in Ansible. A playbook that came with a collection lies
    where its user keeps nothing: there they are those of the directory in which Ansible was started.
    """
    if "ansible_collections" in Path(loader.get_basedir()).parts:
        return os.path.abspath(os.path.expanduser(str(path)))
    return str(loader.path_dwim(str(path)))


def ledger_at(loader: DataLoader, where: object) -> str:
    """Return the URL of a ledger's database as it is, and the path of its file as ``located`` does."""
    return str(where) if "://" in str(where) else located(loader, where)


def certificate_texts(paths: Sequence[str], read: Read) -> list[str]:
    """Return the content of PEM files with the certificates that keys are escrowed to; the target reads it."""
    try:
        return [read(path).decode("ascii") for path in paths]
    except ValueError as error:
        raise AnsibleActionFail(f"escrow: a certificate is not in PEM form ({error}). Name PEM files") from error


def reader(loader: DataLoader) -> Read:
    """Return what reads the small files that the options of a task name."""
    return lambda path: small_file(located(loader, path))


def small_file(path: str) -> bytes:
    """Return the content of a small file."""
    try:
        with open(path, "rb") as file:
            content = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise AnsibleActionFail(
            f"{path}: it cannot be read: {error.strerror}. Name a file on the control node"
        ) from error
    if len(content) > FILE_LIMIT:
        raise AnsibleActionFail(f"{path}: it is larger than {FILE_LIMIT} bytes. Name the right file")
    return content
