# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A writable root from a verity device: dm-clone with its destination and its metadata inside one encrypted device.

The encrypted device is cut in three: the record of how far it is written (``written``), ``meta`` (dm-clone's record of
what is already copied), and ``dest`` behind it to the end. The metadata must be as authentic as the data: whoever could
write it could make the kernel read the image's old content instead of what was written since.

Layout version 1: the metadata slice is ``metadata_sectors(size of the source)`` long. Where it lies depends on nothing
that the host chooses: the length of the encrypted device comes from a superblock of dm-integrity that nobody
authenticates. The rule is part of the volume's format; a change of it needs a new version beside it.

Every region is copied, also where the file system is free: what was never written cannot be read (``written``). So the
device takes no discards, by which dm-clone would count a region as copied.

Sizes and offsets are in sectors of 512 bytes. Source: Linux Documentation/admin-guide/device-mapper/dm-clone.rst and
drivers/md/dm-clone-{target,metadata}.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..codes import Code, refuse
from ..errors import FdeError, Refusal
from ..runner import CommandError
from . import edges, written
from .device import DeviceMapper
from .edges import BLOCK, MEBIBYTE
from .queue import UNKNOWN, Queue, refuse_discards
from .table import SECTOR, Clone, Linear, TableError, counted, number

#: The smallest region, 64 KiB: large enough that a request costs little beside its data, small enough that a write of
#: 4 KiB to a cold region does not copy much more than it writes. systemd-clonesetup takes 4 KiB, copied one at a time.
REGION = 128
#: The largest one, 1 MiB.
_REGION_MAXIMUM = 2048
#: The record of a clone is read at every boot and each of its blocks is written at every commit.
_REGIONS_MAXIMUM = 1 << 20
#: Sectors that one request copies, 1 MiB, and the most that it ever does, 4 MiB; and requests that may be under way.
_REQUEST = 2048
_REQUEST_MAXIMUM = 8192
_REQUESTS = 4

#: A bitset is an array of 64-bit words; a 4 KiB array block has a header of 24 bytes.
_BITS_PER_BLOCK = (4096 - 24) // 8 * 64


class Mode(str, Enum):
    """What dm-clone may do with its metadata."""

    READ_WRITE = "rw"
    READ_ONLY = "ro"
    FAILED = "fail"


@dataclass(frozen=True)
class Slices:
    """How long the parts of a cloned root are; the metadata begins behind ``written.SLICE``."""

    metadata: int
    destination: int

    @property
    def start(self) -> int:
        """Where the destination begins."""
        return written.SLICE + self.metadata


@dataclass(frozen=True)
class Tuning:
    """How a root is copied: sectors of a region, regions that may be under way at once, and neighbours copied by one
    request. The region is part of the volume's format: the record counts in it.
    """

    region: int
    threshold: int
    batch: int


def tuning(source: int, queue: Queue = UNKNOWN) -> Tuning:
    """Return how a source of that many sectors is copied to a disk that works like this.

    Regions are as small as the record of them allows; they depend on nothing but the source, and are the same at every
    boot. A disk with a head copies one large request at a time: with several it would run between them. A disk that
    names a size that suits it (a stripe, a block of network storage) gets whole multiples of that.
    """
    region = REGION
    while region < _REGION_MAXIMUM and -(-source // region) > _REGIONS_MAXIMUM:
        region *= 2
    request, requests = _REQUEST, _REQUESTS
    if queue.rotational:
        request, requests = _REQUEST_MAXIMUM, 1
    optimal = queue.optimal // SECTOR
    if region <= optimal <= _REQUEST_MAXIMUM and optimal % region == 0:
        whole = -(-request // optimal) * optimal
        request = whole if whole <= _REQUEST_MAXIMUM else _REQUEST_MAXIMUM // optimal * optimal
    batch = request // region
    return Tuning(region, requests * batch, batch)


#: What the kernel says of a machine that has no room just now, which is nothing of the record.
_PASSING = (b"Cannot allocate memory", b"Device or resource busy")
#: What copying is slowed down to beside the I/O of users: one region at a time.
GENTLE = (1, 1)


@dataclass(frozen=True)
class Names:
    """The device-mapper names of a cloned root."""

    root: str = "fde-root"
    destination: str = "fde-clone-dest"
    metadata: str = "fde-clone-meta"


NAMES = Names()


@dataclass(frozen=True)
class Status:
    """Progress of a clone: regions hydrated, of how many, and under way now."""

    hydrated: int
    total: int
    hydrating: int
    region: int
    background: bool
    threshold: int
    batch: int
    mode: Mode
    metadata_used: int
    metadata_total: int

    @property
    def complete(self) -> bool:
        """Nothing is read from the source any more."""
        return self.mode is not Mode.FAILED and self.hydrated == self.total and self.hydrating == 0


def metadata_sectors(size: int, region: int = REGION) -> int:
    """Return the length of the metadata slice for a source of ``size`` sectors.

    The bitset of all regions, twice, since a commit writes changed blocks beside the old ones; the index blocks above
    it and the space map stay below a sixteenth of that; never less than 4 MiB, in whole MiB.
    """
    regions = -(-size // region)
    leaves = -(-regions // _BITS_PER_BLOCK)
    blocks = 2 * leaves + leaves // 8 + 64
    return max(4 * MEBIBYTE, -(-blocks * BLOCK // MEBIBYTE) * MEBIBYTE)


def slices(size: int, source: int) -> Slices:
    """Cut an encrypted device of ``size`` sectors for a source of ``source`` sectors.

    Raises ``Refusal`` when the source does not fit: there was room for it when the volume was made, so one of the two
    has another length than then.
    """
    metadata = metadata_sectors(source, tuning(source).region)
    destination = (size - written.SLICE - metadata) // BLOCK * BLOCK
    if source <= 0 or source > destination:
        raise refuse(
            Code.DEVICE_SHRUNK,
            "encrypted volume",
            f"the image's root has {source * SECTOR} bytes, there is room for {max(0, destination) * SECTOR}",
        )
    return Slices(metadata, destination)


def assemble(mapper: DeviceMapper, encrypted: str, source: str, *, fresh: bool, names: Names = NAMES) -> Status:
    """Make the root device from the active devices ``encrypted`` and ``source`` (device-mapper names).

    ``fresh`` says that the volume was made in this boot: only then is the metadata zeroed. Hydration in the background
    stays off (``hydrate``). A clone that was complete at an earlier boot becomes a linear device at once, as long as it
    has grown to be. Raises ``Refusal`` when the metadata of an old volume is unreadable.
    """
    below, image = mapper.get(encrypted), mapper.get(source)
    cut, how = slices(below.size, image.size), tuning(image.size)
    if fresh:
        written.store(below, image.size)
    destination = written.map_root(mapper, names.destination, below, start=cut.start)
    metadata = mapper.create(names.metadata, (Linear(0, cut.metadata, below.number, written.SLICE),))
    if fresh:
        edges.zero(metadata.path, [(0, cut.metadata)])
    else:
        _check_superblock(names, metadata.path)
    clone = Clone(
        0,
        image.size,
        metadata.number,
        destination.number,
        image.number,
        how.region,
        threshold=how.threshold,
        batch=how.batch,
    )
    try:
        root = mapper.create(names.root, (clone,))
    except CommandError as error:
        if fresh or any(text in error.completed.stderr for text in _PASSING):
            raise
        raise _unusable(names, f"the kernel does not take it: {error.cause}") from error
    refuse_discards(root.minor)
    state = status(mapper, names)
    if state.mode is not Mode.READ_WRITE:
        raise _unusable(names, f"its mode is '{state.mode.value}'")
    if state.complete:
        finish(mapper, names)
    elif destination.size > image.size:
        # The root only ever grew when all of it was copied.
        raise _unusable(names, "it is older than the record of what is written")
    return state


def map_complete(
    mapper: DeviceMapper, encrypted: str, source: str, *, read_only: bool = False, names: Names = NAMES
) -> None:
    """Make the root device of a clone that is known to be complete; its record is not read. Raises ``FdeError``."""
    below = mapper.get(encrypted)
    cut = slices(below.size, mapper.get(source).size)
    written.map_root(mapper, names.root, below, start=cut.start, read_only=read_only)


def status(mapper: DeviceMapper, names: Names = NAMES) -> Status:
    """Return the progress of the root's clone. Raises ``FdeError`` when the root is no clone."""
    return parse_status(mapper.status(names.root, "clone"))


def is_clone(mapper: DeviceMapper, names: Names = NAMES) -> bool:
    """Tell whether the root still is a clone, not yet a linear device."""
    return any(isinstance(target, Clone) for target in mapper.table(names.root))


def hydrate(mapper: DeviceMapper, names: Names = NAMES, *, threshold: int, batch: int) -> None:
    """Copy in the background from now on: at most ``threshold`` regions at once, ``batch`` of them by one request."""
    mapper.message(names.root, f"hydration_threshold {threshold}")
    mapper.message(names.root, f"hydration_batch_size {batch}")
    mapper.message(names.root, "enable_hydration")


def pause(mapper: DeviceMapper, names: Names = NAMES) -> None:
    """Stop copying in the background."""
    mapper.message(names.root, "disable_hydration")


def finish(mapper: DeviceMapper, names: Names = NAMES) -> None:
    """Replace a complete clone by its destination while it is in use.

    What it was assembled from is not needed any more and is removed; the metadata stays on the disk and says "complete"
    at the next boot. Raises ``FdeError`` when it is not complete.
    """
    state = status(mapper, names)
    if not state.complete:
        raise FdeError(
            names.root, f"only {state.hydrated} of {state.total} regions are copied", "Wait until it is complete"
        )
    (lower,) = mapper.table(names.destination)
    if not isinstance(lower, Linear):
        raise FdeError(names.destination, "it is not a slice of the encrypted device", "Reboot to assemble it again")
    mapper.swap(names.root, (lower,))
    if is_clone(mapper, names):
        raise FdeError(names.root, "it is a clone still", "Look at the kernel's log, then reboot")
    tidy(mapper, names)


def tidy(mapper: DeviceMapper, names: Names = NAMES) -> None:
    """Remove the slices that a root which is no clone any more does not need; what is absent already is fine."""
    mapper.remove_all(names.metadata, names.destination)


def disassemble(mapper: DeviceMapper, names: Names = NAMES) -> None:
    """Remove the root device and its slices, from the top down; what is absent already is fine."""
    mapper.remove_all(names.root, names.metadata, names.destination)


def parse_status(text: str) -> Status:
    """Read the status line of a clone target. Raises ``TableError``."""
    words = text.split()
    if words and words[0].lower() == "fail":
        return Status(0, 0, 0, 0, False, 0, 0, Mode.FAILED, 0, 0)
    if len(words) < 6:
        raise TableError(text, "the status of a clone has at least six parts")
    used, blocks = _fraction(text, words[1])
    hydrated, total = _fraction(text, words[3])
    features, rest = counted(text, words[5:])
    core_words, rest = counted(text, rest)
    core = {key: number(text, value) for key, value in zip(core_words[::2], core_words[1::2])}
    if len(rest) != 1 or rest[0] not in ("rw", "ro"):
        raise TableError(text, "the mode of the metadata is missing")
    return Status(
        hydrated=hydrated,
        total=total,
        hydrating=number(text, words[4]),
        region=number(text, words[2]),
        background="no_hydration" not in features,
        threshold=core.get("hydration_threshold", 1),
        batch=core.get("hydration_batch_size", 1),
        mode=Mode(rest[0]),
        metadata_used=used,
        metadata_total=blocks,
    )


def _fraction(line: str, word: str) -> tuple[int, int]:
    part, _slash, whole = word.partition("/")
    return number(line, part), number(line, whole)


def _unusable(names: Names, why: str) -> Refusal:
    return refuse(Code.CLONE_METADATA, names.root, why)


def _check_superblock(names: Names, path: str) -> None:
    """Raise ``Refusal`` unless the clone's superblock, the first 4 KiB block, can be read and is not all zeros.

    The kernel takes an empty one as leave to start over, with the image's content everywhere. It was empty for a moment
    of the first boot, so the host can have a copy of that very sector.
    """
    try:
        with open(path, "rb", buffering=0) as device:
            block = device.read(BLOCK * SECTOR)
    except OSError as error:
        raise _unusable(names, f"it cannot be read: {error.strerror}") from error
    if not any(block):
        raise _unusable(names, "it is empty")
