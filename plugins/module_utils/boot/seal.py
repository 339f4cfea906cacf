# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn a prepared image into a sealed one: look at it, decide, build the parts, put them together.

Nothing is written outside a scratch directory before all parts are there and checked; the output appears by one rename.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Iterator, Optional

from ..agent.capability import STRATEGY_FILE
from ..disk import ext4, file_system, gpt, sparse
from ..disk.clean import plan_clean
from ..disk.esp import make_esp
from ..disk.usage import use_of
from ..errors import FdeError
from ..verity.hash_tree import format_tree, verify_tree
from . import manifest as manifests
from .command_line import command_line
from .seal_plan import (
    PROGRAMS,
    Action,
    Output,
    Plan,
    Request,
    Room,
    Source,
    check_file_system,
    check_programs,
    choose_kernel,
    choose_root,
    plan,
    wanted_superblock,
)
from .sealed_image import Layout, SealedImage, lay_out, read_sealed
from .tools import STUB, File, Tools
from .uki import Inputs, Uki, build, check, parse_uki

OS_RELEASE = ("/usr/lib/os-release", "/etc/os-release")


@dataclass(frozen=True)
class Step:
    """A step that was taken; ``seconds`` it took."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Probe:
    """Everything that the decision depends on. ``source`` is None when the input is a sealed image."""

    source: Optional[Source]
    sealed_source: Optional[SealedImage]
    output: Output
    room: Room


@dataclass(frozen=True)
class Result:
    """What was decided and done; facts of the sealed image where there is one."""

    plan: Plan
    steps: tuple[Step, ...]
    root_hash: str = ""
    sizes: tuple[tuple[str, int], ...] = ()


def seal(tools: Tools, request: Request, work_dir: str, check_mode: bool = False) -> Result:
    """Seal an image, or say that it is sealed. ``work_dir`` holds the parts meanwhile. Raises ``FdeError``."""
    with _scratch(work_dir) as scratch:
        found = probe(tools, request, work_dir, scratch)
        decision = plan(request, found.source, found.output, found.room)
        known = found.sealed_source or (found.output.sealed if decision.action is not Action.SEAL else None)
        result = Result(decision, (), *_describe(known))
        if check_mode or decision.action is Action.NOTHING:
            return result
        if decision.action is Action.MANIFEST:
            write_manifest(tools, request, found.output.expected_manifest, scratch)
            return result
        if found.source is None:
            raise ValueError("a plan to seal names a source")
        return Builder(tools, request, found.source, scratch).build(decision)


def _describe(sealed: Optional[SealedImage]) -> tuple[str, tuple[tuple[str, int], ...]]:
    if sealed is None:
        return "", ()
    sizes = {"root": sealed.root.size, "verity": sealed.verity.size, "uki": len(sealed.uki.image.content)}
    return sealed.root_hash.hex(), tuple(sizes.items())


@contextmanager
def _scratch(work_dir: str) -> Iterator[str]:
    """Give a private directory that is removed with everything in it."""
    if not os.path.isdir(work_dir):
        raise FdeError(work_dir, "this directory does not exist", "Create it, or name another one")
    path = tempfile.mkdtemp(prefix=".fde-seal-", dir=work_dir)
    try:
        yield path
    finally:
        shutil.rmtree(path)


# Probe


def probe(tools: Tools, request: Request, work_dir: str, scratch: str) -> Probe:
    """Look at tools, input and output. Raises ``FdeError`` for an input that cannot be sealed."""
    version = _ukify_version(tools)
    missing = [program for program in (*PROGRAMS, request.sign_tool.value) if not tools.has(program)]
    check_programs(missing, version, os.path.isfile(tools.resource(STUB)))
    size = _size(request.src)[0]
    used = use_of(request.src)
    if used is not None:
        raise FdeError(request.src, f"it is in use: {used}", "Unmount it and detach what is set up on it")
    sealed_source = read_sealed(tools, request.src, size, scratch)
    source = None if sealed_source is not None else probe_source(tools, request, size)
    output = _probe_output(tools, request, source, scratch)
    return Probe(source, sealed_source, output, _probe_room(request.dest, work_dir))


def _probe_room(dest: str, work_dir: str) -> Room:
    directory = os.path.dirname(os.path.abspath(dest))
    if not os.path.isdir(directory):
        raise FdeError(directory, "this directory does not exist", "Create it, or name another one")
    other = _device_size(dest) is None and os.stat(directory).st_dev != os.stat(work_dir).st_dev
    return Room(_free(work_dir), _free(directory) if other else None)


def _free(directory: str) -> int:
    room = os.statvfs(directory)
    return room.f_bavail * room.f_frsize


def _ukify_version(tools: Tools) -> int:
    if not tools.has("ukify"):
        return 0
    found = re.search(rb"\d+", tools.run(["ukify", "--version"]).stdout)
    return int(found.group()) if found else 0


def _size(path: str) -> tuple[int, bool]:
    """Return the size of a file or block device and whether it is a device."""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise FdeError(path, "it is neither a file nor a block device", "Name a raw disk image or a whole disk")
        with open(path, "rb") as disk:
            return disk.seek(0, os.SEEK_END), stat.S_ISBLK(mode)
    except OSError as error:
        raise FdeError(path, f"it cannot be read: {error.strerror}", "Name a raw disk image or a whole disk") from error


def probe_source(tools: Tools, request: Request, size: int) -> Source:
    """Look at an image that is to be sealed. Raises ``FdeError`` when it cannot be."""
    with open(request.src, "rb") as disk:
        table = gpt.read_table(disk, size, request.src)
        root = choose_root(table, request.src)
        disk.seek(root.offset)
        start = disk.read(min(file_system.PROBE_SIZE, root.size))
        found = check_file_system(file_system.identify(start), root, request.src)
        content = _content(disk.fileno(), root, found.size, request.src)
    files = ext4.Ext4Files(tools, request.src, root.offset)
    if not files.list("/"):
        raise FdeError(
            request.src, "debugfs cannot read the root's files", "Use the e2fsprogs of the image's distribution"
        )
    os_release = next((path for path in OS_RELEASE if _is_file(files, path)), None)
    if os_release is None:
        raise FdeError(
            request.src, "the root has no /usr/lib/os-release", "Use an image with an operating system in it"
        )
    kernel = choose_kernel(files.list("/boot"), request.kernel, request.src)
    modules = f"/usr/lib/modules/{kernel.version}/modules"
    return Source(
        root=root,
        file_system=found,
        root_content=content,
        kernel=kernel,
        strategy=files.read(STRATEGY_FILE).decode("ascii", "replace").strip(),
        modules=b"".join(files.read(f"{modules}.{name}") for name in ("dep", "builtin")).decode("ascii", "replace"),
        os_release=os_release,
        clean=plan_clean(files),
        sector_size=table.sector_size,
    )


def _content(fd: int, root: gpt.Partition, size: int, subject: str) -> sparse.Content:
    try:
        return sparse.read_content(fd, root.offset, size)
    except EOFError as error:
        raise FdeError(subject, f"it is truncated: {error}", "Copy the image again") from error


def _is_file(files: ext4.Ext4Files, path: str) -> bool:
    entry = files.list(os.path.dirname(path)).get(os.path.basename(path))
    return entry is not None and entry.is_file


def _probe_output(tools: Tools, request: Request, source: Optional[Source], scratch: str) -> Output:
    nothing = Output(False, None, b"", b"", _device_size(request.dest))
    if request.in_place or source is None or not os.path.exists(request.dest):
        return nothing
    if os.path.samefile(request.src, request.dest):
        raise FdeError(request.dest, "it is the input too", "Name another file, or set 'in_place'")
    used = use_of(request.dest)
    if used is not None:
        raise FdeError(request.dest, f"it is in use: {used}", "Unmount it and detach what is set up on it")
    sealed = read_sealed(tools, request.dest, _size(request.dest)[0], scratch)
    if sealed is None:
        return replace(nothing, exists=True)
    expected = b""
    if request.certificate in b"".join(sealed.uki.image.certificates):
        expected = manifests.encode(manifests.manifest(_facts(request, source, sealed)))
    signed = manifests.is_signed_by(tools, request.manifest, f"{request.manifest}.sig", request.manifest_key, scratch)
    return Output(True, sealed, _read(request.manifest) if signed else b"", expected, nothing.device_size)


def _device_size(path: str) -> Optional[int]:
    """Return the size of a block device, None for a file or for what does not exist."""
    if not os.path.exists(path):
        return None
    size, is_device = _size(path)
    return size if is_device else None


def _facts(request: Request, source: Source, sealed: SealedImage) -> manifests.Facts:
    return manifests.Facts(
        name=request.name,
        root_hash=sealed.root_hash,
        root_partition=str(sealed.root.id),
        file_system=source.file_system.type,
        root_size=sealed.root.size,
        verity=sealed.superblock,
        verity_partition=str(sealed.verity.id),
        verity_size=sealed.verity.size,
        uki=sealed.uki,
        certificate=request.certificate,
        variables=request.variables,
        choices=request.choices,
    )


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


# Apply


class Builder:
    """Builds the parts of one sealed image in a scratch directory and puts them together."""

    def __init__(self, tools: Tools, request: Request, source: Source, scratch: str) -> None:
        self._tools = tools
        self._request = request
        self._source = source
        self._scratch = scratch
        self._steps: list[Step] = []

    def build(self, decision: Plan) -> Result:
        """Carry the plan out."""
        with self._step("copy the root file system"):
            self._copy_root()
        with self._step("clean the root file system"):
            self._clean_root()
        with self._step("compute the hash tree"):
            superblock = wanted_superblock(self._source)
            root_hash = format_tree(self._tools, self._path("root"), self._path("verity"), superblock)
        with self._step("verify the root against its hash tree"):
            verify_tree(self._tools, self._path("root"), self._path("verity"), root_hash)
        with self._step("build and sign the kernel image"):
            uki = self._build_uki(root_hash)
        sizes = superblock.data_size, superblock.area_size
        sector = self._source.sector_size
        layout = lay_out(self._request.esp_size, *sizes, root_hash, _device_size(self._request.dest), sector)
        sealed = SealedImage(root_hash, layout.root, layout.verity, superblock, uki, sector)
        document = manifests.encode(manifests.manifest(_facts(self._request, self._source, sealed)))
        with self._step("make the EFI system partition"):
            self._make_esp(layout, root_hash)
        with self._step("put the disk together"):
            self._assemble(layout)
        with self._step("check the sealed image"):
            self._check(sealed, layout)
        with self._step("write and sign the manifest"):
            write_manifest(self._tools, self._request, document, self._scratch)
        with self._step(f"write {self._request.dest}"):
            self._finish()
        described, parts = _describe(sealed)
        return Result(decision, tuple(self._steps), described, (*parts, ("image", layout.disk_size)))

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self._steps.append(Step(name, round(time.monotonic() - begin, 2)))

    def _path(self, name: str) -> str:
        return os.path.join(self._scratch, name)

    @property
    def _now(self) -> int:
        """The time that everything new gets: that of the input, so that the result depends on the input alone."""
        return self._source.file_system.written

    def _copy_root(self) -> None:
        source = self._source
        with open(self._request.src, "rb") as disk, open(self._path("root"), "wb") as root:
            root.truncate(wanted_superblock(source).data_size)
            copied = sparse.copy(disk.fileno(), source.root.offset, source.file_system.size, root.fileno(), 0)
        if copied != source.root_content:
            raise FdeError(self._request.src, "it changed while it was being sealed", "Stop what writes to it")

    def _clean_root(self) -> None:
        root = self._path("root")
        ext4.Ext4Files(self._tools, root, subject=self._request.src).apply(self._source.clean, self._now, self._scratch)
        env = {"E2FSPROGS_FAKE_TIME": str(self._now), "E2FSCK_TIME": str(self._now)}
        # Status 1: errors were corrected, among them what debugfs leaves for e2fsck to tidy up.
        self._tools.run(["e2fsck", "-f", "-p", "-E", "discard", File(root, writable=True)], env=env, ok=(0, 1))
        self._tools.run(["e2fsck", "-f", "-n", File(root)], env=env)

    def _build_uki(self, root_hash: bytes) -> Uki:
        files = ext4.Ext4Files(self._tools, self._path("root"), subject=self._request.src)
        kernel = self._source.kernel
        for path, name in ((kernel.path, "linux"), (kernel.initrd, "initrd"), (self._source.os_release, "os-release")):
            files.extract(path, self._path(name))
        with open(self._path("pcr-public-key.pem"), "wb") as file:
            file.write(self._request.pcr_public_key)
        inputs = Inputs(
            kernel=self._path("linux"),
            initrd=self._path("initrd"),
            os_release=self._path("os-release"),
            kernel_version=kernel.version,
            command_line=command_line(root_hash.hex(), self._request.choices, self._request.command_line),
            pcr_private_key=self._request.pcr_private_key,
            pcr_public_key=self._path("pcr-public-key.pem"),
            secure_boot_key=self._request.secure_boot_key,
            secure_boot_certificate=self._request.secure_boot_certificate,
            sign_tool=self._request.sign_tool,
        )
        build(self._tools, inputs, self._path("uki.efi"))
        uki = parse_uki(_read(self._path("uki.efi")), "the new kernel image")
        check(uki, self._request.certificate)
        return uki

    def _make_esp(self, layout: Layout, root_hash: bytes) -> None:
        volume_id = int.from_bytes(layout.esp.id.bytes[:4], "big")
        uki = self._path("uki.efi")
        place = self._path("esp"), layout.esp.size, volume_id
        make_esp(self._tools, *place, uki, manifests.UKI_PATH, self._now, layout.sector_size)

    def _assemble(self, layout: Layout) -> None:
        with open(self._path("disk"), "wb") as disk:
            disk.truncate(layout.disk_size)
            for name, partition in (("esp", layout.esp), ("root", layout.root), ("verity", layout.verity)):
                with open(self._path(name), "rb") as part:
                    sparse.copy(part.fileno(), 0, partition.size, disk.fileno(), partition.offset)
                os.unlink(self._path(name))
            for offset, data in gpt.encode_table(layout.table):
                os.pwrite(disk.fileno(), data, offset)
            os.fsync(disk.fileno())

    def _check(self, sealed: SealedImage, layout: Layout) -> None:
        if read_sealed(self._tools, self._path("disk"), layout.disk_size, self._scratch) != sealed:
            raise FdeError(
                self._request.dest,
                "the new image does not read back as it was written",
                "Check the disk of the builder",
            )

    def _finish(self) -> None:
        dest = self._request.dest
        if _device_size(dest) is not None:
            with open(self._path("disk"), "rb") as disk, open(os.open(dest, os.O_WRONLY | os.O_EXCL), "wb") as device:
                sparse.overwrite(disk.fileno(), os.path.getsize(self._path("disk")), device.fileno())
                os.fsync(device.fileno())
            return
        publish(self._path("disk"), dest)


def write_manifest(tools: Tools, request: Request, document: bytes, scratch: str) -> None:
    """Write the manifest and its signature, each by a rename."""
    path = os.path.join(scratch, "manifest.json")
    with open(path, "wb") as file:
        file.write(document)
    manifests.sign(tools, path, request.manifest_key, f"{path}.sig")
    publish(f"{path}.sig", f"{request.manifest}.sig")
    publish(path, request.manifest)


def publish(path: str, target: str) -> None:
    """Put a finished file in its place for good: on disk first, then under its name."""
    partial = f"{target}.partial"
    try:
        os.replace(path, partial)
    except OSError:  # another file system
        _copy_file(path, partial)
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    mode = stat.S_IMODE(os.stat(target).st_mode) if os.path.exists(target) else 0o644
    os.chmod(partial, mode)
    os.replace(partial, target)
    directory = os.open(os.path.dirname(os.path.abspath(target)), os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _copy_file(path: str, target: str) -> None:
    size = os.path.getsize(path)
    with open(path, "rb") as source, open(target, "wb") as copy:
        copy.truncate(size)
        sparse.copy(source.fileno(), 0, size, copy.fileno(), 0)


def difference(request: Request, result: Result) -> dict[str, Any]:
    """Return what an Ansible diff shows: what the destination is before and after."""
    after = "\n".join(f"{number}. {step}" for number, step in enumerate(result.plan.steps, 1))
    return {
        "before_header": request.dest,
        "after_header": request.dest,
        "before": f"{result.plan.reason}\n",
        "after": f"{after}\n" if after else f"{result.plan.reason}\n",
    }


__all__ = ["Builder", "Probe", "Result", "Step", "difference", "probe", "publish", "seal", "write_manifest"]
