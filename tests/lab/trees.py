# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Directory trees of Debian: the tools that hosts are too old for, and the images that are going to be sealed."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Iterable, Iterator, Optional, Sequence, Union

from .cache import cached, digest, place, remove
from .keys import keys
from .process import run

#: The suite of the tools, and of an image for which nothing else is asked: systemd 262, Linux 7.2, cryptsetup 2.8.
SUITE = "forky"
#: What images there are. trixie is what Debian's users have: systemd 257, Linux 6.12, Python 3.13.
SUITES = (SUITE, "trixie")
LIBRARIES = "usr/lib/x86_64-linux-gnu"
MIRROR = os.environ.get("FDE_LAB_MIRROR", "http://deb.debian.org/debian")
#: forky's Release file may be past its valid-until date.
APT_OPTIONS = ('Acquire::Check-Valid-Until "false"', 'APT::Install-Recommends "false"')

#: What seals images, what tests under User-mode Linux run on, and the machines themselves: forky's QEMU emulates twice
#: as fast as that of Debian 12, and every host of the lab gets the same firmware.
TOOLS = (
    "qemu-system-x86 ovmf "
    "systemd systemd-boot-efi systemd-cryptsetup systemd-repart systemd-tpm systemd-ukify udev dracut "
    "cryptsetup-bin dmsetup btrfs-progs dosfstools e2fsprogs xfsprogs fdisk mtools sbsigntool util-linux-extra "
    "user-mode-linux swtpm swtpm-tools tpm2-tools libtss2-tcti-device0t64 libtss2-tcti-swtpm0t64 "
    "python3 python3-cryptography python3-jmespath python3-pytest python3-hypothesis python3-tpm2-pytss python3-yaml "
    "fio iproute2 kmod openssl procps strace zstd"
).split()

#: What a marketplace image of Debian has, as far as this project meets it.
IMAGE = (
    "systemd systemd-sysv systemd-resolved udev dbus linux-image-cloud-amd64 dracut e2fsprogs fdisk kmod zstd "
    "openssh-server python3 iproute2 procps less ca-certificates"
).split()
#: What measures the phases of a boot into PCR 11 and predicts PCRs; trixie has it in the package systemd.
MEASURING = {"forky": ("systemd-tpm",), "trixie": ()}
#: What rebuilds the initrd when packages are installed, in forky and in trixie.
INITRD_HOOKS = ("usr/sbin/update-initramfs", "etc/kernel/postinst.d/dracut")
#: What an initrd that only has to find an ext4 root and to measure can do without.
INITRD_WITHOUT = "btrfs crypt dm lvm mdraid"
#: What a unified kernel image is made of, and a program that runs without anything else.
PARTS = "systemd-boot-efi linux-image-cloud-amd64 busybox-static".split()
#: Work that a guest under emulation should not spend its first minutes on.
MASKED = (
    "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service "
    "sshd-keygen.service systemd-networkd-wait-online.service"
).split()
OVERLAY = Path(__file__).parent / "image"


def tools_tree() -> Path:
    """Return the tree of tools; treat it as read-only."""
    return cached("the tree of tools", "tools", _tools_recipe(), lambda at: _debian(at, TOOLS))


def built_tools_tree() -> Optional[Path]:
    """Return the tree of tools unless it would have to be built."""
    tree = place("tools", _tools_recipe())
    return tree if tree.exists() else None


def _tools_recipe() -> str:
    return digest(SUITE, MIRROR, TOOLS, APT_OPTIONS)


def parts_tree(suite: str = SUITE) -> Path:
    """Return kernel, systemd-stub and busybox of a suite, unpacked only: a tree in which nothing was configured."""
    recipe = digest(suite, MIRROR, PARTS, APT_OPTIONS)
    what = f"the tree of the parts of a kernel image ({suite})"
    return cached(what, variant("parts", suite), recipe, lambda at: _debian(at, PARTS, suite, "extract"))


def base_tree(suite: str = SUITE, more: Sequence[str] = (), measured: bool = False) -> Path:
    """Return the unpacked general-purpose image and ``more`` packages; copy it before you change it (``copy_tree``).

    When it is ``measured``, its initrd and its system measure the phases of the boot into PCR 11.
    """
    authorized = keys().ssh.with_suffix(".pub").read_text()
    recipe = digest(suite, MIRROR, IMAGE, APT_OPTIONS, MASKED, OVERLAY, authorized)
    what = f"the tree of the base image ({suite})"
    tree = cached(what, variant("base", suite), recipe, lambda at: _base(at, suite, authorized))
    packages = [*more, *(MEASURING[suite] if measured else ())]
    if not packages and not measured:
        return tree
    what = f"the tree of the base image with more packages ({suite})"
    name, recipe = variant("base", suite, "more"), digest(tree.name, packages, *([INITRD_WITHOUT] if measured else []))
    return cached(what, name, recipe, lambda at: _add(tree, packages, at, measured))


def variant(name: str, *words: str) -> str:
    """Return a name of what is built: a variant is named by its words, except by what is asked for by default."""
    return "-".join([*(word for word in words if word and word != SUITE), name])


def copy_tree(source: Path, target: Path) -> None:
    """Copy a tree with owners, modes, links and attributes; replace the target."""
    remove(target)
    # A cache may be a link to a tree elsewhere: it is the tree that is copied, or the copy would be the original.
    run(["cp", "-a", "--reflink=auto", source.resolve(), target])


def tool(program: str) -> list[Union[str, Path]]:
    """Return the words that run a program of the tree of tools on the host's own files, with the tree's libraries."""
    tree = tools_tree()
    libraries = f"{tree / LIBRARIES}:{tree / LIBRARIES}/swtpm"
    loader: list[Union[str, Path]] = [tree / "lib64/ld-linux-x86-64.so.2", "--library-path", libraries]
    return [*loader, "--argv0", program, tree / "usr/bin" / program]


def run_in(tree: Path, argv: Sequence[Union[str, Path]], work: Optional[Path] = None) -> str:
    """Run a program of a tree, rooted there; ``work`` is a folder that it sees as ``/mnt``."""
    mounts = "mount -t proc proc proc && mount --rbind /dev dev"
    if work is not None:
        mounts += f" && mount --bind '{work}' mnt"
    script = f'cd "$0" && {mounts} && exec chroot . "$@"'
    return run(["unshare", "--mount", "--propagation", "private", "sh", "-c", script, tree, *argv])


def _base(tree: Path, suite: str, authorized: str) -> None:
    _debian(tree, IMAGE, suite)
    for key in (tree / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    (tree / "etc/machine-id").write_text("")
    run(["cp", "-r", "--no-preserve=mode", f"{OVERLAY}/.", tree])
    ssh = tree / "root/.ssh"
    ssh.mkdir(mode=0o700, exist_ok=True)
    (ssh / "authorized_keys").write_text(authorized)
    run_in(tree, ["systemctl", "enable", "systemd-networkd.service", "ssh-host-key.service"])
    run_in(tree, ["systemctl", "mask", *MASKED])


def _add(source: Path, packages: Iterable[str], tree: Path, measured: bool) -> None:
    """Install packages into a copy of a tree. The initrd finds the root as it is; only a measured boot needs more."""
    copy_tree(source, tree)
    options = [word for option in APT_OPTIONS for word in ("-o", option.replace(" ", "=").replace('"', ""))]
    apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", *options]
    with names_resolved(tree), _without(tree, INITRD_HOOKS):
        run_in(tree, [*apt, "update"])
        run_in(tree, [*apt, "install", "--yes", *packages])
        run_in(tree, [*apt, "clean"])
    if measured:
        for initrd in (tree / "boot").glob("initrd.img-*"):
            version = initrd.name.removeprefix("initrd.img-")
            run_in(tree, ["dracut", "--force", "--quiet", "--omit", INITRD_WITHOUT, f"/boot/{initrd.name}", version])


@contextmanager
def _without(tree: Path, programs: Iterable[str]) -> Iterator[None]:
    """Let those programs of a tree do nothing, where it has them."""
    kept = [(tree / name, (tree / name).with_suffix(".kept")) for name in programs if (tree / name).exists()]
    for program, aside in kept:
        program.rename(aside)
        program.symlink_to("/bin/true")
    try:
        yield
    finally:
        for program, aside in kept:
            program.unlink()
            aside.rename(program)


@contextmanager
def names_resolved(tree: Path) -> Iterator[None]:
    """Let programs of a tree resolve host names as this machine does."""
    resolver = tree / "etc/resolv.conf"
    link = resolver.readlink()
    resolver.unlink()
    shutil.copy("/etc/resolv.conf", resolver)
    try:
        yield
    finally:
        resolver.unlink()
        resolver.symlink_to(link)


def _debian(tree: Path, packages: Iterable[str], suite: str = SUITE, kind: str = "apt") -> None:
    # In a mount namespace of its own: what an interrupted run left mounted (this machine's /dev) would be in the tree.
    run(
        [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "mmdebstrap",
            "--quiet",
            "--mode=root",
            f"--variant={kind}",
            f"--include={','.join(packages)}",
        ]
        + [f"--aptopt={option}" for option in APT_OPTIONS]
        + [suite, str(tree), MIRROR]
    )
