# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How Ansible reaches a guest that has no network; see ``peer_files``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Optional

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection import ConnectionBase
from ansible_collections.cvm.fde.tests.bench.peer_files import ask

DOCUMENTATION = """
name: by_files
short_description: Commands for a guest, as files
description: The host's address is the directory that it shares with the control node.
author: The cvm.fde authors
"""


class Connection(ConnectionBase):
    """A guest and the directory that it looks into."""

    transport = "by_files"
    has_pipelining = True

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def exec_command(
        self, cmd: str, in_data: Optional[bytes] = None, sudoable: bool = True
    ) -> tuple[int, bytes, bytes]:
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        try:
            return ask(Path(self._play_context.remote_addr), cmd, in_data or b"")
        except TimeoutError as error:
            raise AnsibleConnectionFailure(str(error)) from error

    def put_file(self, in_path: str, out_path: str) -> None:
        super().put_file(in_path, out_path)
        self._done(f"cat >{shlex.quote(out_path)}", Path(in_path).read_bytes())

    def fetch_file(self, in_path: str, out_path: str) -> None:
        super().fetch_file(in_path, out_path)
        Path(out_path).write_bytes(self._done(f"cat {shlex.quote(in_path)}"))

    def _done(self, command: str, given: bytes = b"") -> Any:
        status, out, err = self.exec_command(command, in_data=given)
        if status:
            raise AnsibleConnectionFailure(f"'{command}' ended with status {status}: {err.decode(errors='replace')}")
        return out

    def close(self) -> None:
        self._connected = False
