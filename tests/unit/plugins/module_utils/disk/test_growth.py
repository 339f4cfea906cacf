# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel answers when a file system is told to grow; that real ones do is tested in a guest."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.disk.growth import CannotGrow, grow
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError

SIZE = 1 << 30
#: BTRFS_ERROR_DEV_EXCL_RUN_IN_PROGRESS (Linux include/uapi/linux/btrfs.h), which is no errno.
EXCLUSIVE = 5


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EROFS, CannotGrow), (errno.EPERM, CannotGrow), (errno.EOPNOTSUPP, CannotGrow), (errno.EBUSY, FdeError)],
)
def test_what_never_grows_is_told_from_what_does_not_grow_now(
    tmp_path: Path, number: int, kind: type[FdeError]
) -> None:
    def refuse(*_arguments: object) -> object:
        raise OSError(number, "no")

    with pytest.raises(FdeError) as caught:
        grow(str(tmp_path), "ext4", SIZE, refuse)
    assert type(caught.value) is kind


def test_an_unknown_file_system_never_grows(tmp_path: Path) -> None:
    with pytest.raises(CannotGrow, match="of type vfat"):
        grow(str(tmp_path), "vfat", SIZE)


def test_a_btrfs_that_is_busy_with_its_devices_has_not_grown(tmp_path: Path) -> None:
    with pytest.raises(FdeError, match="is under way"):
        grow(str(tmp_path), "btrfs", SIZE, lambda *_: EXCLUSIVE)
    assert grow(str(tmp_path), "btrfs", SIZE, lambda *_: 0) == 0
