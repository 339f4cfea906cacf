# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A mounted file system grows to the end of its device.

By the calls that systemd-growfs makes, but without its search for an encrypted device below, which would be told to
grow too: the size of an authenticated volume is final.
Source: Linux fs/ext4/ext4.h (EXT4_IOC_RESIZE_FS), fs/xfs/libxfs/xfs_fs.h, include/uapi/linux/btrfs.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Callable, Union

from ..errors import FdeError

_EXT4_RESIZE = 0x40086610
_XFS_GEOMETRY = 0x80705864
_XFS_GROW = 0x4010586E
_BTRFS_RESIZE = 0x50009403
_XFS_GEOMETRY_SIZE = 112
#: Bytes of btrfs's struct with a device id and a name.
_BTRFS_NAME = 4088

#: What a file system says that cannot grow at all, or is read-only.
_NEVER = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTTY, errno.EROFS)


class CannotGrow(FdeError):
    """The file system stays as large as it is, whenever it is asked."""


Call = Callable[[int, int, Union[bytes, bytearray]], object]


def grow(mount_point: str, kind: str, size: int, call: Call = fcntl.ioctl) -> int:
    """Let the file system of ``kind`` at ``mount_point`` fill its device of ``size`` bytes; return by how many bytes it
    has grown. Raises ``CannotGrow`` when it never does, ``FdeError`` when it did not now.
    """
    descriptor = os.open(mount_point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        before = _size(descriptor)
        if kind == "ext4":
            call(descriptor, _EXT4_RESIZE, struct.pack("=Q", size // os.fstatvfs(descriptor).f_bsize))
        elif kind == "xfs":
            geometry = bytearray(_XFS_GEOMETRY_SIZE)
            call(descriptor, _XFS_GEOMETRY, geometry)
            (block,) = struct.unpack_from("=I", geometry, 0)
            (percent,) = struct.unpack_from("=I", geometry, 28)
            call(descriptor, _XFS_GROW, struct.pack("=QII", size // block, percent, 0))
        elif kind == "btrfs":
            # Larger than what Python copies for a call, so the kernel gets the buffer itself.
            wanted = bytearray(struct.pack("=q", 0) + b"max".ljust(_BTRFS_NAME, b"\0"))
            if call(descriptor, _BTRFS_RESIZE, wanted):
                # BTRFS_ERROR_DEV_EXCL_RUN_IN_PROGRESS is no errno.
                raise FdeError(mount_point, "a balance or another change of its devices is under way", "Wait for it")
        else:
            raise CannotGrow(mount_point, f"a file system of type {kind} cannot grow", "It stays as large as it is")
        return _size(descriptor) - before
    except OSError as error:
        kind_of_error = CannotGrow if error.errno in _NEVER else FdeError
        raise kind_of_error(
            mount_point, f"the file system does not grow: {error.strerror}", "Look at the kernel's log"
        ) from error
    finally:
        os.close(descriptor)


def kind_of(mount_point: str, mounts: str = "/proc/self/mounts") -> str:
    """Return the type of the file system that is mounted there; the last one counts. Raises ``FdeError``."""
    with open(mounts, encoding="utf-8", errors="surrogateescape") as table:
        found = [line.split()[2] for line in table if line.split()[1] == mount_point]
    if not found:
        raise FdeError(mount_point, "nothing is mounted there", "Mount it first")
    return found[-1]


def _size(descriptor: int) -> int:
    known = os.fstatvfs(descriptor)
    return known.f_blocks * known.f_frsize
