# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What unlocks and mounts a volume at boot: a line of /etc/crypttab, three units, a line of /etc/fstab.

All of it is systemd's own way, plus one step before it: ``cvm-fde-header@NAME`` compares the header on the disk with
the pin and puts a copy into RAM, and systemd-cryptsetup opens that copy. Files are values here; comparing what is with
what should be is what makes the second run change nothing.
"""

from __future__ import annotations

import re
import string
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

from ..errors import FdeError, certain
from ..runner import CommandError, Runner
from . import pin as pins
from .places import AGENT, Places
from .wanted import Mount, canonical

_PLAIN = string.ascii_letters + string.digits + ":_."
_PYTHON = "/usr/bin/python3 -I"

_HEADER_UNIT = f"""\
# Managed by the Ansible collection cvm.fde.
[Unit]
Description=Compare the LUKS2 header of volume %i with its pin
DefaultDependencies=no
IgnoreOnIsolate=yes
After=systemd-remount-fs.service
Before=systemd-cryptsetup@%i.service cryptsetup.target umount.target
Conflicts=umount.target

[Service]
Type=oneshot
ExecStart={_PYTHON} {AGENT} volume header %i
"""


#: How often systemd is asked to read its tables, and the seconds between two times.
_RELOADS, _PAUSE = 5, 2.0


def reload(runner: Runner) -> None:
    """Let systemd read its tables again. Raises ``CommandError``.

    While it does so for somebody else, as for a package that is installed meanwhile, it drops the connections of those
    who wait: who waited asks again.
    """
    for left in reversed(range(_RELOADS)):
        try:
            runner.run(["systemctl", "daemon-reload"])
            return
        except CommandError:
            if not left:
                raise
            time.sleep(_PAUSE)


@dataclass(frozen=True)
class BootEntry:
    """Everything that the boot must know about one volume. ``device`` is a stable path.

    ``reads`` are files from which the volume's policy is read when it is opened.
    """

    name: str
    device: str
    options: tuple[str, ...]
    file_system: str = "none"
    mount: Optional[Mount] = None
    nofail: bool = True
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Files:
    """The text of every file by its path; None stands for a file that must not be there."""

    texts: tuple[tuple[str, Optional[str]], ...]

    def differing(self, places: Places) -> tuple[str, ...]:
        """Return the paths whose file is not as it should be."""
        return tuple(path for path, text in self.texts if _text(places.root / path[1:]) != text)

    def write(self, places: Places) -> None:
        """Make every file as it should be."""
        for path, text in self.texts:
            target = places.root / path[1:]
            if _text(target) == text:
                continue
            if text is None:
                pins.forget(target)
            else:
                mode = target.stat().st_mode & 0o7777 if target.exists() else 0o644
                pins.write(target, text.encode(), mode)


def wanted_files(places: Places, name: str, entry: Optional[BootEntry]) -> Files:
    """Return the files as they should be: with the volume's entries, or without them when ``entry`` is None.

    Raises ``FdeError`` when somebody else has a line for the name or the mount point.
    """
    crypttab = _table(places.crypttab, crypttab_line(entry) if entry else None, name, _is_crypttab_line)
    fstab = _table(places.fstab, fstab_line(entry) if entry else None, name, _is_fstab_line)
    if entry is not None and entry.mount is not None:
        _check_mount_point(fstab or "", entry)
    directory = "/etc/systemd/system"
    return Files(
        (
            ("/etc/crypttab", crypttab),
            ("/etc/fstab", fstab),
            *((((f"{directory}/cvm-fde-header@.service"), _HEADER_UNIT),) if entry else ()),
            (f"{directory}/cvm-fde-header@{name}.service.d/device.conf", _device_drop_in(entry) if entry else None),
            (f"{directory}/systemd-cryptsetup@{name}.service.d/cvm-fde.conf", _check_drop_in(entry) if entry else None),
        )
    )


def crypttab_line(entry: BootEntry) -> str:
    """Return the volume's line of /etc/crypttab."""
    return f"{entry.name} {entry.device} - {','.join(entry.options)}\n"


def fstab_line(entry: BootEntry) -> Optional[str]:
    """Return the volume's line of /etc/fstab, None when it is not mounted at boot.

    The mount needs the unit and not only the device: the unit fails when the check after the opening does.
    """
    if entry.mount is None:
        return None
    options = [
        *(entry.mount.options or ("defaults",)),
        *(("nofail",) if entry.nofail else ()),
        f"x-systemd.requires=systemd-cryptsetup@{entry.name}.service",
    ]
    order = "2" if entry.file_system == "ext4" else "0"
    return f"/dev/mapper/{entry.name} {entry.mount.path} {entry.file_system} {','.join(options)} 0 {order}\n"


def escape_path(path: str) -> str:
    """Return a path as a part of a unit's name (systemd-escape --path)."""
    trimmed = "/".join(part for part in path.split("/") if part)
    escaped = []
    for index, byte in enumerate(trimmed.encode()):
        character = chr(byte)
        if character == "/":
            escaped.append("-")
        elif character in _PLAIN and not (index == 0 and character == "."):
            escaped.append(character)
        else:
            escaped.append(f"\\x{byte:02x}")
    return "".join(escaped) or "-"


def _device_drop_in(entry: BootEntry) -> str:
    unit = f"{escape_path(entry.device)}.device"
    return f"# Managed by the Ansible collection cvm.fde.\n[Unit]\nBindsTo={unit}\nAfter={unit}\n"


def _check_drop_in(entry: BootEntry) -> str:
    header = f"cvm-fde-header@{entry.name}.service"
    mounts = "".join(f"RequiresMountsFor={path}\n" for path in entry.reads)
    return (
        "# Managed by the Ansible collection cvm.fde.\n"
        f"[Unit]\nRequires={header}\nAfter={header}\n{mounts}\n"
        f"[Service]\nExecStartPost={_PYTHON} {AGENT} volume check {entry.name}\n"
    )


def _is_crypttab_line(fields: list[str], name: str) -> bool:
    if not fields or fields[0] != name:
        return False
    header = f"header=/run/cvm-fde/volumes/{name}.header"
    if len(fields) < 4 or header not in fields[3].split(","):
        raise FdeError(
            "/etc/crypttab", f"it has a line for '{name}' that is not this collection's", "Remove it or rename"
        )
    return True


def _is_fstab_line(fields: list[str], name: str) -> bool:
    return bool(fields) and fields[0] == f"/dev/mapper/{name}"


def _check_mount_point(fstab: str, entry: BootEntry) -> None:
    mount = certain(entry.mount)
    for line in fstab.splitlines():
        fields = line.split("#")[0].split()
        if len(fields) > 1 and _place(fields[1]) == mount.path and fields[0] != f"/dev/mapper/{entry.name}":
            raise FdeError(
                "/etc/fstab", f"it mounts {fields[0]} at {mount.path}", "Remove that line, or mount elsewhere"
            )


def _place(written: str) -> str:
    """Return a mount point as /etc/fstab means it: octal escapes for blanks, and slashes that say nothing."""
    return canonical(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), written))


def _table(path: Path, line: Optional[str], name: str, mine: Callable[[list[str], str], bool]) -> Optional[str]:
    """Return a table's text with exactly this line for the volume, at its old place; None when there is no file."""
    before = _text(path)
    lines = (before or "").splitlines(keepends=True)
    kept: list[str] = []
    placed = line is None
    for old in lines:
        if mine(old.split("#")[0].split(), name):
            if not placed and line is not None:
                kept.append(line)
                placed = True
        else:
            kept.append(old)
    if not placed and line is not None:
        if kept and not kept[-1].endswith("\n"):
            kept[-1] += "\n"
        kept.append(line)
    if before is None and not kept:
        return None
    return "".join(kept)


def _text(path: Path) -> Optional[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None
