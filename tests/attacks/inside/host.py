# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host does to the disk of a machine that is off."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.cvm.fde.plugins.module_utils.agent import volume_key
from ansible_collections.cvm.fde.plugins.module_utils.disk import gpt
from ansible_collections.cvm.fde.plugins.module_utils.luks2 import volume as volumes
from ansible_collections.cvm.fde.plugins.module_utils.tpm.policy import BOUND_PCRS
from ansible_collections.cvm.fde.tests.unit.plugins.module_utils.luks2.conftest import Forger
from instance import MIB, Lab, run

FORGER = Forger()

BLOCK = 4096
#: Tags of hmac(sha256), and how much data lies between two areas of tags (dm-integrity's default, 32768 sectors).
TAG, RUN = 32, 16 * MIB
#: The data of a LUKS2 volume begin here; dm-integrity's journal lies in front of the first tags.
DATA = 16 * MIB


def partition(machine: Lab, kind: Any = gpt.FDE) -> gpt.Partition:
    """Return the first partition of a type, the encrypted volume if none is named."""
    with machine.image.open("rb") as disk:
        return gpt.read_table(disk, machine.image.stat().st_size, "disk").of_type(kind)[0]


def read(machine: Lab, offset: int, size: int) -> bytes:
    """Read from the disk."""
    with machine.image.open("rb") as disk:
        disk.seek(offset)
        return disk.read(size)


def write(machine: Lab, offset: int, content: bytes) -> None:
    """Write to the disk."""
    with machine.image.open("r+b") as disk:
        disk.seek(offset)
        disk.write(content)


def flip(machine: Lab, offset: int) -> None:
    """Flip one bit of the disk."""
    write(machine, offset, bytes([read(machine, offset, 1)[0] ^ 1]))


def header(machine: Lab) -> bytes:
    """Return both copies of the LUKS2 header."""
    return read(machine, partition(machine).offset, 2 * FORGER.size)


def put_header(machine: Lab, content: bytes) -> None:
    """Write a header, or a whole header area, over that of the volume."""
    write(machine, partition(machine).offset, content)


def edit_header(machine: Lab, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the JSON of both copies of the header, with right checksums."""
    put_header(machine, FORGER.edited(edit, header(machine)))


def make_volume(machine: Lab) -> None:
    """Format the volume's partition anew with a key of our own, sealed to the machine's TPM under the image's policy.

    It is what the boot agent does at a first boot, but for the anchor.
    """
    with machine.booting() as running:
        mine, temporary = bytearray(os.urandom(96)), volume_key.temporary()
        identifier = str(uuid.uuid4())
        volumes.format_volume(
            running.runner, machine.partition, volume_key=mine, temporary_key=temporary, uuid=identifier
        )
        volumes.enrol_tpm2(
            running.runner,
            machine.partition,
            unlock_key=temporary,
            tpm2_device=machine.tcti,
            public_key=running.paths.public_key,
            pcrs=BOUND_PCRS,
        )


def exchange_volumes(one: Lab, other: Lab) -> None:
    """Exchange everything in the encrypted partitions of two machines; what is not written stays a hole."""
    for machine in (one, other):
        place = partition(machine)
        where = [f"skip={place.offset}", f"count={place.size}", "iflag=skip_bytes,count_bytes"]
        _dd(f"if={machine.image}", f"of={machine.directory}/volume", *where, "conv=sparse")
    for machine, source in ((one, other), (other, one)):
        place = partition(machine)
        hole = ["--punch-hole", f"--offset={place.offset}", f"--length={place.size}"]
        run("fallocate", *hole, str(machine.image))
        where = [f"seek={place.offset}", "oflag=seek_bytes", "conv=notrunc,sparse"]
        _dd(f"if={source.directory}/volume", f"of={machine.image}", *where)
    for machine in (one, other):
        (machine.directory / "volume").unlink()


def _dd(*words: str) -> None:
    run("dd", "bs=1M", "status=none", *words)


@dataclass(frozen=True)
class Places:
    """Where the encrypted volume's blocks of 4096 bytes lie on the disk, and which of them the root begins at."""

    first: int
    root: int

    def data(self, block: int) -> int:
        """Return the place of the ciphertext of a block of the opened volume, of the first run."""
        assert block * BLOCK < RUN
        return self.first + block * BLOCK

    def tag(self, block: int) -> int:
        """Return the place of its tag."""
        return self.first - RUN // BLOCK * TAG + block * TAG

    def sector(self, machine: Lab, block: int) -> tuple[bytes, bytes]:
        """Read ciphertext and tag."""
        return read(machine, self.data(block), BLOCK), read(machine, self.tag(block), TAG)

    def put(self, machine: Lab, block: int, sector: tuple[bytes, bytes]) -> None:
        """Write ciphertext and tag, of this block or of another."""
        write(machine, self.data(block), sector[0])
        write(machine, self.tag(block), sector[1])


def ciphertext(block: int) -> bytes:
    """Return what dm-crypt wrote for a block, while the volume is open."""
    with open("/dev/mapper/fde-crypt_dif", "rb", buffering=0) as device:
        return os.pread(device.fileno(), BLOCK, block * BLOCK)


def root_start() -> int:
    """Return the block of the opened volume that the root device begins at."""
    words = run("dmsetup", "table", "fde-clone-dest").split()
    assert words[2] == b"linear"
    return int(words[4]) * 512 // BLOCK


def find(machine: Lab, content: bytes) -> int:
    """Return the last place of a block on the disk: a copy in the journal lies before it."""
    places = [at + chunk.rfind(content) for at, chunk in _written(machine.image, len(content)) if content in chunk]
    assert max(places) >= partition(machine).offset + DATA
    return max(places)


def _written(image: Path, overlap: int) -> Iterator[tuple[int, bytes]]:
    """Yield what was ever written to a disk, in overlapping chunks with their places; holes would cost memory."""
    with image.open("rb", buffering=0) as disk:
        end = 0
        while True:
            try:
                start = os.lseek(disk.fileno(), end, os.SEEK_DATA)
            except OSError:
                return
            end = os.lseek(disk.fileno(), start, os.SEEK_HOLE)
            for at in range(start, end, 8 * MIB):
                yield at, os.pread(disk.fileno(), min(8 * MIB + overlap, end - at), at)


def root_block(block: int) -> bytes:
    """Read a block of the root device, past what is cached."""
    with open("/dev/mapper/fde-root", "rb", buffering=0) as device:
        os.posix_fadvise(device.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(device.fileno(), BLOCK, block * BLOCK)
