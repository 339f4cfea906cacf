# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel command line of a sealed image.

It is a section of the signed UKI and measured into PCR 11; with Secure Boot on, systemd-stub takes no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

from ..agent.configuration import Recovery, Strategy, VolumeDisk
from ..errors import FdeError

#: What follows the words of the strategy: no way into a shell of the initrd, no units or settings from the host by way
#: of credentials, an end to the boot at the first block that fails verification, and the second copy of the partition
#: table where a power cut of the first boot left the first one damaged.
FIXED_WORDS = (
    "systemd.gpt_auto=0",
    "rd.shell=0",
    "rd.emergency=poweroff",
    "panic=10",
    "systemd.firstboot=off",
    "systemd.import_credentials=no",
    "systemd.verity_root_options=panic-on-corruption",
    "gpt",
)
#: The root that systemd mounts when the boot agent is done.
_DEVICE = ("root=/dev/mapper/fde-root", "rw")
_LAYERS = "/run/cvm-fde"
ROOT_WORDS: Mapping[Strategy, tuple[str, ...]] = {
    Strategy.CLONE: _DEVICE,
    Strategy.COPY: _DEVICE,
    Strategy.OVERLAY: (
        "root=overlay",
        "rootfstype=overlay",
        f"rootflags=lowerdir={_LAYERS}/lower,upperdir={_LAYERS}/upper/data,workdir={_LAYERS}/upper/work"
        ",index=off,metacopy=off,redirect_dir=off",
        "rw",
    ),
    # systemd itself lays memory over the verified root, which nothing may try to repair.
    Strategy.EPHEMERAL: ("root=/dev/mapper/root", "ro", "systemd.volatile=overlay", "fsck.mode=skip"),
}
#: Further words that would boot something else, or open a shell before the root is protected.
PROTECTED = frozenset(
    (
        "ro",
        "rootfstype",
        "rootflags",
        "rootdelay",
        "rootwait",
        "init",
        "rdinit",
        "initrd",
        "resume",
        "nfsroot",
        "overlayroot",
    )
    + (
        "roothash",
        "usrhash",
        "usr",
        "mount.usr",
        "single",
        "s",
        "1",
        "emergency",
        "rescue",
        "rd.rescue",
        "rd.break",
        "rd.debug",
    )
    + ("systemd.unit", "rd.systemd.unit", "systemd.debug_shell", "rd.systemd.debug_shell", "systemd.volatile")
    + ("systemd.condition_first_boot", "systemd.setenv", "rd.systemd.setenv", "systemd.machine_id", "systemd.mask")
    + ("rd.systemd.mask", "systemd.wants", "rd.systemd.wants", "systemd.run", "systemd.sysext", "lockdown", "noefi")
    + tuple(word.split("=", 1)[0].replace("-", "_") for word in (*FIXED_WORDS, *_DEVICE, "fsck.mode"))
)
#: Whole families of words, by how they begin.
PROTECTED_FAMILIES = (
    "fde.",
    "systemd.verity",
    "rd.systemd.verity",
    "systemd.import_credentials",
    "systemd.set_credential",
    "rd.luks",
    "luks",
    "rd.overlay",
)
MAX_LENGTH = 2048


@dataclass(frozen=True)
class Choices:
    """What the builder chooses for all instances of an image: how and where the root becomes writable, what a refused
    boot offers, and the image's security version number.
    """

    strategy: Strategy = Strategy.CLONE
    disk: VolumeDisk = VolumeDisk()
    recovery: Recovery = Recovery.NONE
    svn: int = 0

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the command line that say so."""
        disk = () if self.disk == VolumeDisk() else (f"fde.disk={self.disk}",)
        recovery = () if self.recovery is Recovery.NONE else (f"fde.recovery={self.recovery.value}",)
        svn = (f"fde.svn={self.svn}",) if self.svn else ()
        return (*ROOT_WORDS[self.strategy], f"fde.strategy={self.strategy.value}", *disk, *recovery, *svn)


def command_line(root_hash: str, choices: Choices = Choices(), extra: str = "") -> str:
    """Return the command line for this root hash with the user's words at its end.

    Raises ``FdeError`` as ``check_extra``.
    """
    words = check_extra(extra)
    line = " ".join((f"roothash={root_hash}", *choices.words, *FIXED_WORDS, *words))
    if len(line) >= MAX_LENGTH:
        raise FdeError(
            "command_line", f"it makes the kernel command line longer than {MAX_LENGTH - 1} bytes", "Shorten it"
        )
    return line


def check_extra(extra: str) -> tuple[str, ...]:
    """Return the user's words. Raises ``FdeError`` when one of them would change what protects the image."""
    if any(not 0x20 <= ord(character) < 0x7F for character in extra):
        raise FdeError("command_line", "it has characters other than printable ASCII", "Remove them")
    if '"' in extra:
        raise FdeError("command_line", "it has quotation marks", "Use words without spaces only")
    words = tuple(extra.split())
    for word in words:
        if word == "--":
            raise FdeError("command_line", "'--' would hand the words after it to init", "Remove it")
        if is_protected(word):
            raise FdeError("command_line", f"'{word}' may not be set: the collection decides it", "Remove it")
    return words


def is_protected(word: str) -> bool:
    """Tell whether a word names a parameter that only the collection sets; the kernel reads - and _ as the same."""
    key = word.split("=", 1)[0].replace("-", "_").lower()
    return key in PROTECTED or key.startswith(PROTECTED_FAMILIES)


def root_hash_of(line: str) -> str:
    """Return the root hash of a sealed image's command line, empty when it has none or several."""
    found = [word[len("roothash=") :] for word in line.split() if word.startswith("roothash=")]
    return found[0] if len(found) == 1 and len(found[0]) == 64 else ""
