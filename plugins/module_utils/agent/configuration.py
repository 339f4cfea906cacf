# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the image was sealed with: the words of the signed kernel command line that are ours."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from enum import Enum

from ..errors import FdeError

COMMAND_LINE = "/proc/cmdline"


class Strategy(str, Enum):
    """How a read-only verity root becomes a writable one."""

    #: dm-clone from the verity device into the encrypted volume.
    CLONE = "clone"
    #: What is written goes to a file system in the encrypted volume, laid over the verity root.
    OVERLAY = "overlay"
    #: The verity device is copied into the encrypted volume before the root is used for the first time.
    COPY = "copy"
    #: What is written stays in memory and is gone at the next boot; there is no volume.
    EPHEMERAL = "ephemeral"


class Place(str, Enum):
    """The disk that the encrypted volume is made on."""

    #: The disk of the image.
    ROOT = "root"
    #: The only other disk.
    OTHER = "other"
    #: The other disk with a given serial number.
    SERIAL = "serial"


class Recovery(str, Enum):
    """What a refused boot offers."""

    #: Nothing: the machine is switched off.
    NONE = "none"
    #: Ask for the recovery key on the console.
    CONSOLE = "console"


#: The highest security version that the anchor has room for.
SVN_MAXIMUM = 0xFFFF
#: What a hypervisor or a cloud lets one name a disk.
SERIAL = r"[A-Za-z0-9._+-]{1,64}"


@dataclass(frozen=True)
class VolumeDisk:
    """Which disk the encrypted volume is made on; ``serial`` where it is chosen by that."""

    place: Place = Place.ROOT
    serial: str = ""

    @classmethod
    def parse(cls, text: str) -> VolumeDisk:
        """Read ``root``, ``other`` or ``serial:NUMBER``. Raises ``ValueError``."""
        if text in (Place.ROOT.value, Place.OTHER.value):
            return cls(Place(text))
        if re.fullmatch(rf"serial:{SERIAL}", text):
            return cls(Place.SERIAL, text.partition(":")[2])
        raise ValueError(f"'{text}' names no disk: say 'root', 'other' or 'serial:' with a serial number")

    def __str__(self) -> str:
        return f"{self.place.value}:{self.serial}" if self.serial else self.place.value


class ConfigurationError(FdeError):
    """The kernel command line does not say what the agent must know."""

    def __init__(self, cause: str) -> None:
        super().__init__("the kernel command line", cause, "Seal the image again")


@dataclass(frozen=True)
class Configuration:
    """What the image was sealed with; ``root_hash`` in bytes.

    ``svn`` is the image's security version number: an instance that ran with a higher one refuses it.
    """

    root_hash: bytes
    strategy: Strategy
    disk: VolumeDisk = VolumeDisk()
    recovery: Recovery = Recovery.NONE
    svn: int = 0

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
    try:
        disk = VolumeDisk.parse(_single(command_line, "fde.disk", default=Place.ROOT.value))
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    recovery = _single(command_line, "fde.recovery", default=Recovery.NONE.value)
    if recovery not in tuple(Recovery):
        raise ConfigurationError(f"the recovery '{recovery}' is not known")
    svn = _single(command_line, "fde.svn", default="0")
    if not re.fullmatch(r"0|[1-9][0-9]{0,4}", svn) or int(svn) > SVN_MAXIMUM:
        raise ConfigurationError(f"the security version '{svn}' is no number from 0 to {SVN_MAXIMUM}")
    return Configuration(bytes.fromhex(root_hash), Strategy(strategy), disk, Recovery(recovery), int(svn))


def first_words(command_line: str) -> str:
    """Return a command line without the words whose name was given before.

    What a host adds comes behind what is signed (systemd-stub(7)). A boot that is refused for it still has to know
    what was signed: which disk has the EFI system partition that keeps the words of the refusal.
    """
    words: dict[str, str] = {}
    for word in command_line.split():
        words.setdefault(word.partition("=")[0], word)
    return " ".join(words.values())


def _single(command_line: str, name: str, default: str = "") -> str:
    values = [word.partition("=")[2] for word in command_line.split() if word.partition("=")[0] == name]
    if not values and default:
        return default
    if len(values) != 1:
        raise ConfigurationError(f"'{name}=' is given {len(values)} times instead of once")
    return values[0]
