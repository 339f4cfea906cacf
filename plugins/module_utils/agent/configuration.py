# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The signed configuration of the boot agent: the kernel command line of the UKI."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from enum import Enum

from ..errors import FdeError

COMMAND_LINE = "/proc/cmdline"


class Strategy(str, Enum):
    """How a read-only verity root becomes a writable encrypted root."""

    #: dm-clone from the verity device into the encrypted volume.
    CLONE = "clone"


class ConfigurationError(FdeError):
    """The kernel command line does not say what the agent must know."""

    def __init__(self, cause: str) -> None:
        super().__init__("the kernel command line", cause, "Seal the image again")


@dataclass(frozen=True)
class Configuration:
    """The root hash (bytes) and the strategy that the image was sealed with."""

    root_hash: bytes
    strategy: Strategy

    @property
    def data_partition(self) -> uuid.UUID:
        """The PARTUUID of the verity data: the first half of the root hash."""
        return uuid.UUID(bytes=self.root_hash[:16])

    @property
    def hash_partition(self) -> uuid.UUID:
        """The PARTUUID of the verity hashes: the last half of the root hash."""
        return uuid.UUID(bytes=self.root_hash[-16:])


def parse(command_line: str) -> Configuration:
    """Read the configuration from a kernel command line. Raises ``ConfigurationError``.

    A name that is given twice is an error: nothing but the signed command line may choose.
    """
    root_hash = _single(command_line, "roothash")
    if not re.fullmatch(r"[0-9a-f]{64}", root_hash):
        raise ConfigurationError("'roothash=' is not a SHA-256 digest in lower-case hex")
    strategy = _single(command_line, "fde.strategy")
    if strategy not in tuple(Strategy):
        raise ConfigurationError(f"the strategy '{strategy}' is not known")
    return Configuration(bytes.fromhex(root_hash), Strategy(strategy))


def _single(command_line: str, name: str) -> str:
    values = [word.partition("=")[2] for word in command_line.split() if word.partition("=")[0] == name]
    if len(values) != 1:
        raise ConfigurationError(f"'{name}=' is given {len(values)} times instead of once")
    return values[0]
