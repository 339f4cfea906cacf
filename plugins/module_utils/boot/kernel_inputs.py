# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a kernel is handed by systemd-stub, and measures into PCR 9: its command line and its initrd.

The stub puts sections that the initrd needs into small archives of its own behind the image's initrd.
Source: systemd src/boot/stub.c (order of the initrds, combine_initrds) and src/boot/cpio.c; Linux
drivers/firmware/efi/libstub/efi-stub-helper.c (efi_measure_tagged_event).
"""

from __future__ import annotations

from typing import Mapping

from .pcr import extend_data, zero

#: Section → name of the file below /.extra that it becomes.
_EXTRA = (
    (".pcrsig", "tpm2-pcr-signature.json"),
    (".pcrpkey", "tpm2-pcr-public-key.pem"),
    (".osrel", "os-release"),
    (".profile", "profile"),
)
_DIRECTORY, _FILE = 0o40555, 0o100444


def load_options(command_line: bytes) -> bytes:
    """Return the stub's command line as the kernel finds it: UTF-16 with a terminator."""
    text = command_line.rstrip(b"\0").decode("utf-8", "replace")
    plain = "".join(" " if ord(letter) < 0x20 else letter for letter in text).strip(" ")
    return (plain + "\0").encode("utf-16-le")


def initrd(sections: Mapping[str, bytes]) -> bytes:
    """Return the initrd that a stub hands over when nothing was added to its image."""
    parts = [sections[name] for name in (".ucode", ".initrd") if name in sections]
    parts += [_archive(target, sections[name]) for name, target in _EXTRA if name in sections]
    return parts[0] if len(parts) == 1 else b"".join(_padded(part) for part in parts)


def pcr9(sections: Mapping[str, bytes], bank: str = "sha256") -> bytes:
    """Return PCR 9 when the kernel starts; the operating system extends it further, by what is the machine's own."""
    return extend_data(zero(bank), load_options(sections.get(".cmdline", b"")), initrd(sections), bank=bank)


def _archive(name: str, content: bytes) -> bytes:
    """Return a cpio archive (newc) with one file in the directory ``.extra``."""
    trailer = _entry(0, 0, 1, "TRAILER!!!", b"")
    return _entry(1, _DIRECTORY, 1, ".extra", b"") + _entry(2, _FILE, 1, f".extra/{name}", content) + trailer


def _entry(inode: int, mode: int, links: int, name: str, content: bytes) -> bytes:
    numbers = (inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    digits = "".join(f"{number:08X}" if name == "TRAILER!!!" else f"{number:08x}" for number in numbers)
    return _padded(b"070701" + digits.encode() + name.encode() + b"\0") + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
