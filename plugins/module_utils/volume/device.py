# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The device below a volume: what it is, who uses it, and whether there is anything on it.

Programs are asked in their machine-readable forms only. What they do not know is looked for in the bytes: a device is
blank when nothing is recognised on it and everything that was looked at is zero.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional

from ..disk.usage import use_of
from ..errors import FdeError
from ..runner import Runner

MIB = 1 << 20
#: Bytes at the beginning and at the end of a device that are looked at as a whole.
HEAD, TAIL = 256 * MIB, 64 * MIB
#: Between them one block is looked at in every ``STEP`` bytes, and at least so many of them.
STEP, SAMPLES = 64 * MIB, 16384
_BLOCK = 4096
#: Names under which udev lets a device be found again, whatever the order of the disks.
_STABLE = ("/dev/disk/by-", "/dev/mapper/", "/dev/md/")


@dataclass(frozen=True)
class Signature:
    """Something that is recognised on the device, by the names of libblkid."""

    type: str
    usage: str = ""
    uuid: Optional[str] = None
    label: Optional[str] = None

    def __str__(self) -> str:
        kind = {"filesystem": "a file system", "raid": "a RAID or LVM member", "crypto": "an encrypted volume"}
        words = [kind.get(self.usage, "a partition table" if self.usage == "partition-table" else "something")]
        words.append(f"({self.type}{', UUID ' + self.uuid if self.uuid else ''}")
        words[-1] += f", label '{self.label}')" if self.label else ")"
        return " ".join(words)


@dataclass(frozen=True)
class Device:
    """A block device as it was found. ``size`` is in bytes.

    ``ids`` are the names that belong to this device alone and that ``force`` may use, ``identity`` those of them that
    it keeps whatever is written to it, ``links`` the stable paths that lead to it, ``use`` says how it is used.
    """

    path: str
    node: str
    size: int
    sector_size: int
    read_only: bool = False
    ids: tuple[str, ...] = ()
    identity: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    signatures: tuple[Signature, ...] = ()
    unknown_data: bool = False
    use: Optional[str] = None

    @property
    def stable(self) -> bool:
        """Whether the path that was given leads to the same device after the next boot."""
        return is_stable(self.path)

    def all_ids(self) -> tuple[str, ...]:
        """Return every name by which its owner can show that this device is meant."""
        found = [one.uuid for one in self.signatures if one.uuid]
        return tuple(dict.fromkeys([*self.ids, *found]))

    def names_to_give_up(self) -> tuple[str, ...]:
        """Return the names of which ``force`` must be one, or what is on the device stays."""
        # What an encrypted volume holds cannot be seen, and a play may still name the disk that it was made on.
        encrypted = tuple(one.uuid for one in self.signatures if one.type == "crypto_LUKS" and one.uuid)
        return encrypted or self.all_ids()

    def contents(self) -> tuple[str, ...]:
        """Describe what is on the device, for people; empty when it is blank."""
        known = tuple(str(signature) for signature in self.signatures)
        return known or (("unknown data",) if self.unknown_data else ())


def is_stable(path: str) -> bool:
    """Return whether a path names a device and not merely a place in the order of discovery."""
    return path.startswith(_STABLE)


def probe(runner: Runner, path: str, by: Path = Path("/dev/disk")) -> Optional[Device]:
    """Look at a device without changing it; None when there is none. Raises ``FdeError`` when it is no block device."""
    node = os.path.realpath(path)
    if not os.path.exists(node):
        return None
    if not stat.S_ISBLK(os.stat(node).st_mode):
        raise FdeError(path, "it is not a block device", "Name a disk, a partition or a logical volume")
    facts = _facts(runner, node)
    size = int(facts["size"])
    known = tuple(signatures(runner, node))
    identity = tuple(_identity(facts, node))
    return Device(
        path=path,
        node=node,
        size=size,
        sector_size=int(facts["log-sec"]),
        read_only=bool(facts["ro"]),
        ids=(*identity, *_table_ids(facts)),
        identity=identity,
        links=tuple(_links(node, by)),
        signatures=known,
        # What is recognised says enough, and looking at the rest takes seconds.
        unknown_data=not known and not blank(node, size),
        use=use_of(node),
    )


def _facts(runner: Runner, node: str) -> Mapping[str, Any]:
    columns = "NAME,SIZE,LOG-SEC,RO,SERIAL,WWN,PARTUUID,PTUUID,TYPE"
    done = runner.run(["lsblk", "--json", "--bytes", "--nodeps", "--output", columns, node])
    try:
        facts: Mapping[str, Any] = json.loads(done.stdout)["blockdevices"][0]
        return facts
    except (ValueError, KeyError, IndexError) as error:
        raise FdeError(node, "lsblk does not know it", "Check that the device exists") from error


def _identity(facts: Mapping[str, Any], node: str) -> Iterator[str]:
    """A partition has the serial number of its whole disk, which would name more than the partition."""
    names = ("partuuid",) if facts.get("type") == "part" else ("serial", "wwn")
    for name in names:
        if facts.get(name):
            yield str(facts[name]).strip()
    uuid = Path("/sys/class/block", os.path.basename(node), "dm/uuid")
    # Who sets up a device by hand gives it none, and the file is empty.
    if uuid.exists() and (text := uuid.read_text().strip()):
        yield text


def _table_ids(facts: Mapping[str, Any]) -> Iterator[str]:
    """The UUID of a disk's own partition table; a partition is given that of its disk."""
    if facts.get("type") != "part" and facts.get("ptuuid"):
        yield str(facts["ptuuid"]).strip()


def _links(node: str, by: Path) -> Iterator[str]:
    for directory in sorted(by.glob("by-*")):
        for link in sorted(directory.iterdir()):
            if os.path.realpath(link) == node:
                yield str(link)


def signatures(runner: Runner, node: str) -> Iterator[Signature]:
    """Yield what libblkid recognises, everything and not only the first: leftovers are somebody's data as well."""
    done = runner.run(["wipefs", "--no-act", "--json", "--output", "TYPE,USAGE,UUID,LABEL", node])
    seen = set()
    for found in json.loads(done.stdout or b"{}").get("signatures") or ():
        signature = Signature(
            found.get("type") or "unknown", found.get("usage") or "", found.get("uuid"), found.get("label")
        )
        if signature not in seen:
            seen.add(signature)
            yield signature


def blank(node: str, size: int) -> bool:
    """Return whether everything that ``places`` names is zero. Raises ``FdeError`` when it cannot be read."""
    try:
        with open(node, "rb", buffering=0) as file:
            # Most of what is looked at lies far apart: reading ahead would read the whole device.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            return not any(os.pread(file.fileno(), length, at).strip(b"\0") for at, length in places(size))
    except OSError as error:
        raise FdeError(
            node, f"whether it is blank cannot be read: {error.strerror}", "Check the disk and its connection"
        ) from error


def places(size: int) -> Iterator[tuple[int, int]]:
    """Yield the offsets and lengths of what ``blank`` looks at: both ends, and blocks at even steps between them.

    Data that nothing recognises has no structure at the ends, so the steps decide what is found: every run of ``STEP``
    bytes or more, and on a small device shorter ones.
    """
    head = min(HEAD, size)
    tail = max(head, size - TAIL)
    yield from _pieces(0, head)
    step = max(_BLOCK, min(STEP, (tail - head) // SAMPLES) // _BLOCK * _BLOCK)
    for at in range(head, tail, step):
        yield at, min(_BLOCK, tail - at)
    yield from _pieces(tail, size)


def _pieces(start: int, end: int) -> Iterator[tuple[int, int]]:
    for at in range(start, end, MIB):
        yield at, min(MIB, end - at)
