# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decision about an image, row by row."""

from __future__ import annotations

import stat
import uuid
from dataclasses import replace
from typing import Any, Optional

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.capability import MODULES
from ansible_collections.cvm.fde.plugins.module_utils.agent.configuration import Strategy
from ansible_collections.cvm.fde.plugins.module_utils.boot import seal_plan
from ansible_collections.cvm.fde.plugins.module_utils.boot.command_line import Choices, command_line
from ansible_collections.cvm.fde.plugins.module_utils.boot.pe import PeImage
from ansible_collections.cvm.fde.plugins.module_utils.boot.seal_plan import (
    Action,
    Kernel,
    Output,
    Request,
    Room,
    Source,
)
from ansible_collections.cvm.fde.plugins.module_utils.boot.sealed_image import SealedImage, lay_out, partition_ids
from ansible_collections.cvm.fde.plugins.module_utils.boot.uki import Uki
from ansible_collections.cvm.fde.plugins.module_utils.disk import gpt
from ansible_collections.cvm.fde.plugins.module_utils.disk.ext4 import Entry
from ansible_collections.cvm.fde.plugins.module_utils.disk.file_system import FileSystem
from ansible_collections.cvm.fde.plugins.module_utils.disk.sparse import Content
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError

MIB = gpt.MIB
HASH = bytes(range(32))
REQUEST = Request(
    src="in.raw",
    dest="out.raw",
    name="image",
    manifest="manifest.json",
    manifest_key="m.key",
    pcr_private_key="pcr.key",
    pcr_public_key=b"PUBLIC KEY",
    secure_boot_key="db.key",
    secure_boot_certificate="db.crt",
    certificate=b"CERTIFICATE",
    command_line="quiet",
)
SOURCE = Source(
    root=gpt.Partition(2, gpt.LINUX_GENERIC, uuid.uuid4(), 128 * MIB, 1000 * MIB),
    file_system=FileSystem("ext4", 1000 * MIB),
    root_content=Content(b"digest", 100 * MIB),
    kernel=Kernel("7.2", "/boot/vmlinuz-7.2", "/boot/initrd.img-7.2", 40 * MIB),
    os_release="/usr/lib/os-release",
    clean=(),
    strategy="clone",
    modules="".join(f"kernel/{name}.ko.xz:\n" for name in MODULES[Strategy.CLONE]),
)
NOTHING = Output(False, None, b"", b"")
PLENTY = Room(1 << 40)


def sealed(request: Request = REQUEST, source: Source = SOURCE, signer: bytes = b"CERTIFICATE") -> SealedImage:
    superblock = seal_plan.wanted_superblock(source)
    layout = lay_out(request.esp_size, superblock.data_size, superblock.area_size, HASH)
    image = PeImage(b"", (), 0, 0, 0, (b"signature by " + signer,))
    line = command_line(HASH.hex(), request.choices, request.command_line)
    sections = {".cmdline": line.encode(), ".uname": source.kernel.version.encode(), ".pcrpkey": request.pcr_public_key}
    return SealedImage(HASH, layout.root, layout.verity, superblock, Uki(image, sections, "262"))


def output(image: Optional[SealedImage], manifest: bytes = b"manifest") -> Output:
    return Output(True, image, manifest, b"manifest")


OTHER_CONTENT = replace(SOURCE, root_content=Content(b"other", 100 * MIB))
OTHER_KERNEL = replace(SOURCE, kernel=replace(SOURCE.kernel, version="7.1"))


@pytest.mark.parametrize(
    ("request_", "source", "found", "action"),
    [
        (REQUEST, SOURCE, NOTHING, Action.SEAL),
        (REQUEST, None, NOTHING, Action.NOTHING),
        (REQUEST, SOURCE, output(sealed()), Action.NOTHING),
        (REQUEST, SOURCE, output(sealed(), b""), Action.MANIFEST),
        (REQUEST, SOURCE, output(sealed(), b"another"), Action.MANIFEST),
        (REQUEST, OTHER_CONTENT, output(sealed()), Action.SEAL),
        (REQUEST, OTHER_KERNEL, output(sealed()), Action.SEAL),
        (replace(REQUEST, command_line="verbose"), SOURCE, output(sealed()), Action.SEAL),
        (replace(REQUEST, pcr_public_key=b"ANOTHER"), SOURCE, output(sealed()), Action.SEAL),
        (REQUEST, SOURCE, output(sealed(signer=b"SOMEBODY")), Action.SEAL),
        (replace(REQUEST, force=True), SOURCE, output(None), Action.SEAL),
        (replace(REQUEST, in_place=True), SOURCE, NOTHING, Action.SEAL),
    ],
)
def test_what_is_done(request_: Request, source: Optional[Source], found: Output, action: Action) -> None:
    decision = seal_plan.plan(request_, source, found, PLENTY)
    assert decision.action is action
    assert bool(decision.steps) == (action is not Action.NOTHING)
    assert decision.reason


@pytest.mark.parametrize(
    ("changes", "found", "room", "cause"),
    [
        ({}, output(None), PLENTY, "not a sealed image"),
        ({"command_line": "rd.break"}, NOTHING, PLENTY, "may not be set"),
        ({"esp_size": 32 * MIB}, NOTHING, PLENTY, "is that small. Make it at least 64 MiB"),
        ({}, NOTHING, Room(200 * MIB), "not enough free space"),
        ({}, NOTHING, Room(1 << 40, 100 * MIB), "not enough free space"),
        ({}, replace(NOTHING, device_size=1000 * MIB), PLENTY, "the device has"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], found: Output, room: Room, cause: str) -> None:
    with pytest.raises(FdeError, match=cause):
        seal_plan.plan(replace(REQUEST, **changes), SOURCE, found, room)


def test_the_layout_is_three_aligned_partitions_named_by_the_root_hash() -> None:
    layout = lay_out(256 * MIB, 1000 * MIB + 4096, 8 * MIB + 4096, HASH)
    assert [partition.type for partition in layout.table.partitions] == [
        gpt.ESP,
        gpt.ROOT_X86_64,
        gpt.ROOT_VERITY_X86_64,
    ]
    assert all(partition.offset % MIB == 0 for partition in layout.table.partitions)
    assert (layout.root.id.bytes, layout.verity.id.bytes) == (HASH[:16], HASH[16:])
    assert layout.root.size == 1000 * MIB + 4096
    assert layout.disk_size % MIB == 0
    assert layout.disk_size - layout.verity.end <= MIB + 33 * 512
    assert partition_ids(HASH) == (layout.root.id, layout.verity.id)


def test_the_same_input_gives_the_same_salt_and_another_one_another() -> None:
    assert seal_plan.wanted_superblock(SOURCE) == seal_plan.wanted_superblock(OTHER_KERNEL)
    assert seal_plan.wanted_superblock(SOURCE).salt != seal_plan.wanted_superblock(OTHER_CONTENT).salt


def table(*kinds: uuid.UUID) -> gpt.Table:
    partitions = tuple(
        gpt.Partition(number, kind, uuid.uuid4(), number * MIB, MIB) for number, kind in enumerate(kinds, 1)
    )
    return gpt.new_table(uuid.uuid4(), 16 * MIB, partitions)


@pytest.mark.parametrize(
    ("kinds", "number"),
    [
        ((gpt.ESP, gpt.LINUX_GENERIC), 2),
        ((gpt.LINUX_GENERIC, gpt.ROOT_X86_64, gpt.ESP), 2),
    ],
)
def test_the_root_is_found_by_its_type(kinds: tuple[uuid.UUID, ...], number: int) -> None:
    assert seal_plan.choose_root(table(*kinds), "disk").number == number


@pytest.mark.parametrize(
    ("kinds", "cause"),
    [
        ((gpt.ROOT_X86_64,), "no EFI system partition"),
        ((gpt.ESP,), "no root partition"),
        ((gpt.ESP, gpt.LINUX_GENERIC, gpt.LINUX_GENERIC), "partitions 2, 3 could all be the root"),
        ((gpt.ESP, gpt.ROOT_X86_64, gpt.ROOT_X86_64), "partitions 2, 3 could all be the root"),
    ],
)
def test_an_image_without_exactly_one_root_is_refused(kinds: tuple[uuid.UUID, ...], cause: str) -> None:
    with pytest.raises(FdeError, match=cause):
        seal_plan.choose_root(table(*kinds), "disk")


@pytest.mark.parametrize(
    ("found", "cause"),
    [
        (None, "no known file system"),
        (FileSystem("btrfs"), "the root holds btrfs"),
        (FileSystem("crypto_LUKS"), "the root holds crypto_LUKS"),
        (FileSystem("ext4", MIB, damage="its journal needs recovery"), "journal needs recovery"),
        (FileSystem("ext4", 2000 * MIB, block_size=4096), "larger than its partition"),
        (FileSystem("ext4", 10 * MIB, block_size=1024), "have 1024 bytes, and at least 4096 are needed"),
    ],
)
def test_a_root_that_cannot_be_sealed_is_refused(found: Optional[FileSystem], cause: str) -> None:
    with pytest.raises(FdeError, match=cause):
        seal_plan.check_file_system(found, SOURCE.root, "disk")


def boot(*names: str) -> dict[str, Entry]:
    return {name: Entry(name, stat.S_IFREG | 0o644, 1000) for name in names}


@pytest.mark.parametrize(
    ("names", "wanted", "version"),
    [
        (("vmlinuz-1", "initrd.img-1", "config-1"), None, "1"),
        (("vmlinuz-1", "initramfs-1.img"), None, "1"),
        (("vmlinuz-1", "initrd.img-1", "vmlinuz-2", "initrd.img-2"), "2", "2"),
    ],
)
def test_the_kernel_is_the_only_or_the_chosen_one(names: tuple[str, ...], wanted: Optional[str], version: str) -> None:
    kernel = seal_plan.choose_kernel(boot(*names), wanted, "disk")
    assert (kernel.version, kernel.path, kernel.size) == (version, f"/boot/vmlinuz-{version}", 2000)


@pytest.mark.parametrize(
    ("names", "wanted", "cause"),
    [
        ((), None, "no kernel in /boot"),
        (("vmlinuz-1", "initrd.img-1"), "2", "no kernel 2"),
        (("vmlinuz-1",), None, "no initrd"),
        (("vmlinuz-1", "vmlinuz-2", "initrd.img-1", "initrd.img-2"), None, "several kernels: 1, 2"),
    ],
)
def test_no_kernel_is_guessed(names: tuple[str, ...], wanted: Optional[str], cause: str) -> None:
    with pytest.raises(FdeError, match=cause):
        seal_plan.choose_kernel(boot(*names), wanted, "disk")


@pytest.mark.parametrize(
    ("missing", "version", "stub", "cause"),
    [
        (["veritysetup"], 262, True, "veritysetup: the program is not installed"),
        ([], 261, True, "too old"),
        ([], 0, True, "too old"),
        ([], 262, False, "linuxx64.efi.stub"),
    ],
)
def test_missing_and_old_programs_are_named(missing: list[str], version: int, stub: bool, cause: str) -> None:
    with pytest.raises(FdeError, match=cause):
        seal_plan.check_programs(missing, version, stub)
    seal_plan.check_programs([], 262, True)


def test_an_image_is_sealed_only_for_what_it_was_prepared_for() -> None:
    overlay = replace(REQUEST, choices=Choices(Strategy.OVERLAY))
    with pytest.raises(FdeError, match="prepared for the strategy 'clone', not for 'overlay'"):
        seal_plan.plan(overlay, SOURCE, NOTHING, PLENTY)
    with pytest.raises(FdeError, match="prepared for the strategy 'none'"):
        seal_plan.plan(REQUEST, replace(SOURCE, strategy=""), NOTHING, PLENTY)


def test_a_kernel_that_lacks_what_the_strategy_needs_is_refused_at_sealing() -> None:
    trixie = replace(SOURCE, modules=SOURCE.modules.replace("kernel/dm-clone.ko.xz:\n", ""))
    with pytest.raises(FdeError, match="it has no dm-clone, which the strategy 'clone' needs"):
        seal_plan.plan(REQUEST, trixie, NOTHING, PLENTY)
    copy = replace(REQUEST, choices=Choices(Strategy.COPY))
    assert seal_plan.plan(copy, replace(trixie, strategy="copy"), NOTHING, PLENTY).action is Action.SEAL


def test_the_kernel_image_and_a_copy_of_a_header_must_fit() -> None:
    large = replace(SOURCE, kernel=replace(SOURCE.kernel, size=100 * MIB))
    with pytest.raises(FdeError, match="does not fit the EFI system partition. Make it at least 112 MiB"):
        seal_plan.plan(replace(REQUEST, esp_size=100 * MIB), large, NOTHING, PLENTY)


def test_large_sectors_need_a_larger_efi_system_partition() -> None:
    large = replace(SOURCE, sector_size=4096)
    with pytest.raises(FdeError, match="no FAT32 on sectors of 4096 bytes is that small. Make it at least 257 MiB"):
        seal_plan.plan(replace(REQUEST, esp_size=256 * MIB), large, NOTHING, PLENTY)
    assert seal_plan.plan(replace(REQUEST, esp_size=257 * MIB), large, NOTHING, PLENTY).action is Action.SEAL
    assert seal_plan.plan(REQUEST, large, NOTHING, PLENTY).action is Action.SEAL


def test_another_strategy_or_sector_size_is_another_image() -> None:
    found = output(sealed())
    assert seal_plan.plan(REQUEST, SOURCE, found, PLENTY).action is Action.NOTHING
    other = replace(REQUEST, choices=Choices(Strategy.COPY)), replace(SOURCE, strategy="copy")
    assert seal_plan.plan(*other, found, PLENTY).action is Action.SEAL
    assert seal_plan.plan(REQUEST, replace(SOURCE, sector_size=4096), found, PLENTY).action is Action.SEAL
