# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read what the user asked to be sealed: options of the module, and the public files that they name."""

from __future__ import annotations

import os
from typing import Any, Mapping, Optional, Sequence

from ..agent.configuration import SVN_MAXIMUM, Recovery, Strategy, VolumeDisk
from ..errors import FdeError
from .command_line import Choices
from .manifest import public_key
from .seal_plan import Request
from .secure_boot import Variable, read_der, read_variables
from .tools import Tools
from .uki import SignTool


def read_file(path: str) -> bytes:
    """Return the content of a small file of the builder that is not secret."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise FdeError(
            path, f"it cannot be read: {error.strerror}", "Name a file that exists on the builder"
        ) from error


def make_request(params: Mapping[str, Any], tools: Tools) -> Request:
    """Return what the user wants, with the public files read.

    Raises ``FdeError`` for a file that is not what it should be.
    """
    dest: str = params["src"] if params["in_place"] else params["dest"]
    for option in ("manifest_key", "pcr_private_key", "secure_boot_key"):
        if not os.access(params[option], os.R_OK):
            raise FdeError(
                params[option], f"the file of '{option}' cannot be read", "Name a file that exists on the builder"
            )
    certificate = params["secure_boot_certificate"]
    return Request(
        src=params["src"],
        dest=dest,
        name=params["name"] or os.path.splitext(os.path.basename(dest))[0],
        manifest=params["manifest"] or os.path.join(os.path.dirname(os.path.abspath(dest)), "manifest.json"),
        manifest_key=params["manifest_key"],
        pcr_private_key=params["pcr_private_key"],
        pcr_public_key=public_key(tools, params["pcr_private_key"]),
        secure_boot_key=params["secure_boot_key"],
        secure_boot_certificate=certificate,
        certificate=read_der(read_file(certificate), "CERTIFICATE", certificate),
        variables=make_variables(params["secure_boot_variables"]),
        in_place=params["in_place"],
        force=params["force"],
        kernel=params["kernel"],
        command_line=params["command_line"],
        esp_size=params["esp_size"],
        sign_tool=SignTool(params["sign_tool"]),
        choices=make_choices(params),
    )


def make_choices(params: Mapping[str, Any]) -> Choices:
    """Return what holds for all instances. Raises ``FdeError`` where it makes no sense."""
    strategy, recovery = Strategy(params["strategy"]), Recovery(params["recovery"])
    try:
        disk = VolumeDisk.parse(params["volume_disk"])
    except ValueError as error:
        raise FdeError("volume_disk", str(error), "Name the disk otherwise") from error
    svn = params["security_version"]
    if not 0 <= svn <= SVN_MAXIMUM:
        raise FdeError("security_version", f"{svn} is not between 0 and {SVN_MAXIMUM}", "Choose another number")
    if strategy is Strategy.EPHEMERAL and (disk != VolumeDisk() or recovery is not Recovery.NONE or svn):
        raise FdeError(
            "strategy",
            "an ephemeral image has no encrypted volume",
            "Leave out 'volume_disk', 'recovery' and 'security_version'",
        )
    return Choices(strategy, disk, recovery, svn)


def make_variables(parts: Optional[Sequence[Mapping[str, Any]]]) -> Optional[dict[Variable, bytes]]:
    """Return the contents of the Secure Boot variables, None when they were not given."""
    if parts is None:
        return None
    return read_variables(
        [
            (
                Variable(part["variable"]),
                part["owner"],
                part["certificate"] or part["content"],
                read_file(part["certificate"] or part["content"]),
            )
            for part in parts
        ]
    )
