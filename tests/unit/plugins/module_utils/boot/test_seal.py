# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole image is sealed with the real tools, judged by the programs of others, and left alone the second time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Iterator

import jsonschema
import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent.capability import MODULES
from ansible_collections.cvm.fde.plugins.module_utils.agent.configuration import Strategy
from ansible_collections.cvm.fde.plugins.module_utils.boot import manifest as manifests
from ansible_collections.cvm.fde.plugins.module_utils.boot.seal import Result, seal
from ansible_collections.cvm.fde.plugins.module_utils.boot.seal_plan import Action, Request
from ansible_collections.cvm.fde.plugins.module_utils.boot.secure_boot import Variable, read_der, read_variables
from ansible_collections.cvm.fde.plugins.module_utils.boot.tools import STUB, File, Tools, open_tools
from ansible_collections.cvm.fde.plugins.module_utils.disk import gpt
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.runner import Runner

SCHEMA = Path(__file__).resolve().parents[5] / "docs/schema/manifest.schema.json"
TREE = os.environ.get("FDE_TOOLS_TREE")
pytestmark = pytest.mark.skipif(
    TREE is None or shutil.which("bwrap") is None,
    reason="FDE_TOOLS_TREE does not name a tools tree with systemd >= 258, or bwrap is not installed",
)
MIB = gpt.MIB
OWNER = "4f1a3c42-6f3b-4b0e-9d6a-0f1c2a7d5e11"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("keys")
    subprocess.run(["openssl", "genrsa", "-out", where / "pcr.key", "2048"], check=True, capture_output=True)
    subprocess.run(
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", where / "manifest.key"], check=True
    )
    arguments = [
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=db",
        "-keyout",
        where / "db.key",
        "-out",
        where / "db.crt",
    ]
    subprocess.run(["openssl", "req", "-new", "-x509", *arguments], check=True, capture_output=True)
    return where


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with an ESP and a small root; its kernel is another EFI program, which the builder cannot tell."""
    where = tmp_path_factory.mktemp("prepared")
    tree = where / "tree"
    for directory in ("boot", "etc/ssh", "usr/lib", "usr/sbin", "var/log", "lost+found"):
        (tree / directory).mkdir(parents=True)
    shutil.copy(os.path.join(TREE or "/", STUB), tree / "boot/vmlinuz-7.2-test")
    (tree / "boot/initrd.img-7.2-test").write_bytes(b"initrd" * 1000)
    (tree / "usr/lib/os-release").write_text("ID=test\n")
    modules = "".join(f"kernel/{name}.ko.xz:\n" for name in MODULES[Strategy.CLONE])
    for path, content in (("modules/7.2-test/modules.dep", modules), ("cvm-fde/strategy", "clone\n")):
        (tree / "usr/lib" / path).parent.mkdir(parents=True)
        (tree / "usr/lib" / path).write_text(content)
    (tree / "usr/sbin/sshd").write_text("")
    (tree / "etc/machine-id").write_text("0" * 32 + "\n")
    (tree / "etc/ssh/ssh_host_rsa_key").write_text("PRIVATE HOST KEY")
    (tree / "var/log/syslog").write_text("log")
    root = where / "root"
    with root.open("wb") as file:
        file.truncate(24 * MIB)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-b", "4096", "-d", tree, root], check=True)
    partitions = (
        gpt.Partition(1, gpt.ESP, uuid.uuid4(), MIB, 2 * MIB),
        gpt.Partition(2, gpt.LINUX_GENERIC, uuid.uuid4(), 3 * MIB, 24 * MIB),
    )
    image = where / "prepared.raw"
    with image.open("wb") as file:
        file.truncate(28 * MIB)
        file.seek(3 * MIB)
        file.write(root.read_bytes())
        for offset, data in gpt.encode_table(gpt.new_table(uuid.uuid4(), 28 * MIB, partitions)):
            file.seek(offset)
            file.write(data)
    return image


@pytest.fixture
def tools(direct_runner: Runner) -> Tools:
    return open_tools(direct_runner, TREE)


@pytest.fixture
def request_(tmp_path: Path, prepared: Path, keys: Path, tools: Tools) -> Request:
    pem = (keys / "db.crt").read_bytes()
    names = (Variable.PK, Variable.KEK, Variable.DB)
    return Request(
        src=str(prepared),
        dest=str(tmp_path / "out/sealed.raw"),
        name="sealed",
        manifest=str(tmp_path / "out/manifest.json"),
        manifest_key=str(keys / "manifest.key"),
        pcr_private_key=str(keys / "pcr.key"),
        pcr_public_key=manifests.public_key(tools, str(keys / "pcr.key")),
        secure_boot_key=str(keys / "db.key"),
        secure_boot_certificate=str(keys / "db.crt"),
        certificate=read_der(pem, "CERTIFICATE", "db.crt"),
        variables=read_variables([(variable, OWNER, "db.crt", pem) for variable in names]),
        esp_size=64 * MIB,
    )


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "out"
    where.mkdir()
    yield where
    assert not [path for path in where.iterdir() if path.name.startswith(".") or path.suffix == ".partial"]


def run(tools: Tools, request: Request, check_mode: bool = False) -> Result:
    return seal(tools, request, os.path.dirname(request.dest), check_mode)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_check_mode_writes_nothing_and_says_what_would_be_done(tools: Tools, request_: Request, out: Path) -> None:
    result = run(tools, request_, check_mode=True)
    assert result.plan.action is Action.SEAL
    assert result.plan.steps
    assert list(out.iterdir()) == []


def test_a_sealed_image_stands_up_to_the_programs_of_others(
    tools: Tools, request_: Request, out: Path, prepared: Path, keys: Path, tmp_path: Path
) -> None:
    before = digest(prepared)
    result = run(tools, request_)
    assert digest(prepared) == before, "the input was changed"
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "manifest.json.sig", "sealed.raw"]
    document = json.loads((out / "manifest.json").read_text())
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    assert document["root"]["hash"] == result.root_hash

    image = (out / "sealed.raw").read_bytes()
    with (out / "sealed.raw").open("rb") as disk:
        esp, root, hashes = gpt.read_table(disk, len(image), "sealed").partitions
    (tmp_path / "root").write_bytes(image[root.offset : root.end])
    (tmp_path / "hashes").write_bytes(image[hashes.offset : hashes.end])
    data, tree = File(str(tmp_path / "root")), File(str(tmp_path / "hashes"))
    tools.run(["veritysetup", "verify", data, tree, result.root_hash])
    assert f"{root.id.hex}{hashes.id.hex}" == result.root_hash
    assert b"PRIVATE HOST KEY" not in image
    for secret in keys.glob("*.key"):
        assert b"".join(secret.read_bytes().splitlines()[1:3]) not in image.replace(b"\n", b"")

    uki = tmp_path / "uki.efi"
    disk_file = File(str(out / "sealed.raw"), suffix=f"@@{esp.offset}")
    tools.run(["mcopy", "-i", disk_file, "::/EFI/BOOT/BOOTX64.EFI", File(str(uki), writable=True)])
    tools.run(["sbverify", "--cert", File(str(keys / "db.crt")), File(str(uki))])
    assert digest(uki) == document["uki"]["sha256"]
    public = tmp_path / "manifest.pub"
    public.write_bytes(manifests.public_key(tools, str(keys / "manifest.key")))
    verify = ["openssl", "dgst", "-sha256", "-verify", public, "-signature", out / "manifest.json.sig"]
    subprocess.run([*verify, out / "manifest.json"], check=True)


def test_sealing_again_changes_nothing_and_sealing_anew_gives_the_same_root_hash(
    tools: Tools, request_: Request, out: Path
) -> None:
    first = run(tools, request_)
    written = {path: (digest(path), path.stat().st_mtime_ns) for path in out.iterdir()}
    again = run(tools, request_)
    assert again.plan.action is Action.NOTHING
    assert again.root_hash == first.root_hash
    assert {path: (digest(path), path.stat().st_mtime_ns) for path in out.iterdir()} == written
    of_sealed = run(tools, replace(request_, src=request_.dest, dest=str(out / "other.raw")))
    assert of_sealed.plan.action is Action.NOTHING
    assert not (out / "other.raw").exists()

    (out / "manifest.json").write_bytes((out / "manifest.json").read_bytes() + b" ")
    assert run(tools, request_).plan.action is Action.MANIFEST
    assert digest(out / "manifest.json") == written[out / "manifest.json"][0]

    (out / "sealed.raw").unlink()
    assert run(tools, request_).root_hash == first.root_hash


def test_in_place_replaces_the_input(tools: Tools, request_: Request, out: Path, prepared: Path) -> None:
    image = out / "image.raw"
    shutil.copy(prepared, image)
    wanted = replace(request_, src=str(image), dest=str(image), in_place=True)
    assert run(tools, wanted).plan.action is Action.SEAL
    assert run(tools, wanted).plan.action is Action.NOTHING


@pytest.mark.parametrize("damage", ["dirty", "truncated", "foreign output"])
def test_wrong_input_is_refused_and_nothing_is_written(
    tools: Tools, request_: Request, out: Path, prepared: Path, tmp_path: Path, damage: str
) -> None:
    image = tmp_path / "image.raw"
    content = bytearray(prepared.read_bytes())
    if damage == "dirty":
        content[3 * MIB + 1024 + 0x3A] = 0
    if damage == "truncated":
        del content[20 * MIB :]
    image.write_bytes(content)
    before = {}
    if damage == "foreign output":
        (out / "sealed.raw").write_bytes(b"something precious")
        before = {"sealed.raw": b"something precious"}
    with pytest.raises(FdeError):
        run(tools, replace(request_, src=str(image)))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_signer_that_is_not_in_db_is_refused_before_anything_is_written(
    tools: Tools, request_: Request, out: Path
) -> None:
    with pytest.raises(FdeError, match="db does not hold the signing certificate"):
        run(tools, replace(request_, variables={Variable.DB: b""}))
    assert list(out.iterdir()) == []
