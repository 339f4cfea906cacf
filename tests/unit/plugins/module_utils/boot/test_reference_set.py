# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a kernel image alone says of the machines that boot it."""

from __future__ import annotations

import hashlib

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.boot import kernel_inputs, pcr
from ansible_collections.cvm.fde.plugins.module_utils.boot.reference_set import limited
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError


def test_an_initrd_of_one_part_is_handed_over_as_it_is() -> None:
    assert kernel_inputs.initrd({".initrd": b"abc"}) == b"abc"


def test_parts_of_an_initrd_follow_each_other_in_the_order_of_the_stub() -> None:
    found = kernel_inputs.initrd({".pcrpkey": b"key", ".initrd": b"abcde", ".ucode": b"u", ".osrel": b"os"})
    assert found.startswith(b"u\0\0\0abcde\0\0\0" + b"070701")
    assert found.index(b".extra/tpm2-pcr-public-key.pem\0") < found.index(b".extra/os-release\0")
    assert len(found) % 4 == 0
    assert found.count(b"TRAILER!!!\0\0\0\0") == 2


def test_an_archive_of_the_stub_unpacks(tmp_path: pytest.TempPathFactory) -> None:
    import shutil
    import subprocess

    if not shutil.which("cpio"):
        pytest.skip("cpio is not installed")
    archive = kernel_inputs.initrd({".osrel": b"ID=debian\n"})
    subprocess.run(["cpio", "--extract", "--quiet"], input=archive, cwd=str(tmp_path), check=True)
    assert (tmp_path / ".extra/os-release").read_bytes() == b"ID=debian\n"  # type: ignore[operator]


def test_the_command_line_is_measured_in_the_form_in_which_the_kernel_finds_it() -> None:
    assert kernel_inputs.load_options(b"quiet\tro \0") == "quiet ro\0".encode("utf-16-le")


def test_pcr_9_is_the_command_line_and_then_the_initrd() -> None:
    sections = {".cmdline": b"quiet", ".initrd": b"abc"}
    first = hashlib.sha256(bytes(32) + hashlib.sha256("quiet\0".encode("utf-16-le")).digest()).digest()
    assert kernel_inputs.pcr9(sections) == hashlib.sha256(first + hashlib.sha256(b"abc").digest()).digest()


@pytest.mark.parametrize(
    ("stub", "secure_boot", "measured"),
    [
        (258, False, False),
        (262, True, False),
        (257, True, False),
        (257, False, True),
        (252, True, False),
        (251, True, True),
    ],
)
def test_firmware_measures_the_inner_kernel_only_of_old_stubs(stub: int, secure_boot: bool, measured: bool) -> None:
    assert pcr.measures_inner_kernel(stub, secure_boot) is measured


@pytest.mark.parametrize("bank", ["sha256", "sha384", "sha512"])
def test_every_bank_has_values_of_its_own_length(bank: str) -> None:
    size = hashlib.new(bank).digest_size
    values = [pcr.pcr4([b"x" * size], bank), pcr.pcr7({}, None, bank), *pcr.pcr11({".linux": b"x"}, bank).values()]
    assert {len(value) for value in values} == {size}


def test_a_manifest_gets_a_period_in_which_it_is_valid() -> None:
    found = limited(b'{"version": 1, "name": "a", "pcrs": {}}', "m", "b", "2026-12-01T00:00:00Z", None)
    assert found["name"] == "b"
    assert found["validity"] == {"not_before": "2026-12-01T00:00:00Z", "not_after": None}


@pytest.mark.parametrize("manifest", [b"", b"[]", b"{}", b'{"version": 2, "pcrs": {}}', b"[" * 100_000])
def test_what_is_no_manifest_is_refused(manifest: bytes) -> None:
    with pytest.raises(FdeError):
        limited(manifest, "m", None, None, None)


@pytest.mark.parametrize("moment", ["tomorrow", "2026-12-01", "2026-12-01T00:00:00", "2026-13-01T00:00:00Z"])
def test_a_time_without_its_zone_is_refused(moment: str) -> None:
    with pytest.raises(FdeError, match="zone"):
        limited(b'{"version": 1, "name": "a", "pcrs": {}}', "m", None, moment, None)
