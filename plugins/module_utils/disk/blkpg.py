# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell the kernel of one partition of a disk whose other partitions are in use.

Source: Linux include/uapi/linux/blkpg.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import struct

_BLKPG = 0x1269
_ADD, _DELETE = 1, 2
#: struct blkpg_ioctl_arg and struct blkpg_partition.
_REQUEST, _PARTITION = struct.Struct("@iiiP"), struct.Struct("@qqi64s64s4x")


def add(disk: int, number: int, offset: int, size: int) -> None:
    """Make the kernel know a partition of the open ``disk``; position in bytes. Raises ``OSError``."""
    _call(disk, _ADD, number, offset, size)


def delete(disk: int, number: int) -> None:
    """Make the kernel forget a partition of the open ``disk``. Raises ``OSError``, also when it is in use."""
    _call(disk, _DELETE, number, 0, 0)


def _call(disk: int, operation: int, number: int, offset: int, size: int) -> None:
    partition = ctypes.create_string_buffer(_PARTITION.pack(offset, size, number, b"", b""), _PARTITION.size)
    fcntl.ioctl(disk, _BLKPG, _REQUEST.pack(operation, 0, _PARTITION.size, ctypes.addressof(partition)))
