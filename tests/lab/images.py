# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A tree made into a raw disk image that boots by itself: GPT, a signed kernel image in the ESP, ext4 root."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from .cache import cached, digest
from .keys import Keys, keys
from .process import LabError, run
from .trees import base_tree, run_in, tools_tree

MIB = 1 << 20
ESP_START, ESP_SIZE = 1 * MIB, 256 * MIB
ROOT_START = ESP_START + ESP_SIZE
ROOT_SIZE = 1536 * MIB
#: Room after the last partition for the second copy of the partition table.
TAIL = 1 * MIB
ESP_TYPE = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
ROOT_TYPE = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
#: What every guest of the lab gets: a console on the serial port, and no work that emulation makes slow for nothing.
COMMAND_LINE = (
    "console=ttyS0 quiet systemd.show_status=1 mitigations=off nokaslr cryptomgr.notests nowatchdog "
    "rcupdate.rcu_expedited=1 tsc=reliable no_timer_check"
)


def base_image() -> Path:
    """Return the general-purpose image, the stand-in for what a cloud's marketplace offers."""
    tree = base_tree()
    recipe = digest(tree.name, Path(__file__), keys().certificate("db").read_text())
    return cached("the base image", "base.raw", recipe, lambda at: pack(tree, at))


def pack(tree: Path, image: Path) -> None:
    """Write a bootable raw image of ``tree``; the tree gets an ``/etc/fstab`` as cloud images have one."""
    root_id, esp_id = str(uuid.uuid4()), str(uuid.uuid4())
    (tree / "etc/fstab").write_text(
        f"PARTUUID={root_id} / ext4 rw,errors=remount-ro 0 1\nPARTUUID={esp_id} /boot/efi vfat defaults,nofail 0 2\n"
    )
    (tree / "boot/efi").mkdir(exist_ok=True)
    image.unlink(missing_ok=True)
    with open(image, "wb") as file:
        file.truncate(ROOT_START + ROOT_SIZE + TAIL)
    _partition(image, root_id, esp_id)
    options = f"offset={ROOT_START},lazy_itable_init=0,lazy_journal_init=0"
    run(["mkfs.ext4", "-q", "-L", "root", "-d", tree, "-E", options, image, f"{ROOT_SIZE // 1024}k"])
    kernel_image, esp = image.with_suffix(".efi"), image.with_suffix(".esp")
    _kernel_image(tree, f"root=PARTUUID={root_id} rw {COMMAND_LINE}", keys(), kernel_image)
    _system_partition(kernel_image, esp)
    run(["dd", f"if={esp}", f"of={image}", "bs=1M", f"seek={ESP_START // MIB}", "conv=notrunc,sparse", "status=none"])
    kernel_image.unlink()
    esp.unlink()


def _system_partition(kernel_image: Path, esp: Path) -> None:
    esp.unlink(missing_ok=True)
    run(["mkfs.vfat", "-C", "-F", "32", "-n", "ESP", esp, str(ESP_SIZE // 1024)])
    run(["mmd", "-i", esp, "::/EFI", "::/EFI/BOOT"])
    run(["mcopy", "-i", esp, kernel_image, "::/EFI/BOOT/BOOTX64.EFI"])


def _partition(image: Path, root_id: str, esp_id: str) -> None:
    script = image.with_suffix(".sfdisk")
    script.write_text(
        "label: gpt\nsector-size: 512\n"
        f'start={ESP_START // 512}, size={ESP_SIZE // 512}, type={ESP_TYPE}, uuid={esp_id}, name="esp"\n'
        f'start={ROOT_START // 512}, size={ROOT_SIZE // 512}, type={ROOT_TYPE}, uuid={root_id}, name="root"\n'
    )
    run(["sh", "-c", 'exec sfdisk --quiet "$0" < "$1"', image, script])
    script.unlink()


def _kernel_image(tree: Path, command_line: str, lab: Keys, target: Path) -> None:
    """Bundle the newest kernel of a tree with its initrd, signed for the lab's Secure Boot."""
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
        run_in(
            tools_tree(),
            ["ukify", "build", "--linux=/mnt/linux", "--initrd=/mnt/initrd", "--os-release=@/mnt/os-release"]
            + [f"--uname={version}", f"--cmdline={command_line}", "--output=/mnt/image.efi"]
            + ["--secureboot-private-key=/mnt/db.key", "--secureboot-certificate=/mnt/db.crt"],
            work=work,
        )
        shutil.move(work / "image.efi", target)
    finally:
        shutil.rmtree(work)
