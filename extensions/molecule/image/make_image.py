# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the smallest image that can be sealed: an ESP, and an ext4 root with a real kernel and initrd and little else.

Run from the checkout: ``python3 extensions/molecule/image/make_image.py FOLDER``. Prints what was made as JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.lab.keys import keys
from tests.lab.process import run
from tests.lab.trees import base_tree, tools_tree

MIB = 1 << 20
ESP_START, ESP_SIZE = 1 * MIB, 64 * MIB
ROOT_START, ROOT_SIZE = ESP_START + ESP_SIZE, 192 * MIB


def make_tree(base: Path, tree: Path) -> None:
    """Copy what sealing looks for: the kernel, its initrd, the description of the system, and a user's file."""
    (tree / "boot").mkdir(parents=True)
    for pattern in ("vmlinuz-*", "initrd.img-*"):
        for path in (base / "boot").glob(pattern):
            shutil.copy(path, tree / "boot")
    (tree / "usr/lib").mkdir(parents=True)
    shutil.copy(base / "usr/lib/os-release", tree / "usr/lib")
    (tree / "etc").mkdir()
    (tree / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")


def make_image(tree: Path, image: Path) -> None:
    with open(image, "wb") as file:
        file.truncate(ROOT_START + ROOT_SIZE + MIB)
    table = image.with_suffix(".sfdisk")
    table.write_text(
        "label: gpt\n"
        f"start={ESP_START // 512}, size={ESP_SIZE // 512}, type=uefi, name=esp\n"
        f"start={ROOT_START // 512}, size={ROOT_SIZE // 512}, type=linux, name=root\n"
    )
    run(["sh", "-c", 'exec sfdisk --quiet "$0" <"$1"', image, table])
    run(["mkfs.vfat", "-F", "32", "--offset", str(ESP_START // 512), image, str(ESP_SIZE // 1024)])
    run(["mkfs.ext4", "-q", "-b", "4096", "-d", tree, "-E", f"offset={ROOT_START}", image, f"{ROOT_SIZE // 1024}k"])


def main() -> None:
    folder = Path(sys.argv[1])
    image = folder / "small.raw"
    if not image.exists():
        make_tree(base_tree(), folder / "tree")
        make_image(folder / "tree", image)
        shutil.rmtree(folder / "tree")
    print(json.dumps({"image": str(image), "tools_tree": str(tools_tree()), "keys": str(keys().folder)}))


if __name__ == "__main__":
    main()
