# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A tree made into a raw disk image that boots by itself: GPT, a signed kernel image in the ESP, ext4 root."""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from .cache import cached, digest
from .keys import Keys, keys
from .process import LabError, run
from .trees import SUITE, base_tree, run_in, tools_tree, variant

MIB = 1 << 20
ESP_START = 1 * MIB
#: By the size of the disk's sectors. FAT32 has at least 65525 clusters, and none is smaller than a sector.
ESP_SIZES = {512: 256 * MIB, 4096: 288 * MIB}
ROOT_SIZE = 1536 * MIB
#: Room after the last partition for the second copy of the partition table.
TAIL = 1 * MIB
ESP_TYPE = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
ROOT_TYPE = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
#: What every guest of the lab gets: a console on the serial port, and no work that emulation makes slow for nothing.
COMMAND_LINE = (
    "console=ttyS0 loglevel=6 systemd.show_status=1 mitigations=off nokaslr cryptomgr.notests nowatchdog "
    "rcupdate.rcu_expedited=1 tsc=reliable no_timer_check"
)

#: systemd gives a disk 90 seconds to appear, which a busy machine's emulation may not keep.
PATIENCE = "systemd.default_device_timeout_sec=600 systemd.default_timeout_start_sec=600"


@dataclass(frozen=True)
class Layout:
    """Where the partitions of an image lie, for a disk with logical sectors of ``sector`` bytes."""

    sector: int

    @property
    def esp_size(self) -> int:
        return ESP_SIZES[self.sector]

    @property
    def root_start(self) -> int:
        return ESP_START + self.esp_size

    def table(self, root_id: str, esp_id: str) -> str:
        """Return the script for sfdisk."""
        return (
            f"label: gpt\nsector-size: {self.sector}\n"
            f'{self._span(ESP_START, self.esp_size)}, type={ESP_TYPE}, uuid={esp_id}, name="esp"\n'
            f'{self._span(self.root_start, ROOT_SIZE)}, type={ROOT_TYPE}, uuid={root_id}, name="root"\n'
        )

    def _span(self, start: int, size: int) -> str:
        return f"start={start // self.sector}, size={size // self.sector}"


def base_image(suite: str = SUITE, sector: int = 512, more: Sequence[str] = (), measured: bool = False) -> Path:
    """Return the general-purpose image, the stand-in for what a cloud's marketplace offers, with ``more`` packages.

    When it is ``measured``, its boot measures itself into PCR 11, and the kernel image carries the signatures of
    the values that PCR 11 will have (``keys().key("pcr")``).
    """
    tree = base_tree(suite, more, measured)
    recipe = digest(tree.name, Path(__file__), keys().certificate("db").read_text(), sector, measured)
    words = ("more" if more else "", "measured" if measured else "", "4k" if sector == 4096 else "")
    name = variant("base.raw", suite, *words)
    return cached(f"the base image ({suite})", name, recipe, lambda at: pack(tree, at, sector, measured))


def pack(tree: Path, image: Path, sector: int = 512, measured: bool = False) -> None:
    """Write a bootable raw image of ``tree``; the tree gets an ``/etc/fstab`` as cloud images have one."""
    layout = Layout(sector)
    root_id, esp_id = str(uuid.uuid4()), str(uuid.uuid4())
    (tree / "etc/fstab").write_text(
        f"PARTUUID={root_id} / ext4 rw,errors=remount-ro 0 1\nPARTUUID={esp_id} /boot/efi vfat defaults,nofail 0 2\n"
    )
    (tree / "boot/efi").mkdir(exist_ok=True)
    image.unlink(missing_ok=True)
    with open(image, "wb") as file:
        file.truncate(layout.root_start + ROOT_SIZE + TAIL)
    script, kernel_image, esp = (image.with_suffix(suffix) for suffix in (".sfdisk", ".efi", ".esp"))
    script.write_text(layout.table(root_id, esp_id))
    _partition(image, script, sector)
    options = f"offset={layout.root_start},lazy_itable_init=0,lazy_journal_init=0"
    run(["mkfs.ext4", "-q", "-L", "root", "-d", tree, "-b", "4096", "-E", options, image, f"{ROOT_SIZE // 4096}"])
    _kernel_image(tree, f"root=PARTUUID={root_id} rw {COMMAND_LINE} {PATIENCE}", keys(), kernel_image, measured)
    _system_partition(kernel_image, esp, layout)
    run(["dd", f"if={esp}", f"of={image}", "bs=1M", f"seek={ESP_START // MIB}", "conv=notrunc,sparse", "status=none"])
    for file in (script, kernel_image, esp):
        file.unlink()


def _partition(image: Path, script: Path, sector: int) -> None:
    # Only newer programs than Debian 12's make a table of other sectors than the file's.
    command = f'exec sfdisk --quiet --sector-size {sector} "/mnt/$0" < "/mnt/$1"'
    run_in(tools_tree(), ["sh", "-c", command, image.name, script.name], work=image.parent)


def _system_partition(kernel_image: Path, esp: Path, layout: Layout) -> None:
    esp.unlink(missing_ok=True)
    size = str(layout.esp_size // 1024)
    run(["mkfs.vfat", "-C", "-F", "32", "-S", str(layout.sector), "-s", "1", "-n", "ESP", esp, size])
    run(["mmd", "-i", esp, "::/EFI", "::/EFI/BOOT"])
    run(["mcopy", "-i", esp, kernel_image, "::/EFI/BOOT/BOOTX64.EFI"])


def _kernel_image(tree: Path, command_line: str, lab: Keys, target: Path, measured: bool) -> None:
    """Bundle the newest kernel of a tree with its initrd, signed for the lab's Secure Boot.

    When it is ``measured``, the values of PCR 11 in every phase of its boot are signed as well.
    """
    kernels = sorted((tree / "boot").glob("vmlinuz-*"))
    if not kernels:
        raise LabError(f"{tree} has no kernel in /boot")
    version = kernels[-1].name.removeprefix("vmlinuz-")
    work = target.with_suffix(".work")
    work.mkdir()
    try:
        shutil.copy(kernels[-1], work / "linux")
        shutil.copy(tree / f"boot/initrd.img-{version}", work / "initrd")
        shutil.copy(tree / "etc/os-release", work / "os-release")
        shutil.copy(lab.key("db"), work / "db.key")
        shutil.copy(lab.certificate("db"), work / "db.crt")
        policies = []
        if measured:
            shutil.copy(lab.key("pcr"), work / "pcr.key")
            shutil.copy(lab.public("pcr"), work / "pcr.pub")
            policies = ["--pcrpkey=/mnt/pcr.pub", "--pcr-private-key=/mnt/pcr.key", "--pcr-public-key=/mnt/pcr.pub"]
            # Without the last, the NV indexes of what systemd measures beyond the PCRs cannot be started.
            policies += ["--pcr-banks=sha256", "--sign-initrd-pcrs"]
        run_in(
            tools_tree(),
            ["ukify", "build", "--linux=/mnt/linux", "--initrd=/mnt/initrd", "--os-release=@/mnt/os-release"]
            + [f"--uname={version}", f"--cmdline={command_line}", "--output=/mnt/image.efi"]
            + ["--secureboot-private-key=/mnt/db.key", "--secureboot-certificate=/mnt/db.crt", *policies],
            work=work,
        )
        shutil.move(work / "image.efi", target)
    finally:
        shutil.rmtree(work)
