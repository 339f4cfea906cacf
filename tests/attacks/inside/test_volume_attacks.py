# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attacks on the encrypted volume itself: its header, and what is in its sectors."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import anchoring, commit, hydration, upkeep
from ansible_collections.cvm.fde.plugins.module_utils.agent.boot import boot
from ansible_collections.cvm.fde.plugins.module_utils.agent.decision import Action
from ansible_collections.cvm.fde.plugins.module_utils.agent.hydration import Ears
from ansible_collections.cvm.fde.plugins.module_utils.disk import gpt
from ansible_collections.cvm.fde.plugins.module_utils.dm import clone, written
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError, Refusal
from ansible_collections.cvm.fde.plugins.module_utils.luks2.area import read_area
from ansible_collections.cvm.fde.plugins.module_utils.luks2.change import Draft
from ansible_collections.cvm.fde.plugins.module_utils.tpm.anchor import State
from ansible_collections.cvm.fde.tests.attacks.catalogue import Kind, attack
from cryptography.hazmat.primitives.asymmetric import rsa
from host import (
    BLOCK,
    FORGER,
    Places,
    ciphertext,
    edit_header,
    exchange_volumes,
    find,
    flip,
    header,
    make_volume,
    partition,
    put_header,
    read,
    root_block,
    root_start,
)
from instance import PLAINTEXT, ROOT_SIZE, USED, Lab, change, make_lab, mounted, refused, run

STATE = "tpm2-00.permall"
#: Two blocks of the root that are in the volume.
ONE, OTHER = USED


@attack(
    kind=Kind.NULL_CIPHER,
    does="Flips one bit anywhere in the header area",
    promise="The volume is opened from the anchored header or not at all",
    stops="The digest covers both copies and all keyslots: refused, `header-mismatch`",
)
@pytest.mark.parametrize("offset", [0, 4096, 256 << 10, (256 << 10) + 4096 + 100, 1 << 20, (8 << 20) - 1])
def test_a_changed_byte_of_the_header_area_is_refused(installed: Lab, offset: int) -> None:
    change(installed, offset)
    assert refused(installed) == "header-mismatch"


@attack(
    kind=Kind.EVIL_TWIN,
    does="Formats the partition anew with a key that it knows, sealed to the machine's TPM under the image's policy",
    promise="What the machine writes goes into the volume that it made",
    stops="The anchor has the digest of the header that the machine made: refused, `header-mismatch`",
)
def test_a_volume_of_somebody_else_sealed_to_the_same_tpm_is_refused(installed: Lab) -> None:
    make_volume(installed)
    assert refused(installed) == "header-mismatch"


@pytest.fixture(scope="module")
def neighbour_once(
    tmp_path_factory: pytest.TempPathFactory, sealed: tuple[Path, str], signer: rsa.RSAPrivateKey
) -> Path:
    """The directory of another instance of the same image, after its first boot."""
    directory = tmp_path_factory.mktemp("neighbour")
    instance = make_lab(directory, sealed, signer)
    with instance.booting() as machine:
        assert boot(machine) is Action.FIRST_BOOT
    return directory


@pytest.fixture
def neighbour(
    neighbour_once: Path, tmp_path_factory: pytest.TempPathFactory, sealed: tuple[Path, str], signer: rsa.RSAPrivateKey
) -> Iterator[Lab]:
    """Another instance of the same image, for one test."""
    instance = make_lab(tmp_path_factory.mktemp("neighbour"), sealed, signer)
    for file in ("disk", STATE):
        run("cp", "--sparse=always", str(neighbour_once / file), str(instance.directory / file))
    yield instance
    instance.image.unlink()


@pytest.fixture(scope="module")
def places(
    installed_once: Path, tmp_path_factory: pytest.TempPathFactory, sealed: tuple[Path, str], signer: rsa.RSAPrivateKey
) -> Places:
    """Where the blocks of ``installed`` lie; found by booting a copy of it."""
    instance = make_lab(tmp_path_factory.mktemp("places"), sealed, signer)
    for file in ("disk", STATE):
        run("cp", "--sparse=always", str(installed_once / file), str(instance.directory / file))
    with instance.booting() as machine:
        boot(machine)
        start = root_start()
        one, other = ciphertext(start + ONE), ciphertext(start + OTHER)
    found = Places(find(instance, one) - (start + ONE) * BLOCK, start)
    assert find(instance, other) == found.data(start + OTHER)
    instance.image.unlink()
    return found


def strip(header: dict[str, Any]) -> None:
    """Make a header's data encrypted by nothing."""
    segment = header["segments"]["0"]
    segment["encryption"] = "cipher_null-ecb"
    del segment["integrity"]


@attack(
    kind=Kind.NULL_CIPHER,
    does="Sets the cipher of the data to `cipher_null-ecb` and takes the integrity away; the genuine keyslots stay",
    promise="Nothing is ever written to the disk in the clear",
    stops="The digest of the header: `header-mismatch`; where it is anchored, the allow-list: `luks2-policy`",
)
def test_a_header_that_encrypts_nothing_is_refused(installed: Lab) -> None:
    edit_header(installed, strip)
    assert refused(installed) == "header-mismatch"
    with installed.booting() as machine:
        anchoring.update(machine, lambda anchor: anchor.changing(read_area(installed.partition).digest))
        with pytest.raises(Refusal, match="null-cipher at segments.0.encryption") as caught:
            boot(machine)
        assert caught.value.code == "luks2-policy"
        assert machine.mapper.find("fde-crypt") is None


@attack(
    kind=Kind.OLD_HEADER,
    does="Puts back a genuine header whose recovery keyslot was removed since, because its key had leaked",
    promise="A keyslot that was removed stays removed",
    stops="The anchor has the digest of the present header: `rolled-back`, or `header-mismatch` if it is older",
)
def test_an_old_header_with_a_removed_keyslot_is_refused(installed: Lab) -> None:
    def add_key(copy: Draft) -> None:
        unlock = f"--unlock-tpm2-device={installed.tcti}"
        installed.machine.runner.run(["systemd-cryptenroll", unlock, "--recovery-key", copy.path])

    def remove_key(copy: Draft) -> None:
        installed.machine.runner.run(["systemd-cryptenroll", "--wipe-slot=recovery", copy.path])

    with installed.booting() as machine:
        boot(machine)
        installed.start_system()
        shutil.copyfile(machine.paths.signatures, "/run/systemd/tpm2-pcr-signature.json")
        commit.change(machine, add_key)
        leaked = read_area(installed.partition)
        commit.change(machine, remove_key)
    put_header(installed, leaked.content)
    assert refused(installed) == "rolled-back"


@attack(
    kind=Kind.SWAPPED,
    does="Exchanges the encrypted partitions of two instances of the same image and the same owner",
    promise="An instance opens its own volume only",
    stops="Each anchor has the digest of its own header: refused in both, `header-mismatch`",
)
def test_the_volumes_of_two_instances_exchanged_are_refused_by_both(installed: Lab, neighbour: Lab) -> None:
    exchange_volumes(installed, neighbour)
    assert (refused(installed), refused(neighbour)) == ("header-mismatch", "header-mismatch")


@attack(
    kind=Kind.OTHER_TPM,
    does="Starts the disk of one instance with the TPM of another",
    promise="An instance opens its own volume only",
    stops="The other TPM has an anchor, of another header: refused, `header-mismatch`",
)
def test_the_tpm_of_another_instance_is_refused(installed: Lab, neighbour: Lab) -> None:
    shutil.copyfile(neighbour.directory / STATE, installed.directory / STATE)
    assert refused(installed) == "header-mismatch"


@attack(
    kind=Kind.OTHER_TPM,
    does="Clears the TPM, or starts the disk with a new one",
    promise="A volume that the TPM does not know is not opened, and not replaced either",
    stops="Refused, `volume-without-anchor`",
)
def test_a_tpm_that_knows_nothing_is_refused(installed: Lab) -> None:
    (installed.directory / STATE).unlink()
    assert refused(installed) == "volume-without-anchor"


@attack(
    kind=Kind.EVIDENCE,
    does="Removes the evidence token from the header",
    promise="A volume whose making nobody vouches for is not opened",
    stops="The digest of the header: refused, `header-mismatch`",
)
def test_a_header_without_its_evidence_is_refused(installed: Lab) -> None:
    edit_header(installed, lambda header: header["tokens"].pop(evidence_token(header)))
    assert refused(installed) == "header-mismatch"


@attack(
    kind=Kind.EVIDENCE,
    does="Puts the evidence token of another instance into the header",
    promise="Evidence speaks of the volume that it lies in",
    stops="The digest of the header: refused, `header-mismatch`; at the verifier, the claims name another volume key",
)
def test_evidence_of_another_instance_in_the_header_is_refused(installed: Lab, neighbour: Lab) -> None:
    theirs = FORGER.metadata(header(neighbour))
    token = theirs["tokens"][evidence_token(theirs)]
    edit_header(installed, lambda mine: mine["tokens"].update({evidence_token(mine): token}))
    assert refused(installed) == "header-mismatch"


def evidence_token(metadata: dict[str, Any]) -> str:
    return next(number for number, token in metadata["tokens"].items() if token["type"] == "cvm-fde")


def flip_ciphertext(instance: Lab, places: Places) -> None:
    flip(instance, places.data(places.root + ONE) + 1000)


def flip_tag(instance: Lab, places: Places) -> None:
    flip(instance, places.tag(places.root + ONE) + 7)


def move(instance: Lab, places: Places) -> None:
    places.put(instance, places.root + ONE, places.sector(instance, places.root + OTHER))


def exchange(instance: Lab, places: Places) -> None:
    one, other = (places.sector(instance, places.root + block) for block in (ONE, OTHER))
    places.put(instance, places.root + ONE, other)
    places.put(instance, places.root + OTHER, one)


@attack(
    kind=Kind.CIPHERTEXT,
    does="Flips a bit of a sector or of its tag; moves a sector with its tag; exchanges two sectors with their tags",
    promise="What is read from the root is what was written there at some time, or an error",
    stops="`aes-xts-plain64` with `hmac(sha256)` over the sector and its number: the read fails",
)
@pytest.mark.parametrize(
    ("change_sector", "lost"),
    [(flip_ciphertext, {ONE}), (flip_tag, {ONE}), (move, {ONE}), (exchange, {ONE, OTHER})],
)
def test_a_changed_sector_is_an_error_and_not_other_data(
    installed: Lab, places: Places, change_sector: Callable[[Lab, Places], None], lost: set[int]
) -> None:
    change_sector(installed, places)
    with installed.booting() as machine:
        assert boot(machine) is Action.OPEN
        for block in (ONE, OTHER, ONE + 2):
            if block not in lost:
                assert len(root_block(block)) == BLOCK
                continue
            with pytest.raises(OSError, match="Input/output error"):
                root_block(block)


@attack(
    kind=Kind.CLONE_METADATA,
    does="Flips a bit in dm-clone's record of what was copied, to choose where the image's old content is read",
    promise="The host cannot forge that record",
    stops="The record lies inside of the authenticated volume and cannot be read: refused, `clone-metadata`",
)
@pytest.mark.parametrize("part", ["superblock", "root of the bits", "bits", "root of the space map"])
def test_a_changed_record_of_what_was_copied_is_not_used(installed: Lab, places: Places, part: str) -> None:
    with installed.booting() as machine:
        assert boot(machine) is Action.OPEN
        blocks = parts_of_record()
    flip(installed, places.data(written.SLICE * 512 // BLOCK + blocks[part]) + 100)
    with installed.booting() as machine:
        with pytest.raises(Refusal) as caught:
            boot(machine)
        assert caught.value.code == "clone-metadata"
        assert machine.mapper.find("fde-root") is None


def parts_of_record() -> dict[str, int]:
    """Return the blocks of dm-clone's record whose loss would hide what was copied, while the volume is open.

    Source: Linux drivers/md/dm-clone-metadata.c, superblock_disk; persistent-data/dm-space-map-common.h, disk_sm_root;
    persistent-data/dm-btree-internal.h, node_header: the values of a node stand behind 252 keys.
    """
    record = run("dd", "if=/dev/mapper/fde-clone-meta", f"bs={BLOCK}", "count=64", "iflag=direct", "status=none")
    [space], [root] = struct.unpack_from("<Q", record, 60), struct.unpack_from("<Q", record, 188)
    [bits] = struct.unpack_from("<Q", record, root * BLOCK + 32 + 252 * 8)
    return {"superblock": 0, "root of the bits": root, "bits": bits, "root of the space map": space}


@attack(
    kind=Kind.CLONE_METADATA,
    does="Puts dm-clone's record back as it was before everything was copied, to have the image's old content read",
    promise="A root of which everything was copied is read from the volume alone",
    stops="The anchor says that the volume is complete: the record is not read any more",
)
def test_an_older_record_of_what_was_copied_hides_nothing_of_a_complete_volume(installed: Lab, places: Places) -> None:
    length = clone.metadata_sectors(ROOT_SIZE // 512)
    record = range(written.SLICE * 512 // BLOCK, (written.SLICE + length) * 512 // BLOCK)
    older = [places.sector(installed, block) for block in record]
    ears = Ears(lambda _: None, lambda _: None)
    with installed.booting() as machine:
        assert boot(machine) is Action.OPEN
        with mounted() as root:
            (root / "plaintext").write_bytes(b"mine")
        hydration.hydrate(machine.mapper, ears, interval=0.1)
        hydration.settle(machine.mapper, ears)
        anchoring.mark_complete(machine)
    changed = {block: sector for block, sector in zip(record, older) if sector != places.sector(installed, block)}
    assert changed
    for block, sector in changed.items():
        places.put(installed, block, sector)
    with installed.booting() as machine:
        assert boot(machine) is Action.OPEN
        assert not clone.is_clone(machine.mapper)
        with mounted() as root:
            assert (root / "plaintext").read_bytes() == b"mine"


@attack(
    kind=Kind.CLONE_METADATA,
    does="Flips a bit in the record of how far the volume is written",
    promise="The host never chooses how much of the volume is the root",
    stops="The record lies inside of the authenticated volume: refused, `written-record`",
)
def test_a_changed_record_of_what_is_written_is_refused(installed: Lab, places: Places) -> None:
    flip(installed, places.data(0) + 20)
    assert refused(installed) == "written-record"


@attack(
    kind=Kind.CLONE_METADATA,
    does="Puts the record of how far the volume is written back as it was before the root grew",
    promise="A root that cannot be read as it is is not read, and nothing of it is written over",
    stops="The file system is longer than its device: it is not mounted",
)
def test_an_older_record_of_what_is_written_mounts_nothing(installed: Lab, places: Places) -> None:
    older = places.sector(installed, 0)
    with installed.booting() as machine:
        assert boot(machine) is Action.OPEN
        with mounted() as root:
            upkeep.finish(machine, Ears(lambda _: None, lambda _: None), str(root))
            (root / "kept").write_bytes(PLAINTEXT)
    newest = places.sector(installed, 0)
    places.put(installed, 0, older)
    with installed.booting() as machine:
        assert boot(machine) is Action.OPEN
        with pytest.raises(subprocess.CalledProcessError), mounted():
            pass
    places.put(installed, 0, newest)
    with installed.booting() as machine:
        assert boot(machine) is Action.OPEN
        with mounted() as root:
            assert (root / "kept").read_bytes() == PLAINTEXT


@attack(
    kind=Kind.VERITY,
    does="Changes a block of the image that was not copied yet",
    promise="What is read from the root is what was sealed, or an error",
    stops="dm-verity: the read fails, also that of the copying",
)
def test_a_changed_block_of_the_image_is_an_error_and_not_other_data(installed: Lab) -> None:
    flip(installed, read(installed, 0, partition(installed).offset).index(PLAINTEXT))
    with installed.booting() as machine:
        assert boot(machine) is Action.OPEN
        with mounted() as root, pytest.raises(OSError, match="Input/output error"):
            (root / "plaintext").read_bytes()


@attack(
    kind=Kind.VERITY,
    does="Changes a block of the image before a first boot copies it (`copy`)",
    promise="No volume is completed from an image that is not the sealed one",
    stops="dm-verity, which the copy is read from: the first boot ends, and the anchor says that there is no volume",
)
def test_a_changed_block_of_the_image_is_never_copied(
    tmp_path: Path, sealed: tuple[Path, str], signer: rsa.RSAPrivateKey
) -> None:
    lab = make_lab(tmp_path, sealed, signer, "copy")
    root = partition(lab, gpt.ROOT_X86_64)
    flip(lab, root.offset + read(lab, root.offset, root.size).index(PLAINTEXT))
    with lab.booting() as machine:
        with pytest.raises(FdeError, match="the verified image cannot be read: Input/output error"):
            boot(machine)
        assert lab.anchored().state is State.INITIALIZING
        assert machine.mapper.find("fde-root") is None


@attack(
    kind=Kind.VERITY,
    does="Changes the hash tree of the image",
    promise="No volume is completed from an image that is not the sealed one",
    stops="dm-verity: the root hash of the signed command line does not fit, and the first boot ends at the first read",
)
def test_on_a_changed_hash_tree_no_volume_is_completed(lab: Lab) -> None:
    # The hash block that the root hash covers: the first one behind the superblock.
    flip(lab, partition(lab, gpt.ROOT_VERITY_X86_64).offset + BLOCK)
    with lab.booting() as machine:
        with pytest.raises(FdeError, match="the verified image cannot be read: Input/output error"):
            boot(machine)
        # The volume was made, and counts for nothing.
        assert lab.anchored().state is State.INITIALIZING
