# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide how an image becomes a sealed one: pure functions of what was found and what is wanted."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum
from typing import Iterable, Mapping, Optional

from ..agent.capability import missing
from ..disk import gpt
from ..disk.esp import OVERHEAD, min_size
from ..disk.ext4 import Change, Entry
from ..disk.file_system import FileSystem
from ..disk.sparse import Content
from ..errors import FdeError
from ..verity.superblock import Superblock
from .command_line import Choices, check_extra, command_line
from .sealed_image import SealedImage, derive_uuid, lay_out
from .secure_boot import Variable, authority
from .uki import MIN_UKIFY, SignTool

BLOCK = 4096
#: Changes when the same input gives another sealed root, so that images of older versions are made anew.
FORMAT = b"1"
PROGRAMS = (
    *("ukify", "systemd-measure", "sbverify", "veritysetup"),
    *("debugfs", "e2fsck", "mkfs.vfat", "mmd", "mcopy", "openssl"),
)


@dataclass(frozen=True)
class Request:
    """What the user wants. Keys, certificate and images by path; sizes in bytes."""

    src: str
    dest: str
    name: str
    manifest: str
    manifest_key: str
    pcr_private_key: str
    pcr_public_key: bytes
    secure_boot_key: str
    secure_boot_certificate: str
    #: The certificate in DER form.
    certificate: bytes
    variables: Optional[Mapping[Variable, bytes]] = None
    in_place: bool = False
    force: bool = False
    kernel: Optional[str] = None
    command_line: str = ""
    esp_size: int = 288 << 20
    sign_tool: SignTool = SignTool.SYSTEMD
    choices: Choices = Choices()


@dataclass(frozen=True)
class Kernel:
    """A kernel of the image with its initrd: paths in the image, sizes in bytes."""

    version: str
    path: str
    initrd: str
    size: int


@dataclass(frozen=True)
class Source:
    """The image to seal. ``root_content`` says what its root held when it was looked at.

    ``sector_size`` is the one that its partition table is made for; the sealed image is for the same disks.
    """

    root: gpt.Partition
    file_system: FileSystem
    root_content: Content
    kernel: Kernel
    os_release: str
    clean: tuple[Change, ...]
    sector_size: int = 512
    #: The strategy that it was prepared for, and the modules of its kernel (``modules.dep`` and ``modules.builtin``).
    strategy: str = ""
    modules: str = ""


@dataclass(frozen=True)
class Output:
    """What is at the destination now."""

    exists: bool
    sealed: Optional[SealedImage]
    #: The bytes of the manifest there, empty when there is none with a good signature of the manifest key.
    manifest: bytes
    #: What its manifest would be for the present request.
    expected_manifest: bytes
    #: Size of the device that is to hold the image, None for a file.
    device_size: Optional[int] = None


@dataclass(frozen=True)
class Room:
    """Free bytes where the parts are made, and where the output goes when that is another file system."""

    work: int
    dest: Optional[int] = None


class Action(str, Enum):
    """What is to be done."""

    NOTHING = "nothing"
    MANIFEST = "manifest"
    SEAL = "seal"


@dataclass(frozen=True)
class Plan:
    """The decision, why, and in which steps."""

    action: Action
    reason: str
    steps: tuple[str, ...] = ()


def check_programs(missing: Iterable[str], ukify_version: int, stub: bool) -> None:
    """Raise ``FdeError`` for the first program of the builder that is absent or too old."""
    for program in missing:
        raise FdeError(
            program, "the program is not installed on the builder", f"Install the package that provides '{program}'"
        )
    if ukify_version < MIN_UKIFY:
        raise FdeError(
            "ukify", f"version {ukify_version} is too old", f"Use systemd {MIN_UKIFY} or later, or a tools_tree with it"
        )
    if not stub:
        raise FdeError("systemd-stub", "linuxx64.efi.stub is not installed", "Install the package systemd-boot-efi")


def choose_root(table: gpt.Table, subject: str) -> gpt.Partition:
    """Return the root partition: the one of type root, or else the only one of type Linux. Raises ``FdeError``."""
    if not table.of_type(gpt.ESP):
        raise FdeError(subject, "the image has no EFI system partition", "Use an image that boots with UEFI")
    found = table.of_type(gpt.ROOT_X86_64) or table.of_type(gpt.LINUX_GENERIC)
    if not found:
        raise FdeError(
            subject, "the image has no root partition for x86-64", "Give its root the partition type 'root (x86-64)'"
        )
    if len(found) > 1:
        numbers = ", ".join(str(partition.number) for partition in found)
        raise FdeError(
            subject, f"partitions {numbers} could all be the root", "Give only one the partition type 'root (x86-64)'"
        )
    return found[0]


def check_file_system(found: Optional[FileSystem], partition: gpt.Partition, subject: str) -> FileSystem:
    """Return the root's file system when it can be sealed. Raises ``FdeError``."""
    where = f"{subject}, partition {partition.number}"
    if found is None or found.type != "ext4":
        name = found.type if found is not None else "no known file system"
        raise FdeError(where, f"the root holds {name}; ext4 is supported", "Build the image with an ext4 root")
    if found.damage:
        raise FdeError(where, found.damage, "Run e2fsck on it, or shut the machine down before its disk is copied")
    if found.block_size < BLOCK:
        # Neither dm-verity's device nor an encrypted volume has smaller ones, and Linux would not mount it there.
        raise FdeError(
            where,
            f"the blocks of its file system have {found.block_size} bytes, and at least {BLOCK} are needed",
            f"Build the image with 'mkfs.ext4 -b {BLOCK}'; mke2fs takes smaller ones for file systems below 512 MiB",
        )
    if found.size > partition.size:
        raise FdeError(where, "the file system is larger than its partition", "Copy the image again: it is truncated")
    return found


def choose_kernel(boot: Mapping[str, Entry], wanted: Optional[str], subject: str) -> Kernel:
    """Return the kernel to boot from the entries of /boot. Raises ``FdeError`` when there is none or no single one."""
    prefix = "vmlinuz-"
    versions = sorted(name[len(prefix) :] for name, entry in boot.items() if name.startswith(prefix) and entry.is_file)
    if wanted is not None:
        versions = [version for version in versions if version == wanted]
    if not versions:
        what = f"kernel {wanted}" if wanted is not None else "kernel"
        raise FdeError(
            subject,
            f"there is no {what} in /boot of the root",
            "Prepare the image; a /boot of its own is not supported",
        )
    if len(versions) > 1:
        raise FdeError(
            subject, f"there are several kernels: {', '.join(versions)}", "Choose one with the option 'kernel'"
        )
    version = versions[0]
    for name in (f"initrd.img-{version}", f"initramfs-{version}.img"):
        if name in boot and boot[name].is_file:
            size = boot[prefix + version].size + boot[name].size
            return Kernel(version, f"/boot/{prefix}{version}", f"/boot/{name}", size)
    raise FdeError(
        subject, f"there is no initrd for kernel {version} in /boot", "Prepare the image first (entry point prepare)"
    )


def wanted_superblock(source: Source) -> Superblock:
    """Return the parameters of the hash tree.

    The salt is derived from the content of the input root: a sealed image tells by it from what it was made, and the
    same input always gives the same root hash.
    """
    salt = hashlib.sha256(b"cvm.fde salt\0" + FORMAT + source.root_content.digest).digest()
    blocks = -(-source.file_system.size // BLOCK)
    return Superblock(derive_uuid(salt, "verity"), "sha256", BLOCK, BLOCK, blocks, salt)


def plan(request: Request, source: Optional[Source], output: Output, room: Room) -> Plan:
    """Return what to do; ``source`` is None when the input is a sealed image already. Raises ``FdeError``."""
    check_extra(request.command_line)
    if request.variables is not None:
        authority(request.variables, request.certificate)
    if source is None:
        return Plan(Action.NOTHING, "the input is a sealed image already")
    if output.sealed is not None and _is_wanted(output.sealed, request, source):
        if output.manifest == output.expected_manifest:
            return Plan(Action.NOTHING, "the output is sealed from this input already")
        return Plan(
            Action.MANIFEST, "the sealed image has no manifest, or another one", ("write and sign the manifest",)
        )
    if output.exists and output.sealed is None and not (request.force or request.in_place):
        raise FdeError(
            request.dest, "it exists and is not a sealed image", "Name another file, or set 'force' to replace it"
        )
    _check_strategy(request, source)
    _check_sizes(request, source, output, room)
    reason = (
        "the output is sealed from another input or with other options" if output.sealed else "the image is not sealed"
    )
    return Plan(Action.SEAL, reason, _steps(request, source))


def _is_wanted(sealed: SealedImage, request: Request, source: Source) -> bool:
    uki = sealed.uki
    return (
        sealed.superblock == wanted_superblock(source)
        and uki.command_line == command_line(sealed.root_hash.hex(), request.choices, request.command_line)
        and sealed.sector_size == source.sector_size
        and uki.sections.get(".uname", b"").rstrip(b"\0").decode("ascii", "replace") == source.kernel.version
        and uki.sections.get(".pcrpkey", b"").rstrip(b"\0") == request.pcr_public_key
        and len(uki.image.certificates) == 1
        and request.certificate in uki.image.certificates[0]
    )


def _check_strategy(request: Request, source: Source) -> None:
    strategy = request.choices.strategy
    if source.strategy != strategy.value:
        raise FdeError(
            request.src,
            f"it was prepared for the strategy '{source.strategy or 'none'}', not for '{strategy.value}'",
            f"Prepare it with strategy={strategy.value}, or seal it for what it was prepared for",
        )
    lacking = missing(strategy, source.modules)
    if lacking:
        raise FdeError(
            f"kernel {source.kernel.version}",
            f"it has no {', '.join(lacking)}, which the strategy '{strategy.value}' needs",
            "Choose another strategy, or another kernel with the option 'kernel'",
        )


def _check_sizes(request: Request, source: Source, output: Output, room: Room) -> None:
    smallest, needed = min_size(source.sector_size), source.kernel.size + OVERHEAD
    if request.esp_size < max(smallest, needed):
        fat = f"no FAT32 on sectors of {source.sector_size} bytes is that small"
        cause = "the kernel image does not fit the EFI system partition" if needed > smallest else fat
        raise FdeError("esp_size", cause, f"Make it at least {-(-max(smallest, needed) // gpt.MIB)} MiB")
    superblock = wanted_superblock(source)
    try:
        lay_out(
            request.esp_size,
            superblock.data_size,
            superblock.area_size,
            bytes(32),
            output.device_size,
            source.sector_size,
        )
    except ValueError as error:
        raise FdeError(request.dest, str(error), "Use a larger device or a smaller 'esp_size'") from error
    image = source.root_content.stored + superblock.area_size + 2 * source.kernel.size
    # Parts and finished image exist side by side for a moment.
    for need, free in ((2 * image, room.work), (image, image if room.dest is None else room.dest)):
        if free < need:
            cause = f"there is not enough free space: {need >> 20} MiB are needed, {free >> 20} MiB are free"
            raise FdeError(request.dest, cause, "Free some, or name another directory with 'work_dir' and 'dest'")


def _steps(request: Request, source: Source) -> tuple[str, ...]:
    stored, size = source.root_content.stored >> 20, source.file_system.size >> 20
    return (
        f"copy the root file system ({stored} MiB in use of {size} MiB)",
        f"remove what identifies one machine ({len(source.clean)} changes), check the file system",
        "compute the verity hash tree and read everything again to verify it",
        f"build and sign the kernel image for Linux {source.kernel.version}, check its signatures and predicted PCRs",
        "make the EFI system partition",
        "put the disk together",
        "write and sign the manifest",
        f"write {request.dest}",
    )
