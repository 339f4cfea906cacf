# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same attacks on a volume as systemd makes and opens it by itself. Runs as root in the guest of stock.py.

The volume is as favourable as it comes: repart seals it under the signed PCR 11 policy of the image, whose key and
signatures lie where systemd looks for them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.cvm.fde.tests.unit.plugins.module_utils.luks2.conftest import Forger

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration/inside"))

from software_tpm import PolicyKey, Tpm

MIB = 1 << 20
START = MIB
SECRET = b"what the machine writes must not be readable on its disk ".ljust(4096, b".")
KNOWN = b"a passphrase that the attacker knows"
NAME = "stock"
SIGNATURES = Path("/run/systemd/tpm2-pcr-signature.json")
PUBLIC_KEY = Path("/run/systemd/tpm2-pcr-public-key.pem")
#: Where repart puts the data of a volume, and the size of one copy of its header.
DATA, HEADER = 16 * MIB, 16 << 10


class _Forger(Forger):
    size = HEADER


def run(*argv: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(argv, capture_output=True, **options)
    if check and done.returncode:
        raise AssertionError(f"{argv} ended with {done.returncode}: {done.stderr.decode()}")
    return done


@dataclass
class Stock:
    """A disk with one encrypted partition that systemd-repart made."""

    directory: Path
    tpm: Tpm

    @property
    def image(self) -> Path:
        return self.directory / "disk"

    def make(self) -> None:
        """Make the partition if there is none of its type, as every boot does."""
        definitions = self.directory / "repart.d"
        if not self.image.exists():
            definitions.mkdir()
            (definitions / "50-data.conf").write_text(
                # The guest's tmpfs has no attributes for AddValidateFS=.
                "[Partition]\nType=linux-generic\nEncrypt=tpm2\nFormat=ext4\nSizeMinBytes=64M\nAddValidateFS=no\n"
            )
            with self.image.open("wb") as disk:
                disk.truncate(96 * MIB)
            empty = "force"
        else:
            empty = "refuse"
        run(
            *("systemd-repart", "--dry-run=no", f"--empty={empty}", "--offline=yes", f"--definitions={definitions}"),
            *(f"--tpm2-device={self.tpm.tcti}", str(self.image)),
        )

    @contextlib.contextmanager
    def device(self) -> Iterator[str]:
        loop = run("losetup", "--find", "--show", f"--offset={START}", str(self.image)).stdout.decode().strip()
        try:
            yield loop
        finally:
            run("losetup", "--detach", loop)

    @contextlib.contextmanager
    def opened(self) -> Iterator[bool]:
        """Open the partition as crypttab would, and tell whether that worked."""
        with self.device() as device:
            options = f"tpm2-device={self.tpm.tcti},headless=yes"
            done = run("/usr/bin/systemd-cryptsetup", "attach", NAME, device, "-", options, check=False)
            try:
                yield done.returncode == 0
            finally:
                run("/usr/bin/systemd-cryptsetup", "detach", NAME, check=False)

    def write(self, offset: int, content: bytes) -> None:
        with self.image.open("r+b") as disk:
            disk.seek(START + offset)
            disk.write(content)

    def read(self, offset: int, size: int) -> bytes:
        with self.image.open("rb") as disk:
            disk.seek(START + offset)
            return disk.read(size)


def use(content: bytes = SECRET, at: int = 40 * MIB) -> None:
    """Write to the opened volume."""
    descriptor = os.open(f"/dev/mapper/{NAME}", os.O_WRONLY)
    os.pwrite(descriptor, content, at)
    os.fsync(descriptor)
    os.close(descriptor)


def content(size: int = len(SECRET), at: int = 40 * MIB) -> bytes:
    """Read from the opened volume."""
    descriptor = os.open(f"/dev/mapper/{NAME}", os.O_RDONLY)
    try:
        return os.pread(descriptor, size, at)
    finally:
        os.close(descriptor)


def attackers_volume(stock: Stock) -> None:
    """Make a volume whose passphrase is known, sealed to the machine's TPM under the image's policy, in its place."""
    evil = stock.directory / "evil"
    with evil.open("wb") as file:
        file.truncate(64 * MIB)
    key = stock.directory / "known"
    key.write_bytes(KNOWN)
    key.chmod(0o600)
    format_ = ["cryptsetup", "luksFormat", "--batch-mode", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"]
    run(*format_, str(evil), str(key))
    enrol = ["systemd-cryptenroll", f"--unlock-key-file={key}", f"--tpm2-device={stock.tpm.tcti}"]
    run(*enrol, f"--tpm2-public-key={PUBLIC_KEY}", "--tpm2-public-key-pcrs=11", "--tpm2-pcrs=", str(evil))
    stock.write(0, evil.read_bytes()[:DATA])


def known_key_reads(stock: Stock) -> bool:
    """Tell whether the attacker reads what the machine wrote."""
    with stock.device() as device:
        run("cryptsetup", "open", "--readonly", "--key-file=-", device, "known", input=KNOWN)
        try:
            return Path("/dev/mapper/known").read_bytes().find(SECRET) >= 0
        finally:
            run("cryptsetup", "close", "known")


def evil_twin(stock: Stock) -> tuple[bool, str]:
    attackers_volume(stock)
    with stock.opened() as done:
        if done:
            use()
    return done, "The attacker reads what the machine writes." if done and known_key_reads(stock) else ""


def pre_created(stock: Stock) -> tuple[bool, str]:
    attackers_volume(stock)
    stock.make()
    with stock.opened() as done:
        if done:
            use()
    return done, "repart adopts it by its type; the attacker reads what the machine writes." if done else ""


def null_cipher(stock: Stock) -> tuple[bool, str]:
    def strip(header: dict[str, Any]) -> None:
        header["segments"]["0"]["encryption"] = "cipher_null-ecb"

    stock.write(0, _Forger().edited(strip, stock.read(0, 2 * HEADER)))
    with stock.opened() as done:
        if done:
            use()
    clear = stock.image.read_bytes().find(SECRET) >= 0
    return done, "What the machine writes lies on the disk in the clear." if done and clear else ""


def old_header(stock: Stock) -> tuple[bool, str]:
    with stock.device() as device:
        recovery = run("systemd-cryptenroll", f"--unlock-tpm2-device={stock.tpm.tcti}", "--recovery-key", device)
        old = stock.read(0, DATA)
        run("systemd-cryptenroll", "--wipe-slot=recovery", device)
    stock.write(0, old)
    with stock.opened() as done, stock.device() as device:
        words = ["cryptsetup", "open", "--test-passphrase", "--key-file=-", device]
        test = run(*words, check=False, input=recovery.stdout.strip())
    return done, "The removed key opens the volume again." if test.returncode == 0 else ""


def other_tpm(stock: Stock) -> tuple[bool, str]:
    with tempfile.TemporaryDirectory() as directory, Tpm.start(Path(directory) / "tpm") as tpm:
        tpm.extend(11, "enter-initrd")
        with Stock(stock.directory, tpm).opened() as done:
            pass
    return done, "The other TPM does not have the key." if not done else ""


def another_system(stock: Stock) -> tuple[bool, str]:
    stock.tpm.extend(7, "another system, or Secure Boot off")
    with stock.opened() as done:
        pass
    return done, "PCR 7 is not in the default policy, and what is extended into PCR 11 is public." if done else ""


def swapped(stock: Stock) -> tuple[bool, str]:
    """Two instances of one image: the same policy key, each with a TPM of its own."""
    with tempfile.TemporaryDirectory() as directory, Tpm.start(Path(directory) / "tpm") as tpm:
        tpm.extend(11, "enter-initrd")
        (Path(directory) / "machine").mkdir()
        other = Stock(Path(directory) / "machine", tpm)
        other.make()
        with other.opened() as done:
            assert done, "the other instance's volume does not even open when nobody attacked it"
        spare = other.directory / "spare"
        stock.image.rename(spare)
        shutil.move(other.image, stock.image)
        shutil.move(spare, other.image)
        with stock.opened() as ours:
            pass
        with other.opened() as theirs:
            pass
    return ours or theirs, "" if ours or theirs else "Neither TPM has the key of the other's volume."


def missing(stock: Stock) -> tuple[bool, str]:
    """The disk as the image was delivered, with no volume on it, at a later boot."""
    with stock.opened() as done:
        assert done
        use()
    run("sfdisk", "--quiet", "--no-reread", "--delete", str(stock.image), "1")
    stock.write(0, bytes(DATA))
    stock.make()
    with stock.opened() as done:
        lost = done and content() != SECRET
    return (
        lost,
        "repart makes a new volume, and the machine goes on as if it had never written anything." if lost else "",
    )


def twin(stock: Stock) -> tuple[bool, str]:
    """A copy of the disk from an earlier day, attached as a second one; the volume is named by its PARTUUID."""
    copy = stock.directory / "twin"
    run("cp", "--sparse=always", str(stock.image), str(copy))
    with stock.opened() as done:
        assert done
        use()
    seen = [_by_partuuid(stock, order) for order in ((stock.image, copy), (copy, stock.image))]
    old = any(found != SECRET for found in seen)
    return (
        old,
        "udev's link leads to one of them: the machine goes on with the copy, an old state of it." if old else "",
    )


def _by_partuuid(stock: Stock, disks: tuple[Path, ...]) -> bytes:
    """Attach disks in this order, and return what the volume of that PARTUUID holds."""
    table = json.loads(run("sfdisk", "--json", str(stock.image)).stdout)
    link = f"/dev/disk/by-partuuid/{table['partitiontable']['partitions'][0]['uuid'].lower()}"
    run("/usr/lib/systemd/systemd-udevd", "--daemon")
    loops = []
    try:
        for disk in disks:
            loops.append(run("losetup", "--find", "--show", "--partscan", str(disk)).stdout.decode().strip())
            run("udevadm", "settle", "--timeout=60")
        options = f"tpm2-device={stock.tpm.tcti},headless=yes"
        run("/usr/bin/systemd-cryptsetup", "attach", NAME, link, "-", options)
        found = content()
        run("/usr/bin/systemd-cryptsetup", "detach", NAME)
        return found
    finally:
        for loop in loops:
            run("losetup", "--detach", loop)
        run("udevadm", "control", "--exit", "--timeout=60")
        # Without it, programs would wait for what nobody does any more.
        shutil.rmtree("/run/udev", ignore_errors=True)


def configuration(stock: Stock) -> tuple[bool, str]:
    stock.tpm.extend(12, "init=/bin/sh")
    with stock.opened() as done:
        pass
    return done, "PCR 12 is not in the default policy." if done else ""


def ciphertext(stock: Stock) -> tuple[bool, str]:
    with stock.opened() as done:
        assert done
        use(SECRET + SECRET[::-1])
    place = DATA + 40 * MIB
    one, other = stock.read(place, 4096), stock.read(place + 4096, 4096)
    stock.write(place, other)
    stock.write(place + 4096, one[:100] + bytes([one[100] ^ 1]) + one[101:])
    with stock.opened() as done:
        descriptor = os.open(f"/dev/mapper/{NAME}", os.O_RDONLY)
        content = os.pread(descriptor, 8192, 40 * MIB)
        os.close(descriptor)
    changed = content != SECRET + SECRET[::-1]
    return changed, "The read gives other data, and no error." if changed else ""


def clone_metadata(stock: Stock) -> tuple[bool, str]:
    """A clone whose record lies on a partition of its own, as clonetab wants it."""
    loops = []
    for name, content in (("source", b"image".ljust(4096) * 4096), ("dest", bytes(16 * MIB)), ("meta", bytes(4 * MIB))):
        (stock.directory / name).write_bytes(content)
        loops.append(run("losetup", "--find", "--show", str(stock.directory / name)).stdout.decode().strip())
    source, destination, record = loops
    add = ["/usr/lib/systemd/systemd-clonesetup", "add", NAME, source, destination, record, "region-size=4K"]
    try:
        run(*add)
        run("dmsetup", "mknodes")
        use(SECRET, 0)
        run(add[0], "remove", NAME)
        (stock.directory / "zero").write_bytes(bytes(4096))
        run("dd", f"if={stock.directory / 'zero'}", f"of={record}", "conv=notrunc,fsync")
        run(*add)
        run("dmsetup", "mknodes")
        descriptor = os.open(f"/dev/mapper/{NAME}", os.O_RDONLY)
        content = os.pread(descriptor, 4096, 0)
        os.close(descriptor)
        run(add[0], "remove", NAME)
    finally:
        for loop in loops:
            run("losetup", "--detach", loop)
    old = content == b"image".ljust(4096)
    return old, "The image's old content is read in place of what was written." if old else ""


def verity(stock: Stock) -> tuple[bool, str]:
    data, tree = stock.directory / "data", stock.directory / "tree"
    data.write_bytes(os.urandom(4 * MIB))
    tree.write_bytes(bytes(MIB))
    output = run("veritysetup", "format", str(data), str(tree)).stdout.decode()
    root_hash = next(line.split()[-1] for line in output.splitlines() if line.startswith("Root hash"))
    with data.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"changed")
    run("/usr/lib/systemd/systemd-veritysetup", "attach", NAME, str(data), str(tree), root_hash)
    try:
        Path(f"/dev/mapper/{NAME}").read_bytes()
        return True, ""
    except OSError:
        return False, "The read fails, as with the boot agent."
    finally:
        run("/usr/lib/systemd/systemd-veritysetup", "detach", NAME)


#: Kind in the catalogue, what is done, how to do it, and how the two outcomes are called.
ATTACKS: tuple[tuple[str, str, Callable[[Stock], tuple[bool, str]], str, str], ...] = (
    ("EVIL_TWIN", "A volume of the attacker, sealed to the same TPM", evil_twin, "opened", "refused"),
    ("PRE_CREATED", "The same volume, there before the first boot", pre_created, "opened", "refused"),
    ("NULL_CIPHER", "The header says `cipher_null-ecb`", null_cipher, "opened", "refused"),
    ("OLD_HEADER", "The header with the removed recovery key", old_header, "opened", "refused"),
    ("SWAPPED", "The volumes of two instances exchanged", swapped, "opened", "refused"),
    ("DISKS", "The volume taken away", missing, "goes unnoticed", "noticed"),
    ("DISKS", "A copy of the disk beside it, with the same PARTUUID", twin, "goes unnoticed", "noticed"),
    ("CLONE_METADATA", "The first block of the record zeroed", clone_metadata, "goes unnoticed", "noticed"),
    ("VERITY", "A block of the image changed", verity, "goes unnoticed", "noticed"),
    ("CONFIGURATION", "Something measured into PCR 12", configuration, "opened", "refused"),
    ("OTHER_TPM", "The disk with another TPM", other_tpm, "opened", "refused"),
    ("ANCHOR", "Another system on the TPM asks for the key", another_system, "opened", "refused"),
    ("CIPHERTEXT", "Two sectors exchanged, one bit flipped", ciphertext, "goes unnoticed", "noticed"),
)


@contextlib.contextmanager
def stock(place: Path) -> Iterator[Stock]:
    """A machine after its first boot, in the initrd of its second."""
    with Tpm.start(place / "tpm") as tpm:
        tpm.extend(11, "enter-initrd")
        key = PolicyKey(place)
        shutil.copyfile(key.public_key, PUBLIC_KEY)
        key.sign([tpm.pcr(11)], SIGNATURES)
        (place / "machine").mkdir()
        made = Stock(place / "machine", tpm)
        made.make()
        with made.opened() as done:
            assert done, "the volume does not even open when nobody attacked it"
        yield made


def main(output: Path) -> None:
    results = []
    for kind, does, attack, succeeds, fails in ATTACKS:
        with tempfile.TemporaryDirectory() as directory, stock(Path(directory)) as machine:
            done, detail = attack(machine)
        results.append({"kind": kind, "does": does, "outcome": succeeds if done else fails, "detail": detail})
        print(f"{kind}: {succeeds if done else fails}. {detail}", flush=True)
    output.write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
