# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a TPM really holds when a kernel starts, beside what is computed from the kernel image and the variables alone.

With trixie's stub, of systemd 257, which has firmware start the kernel in the image, and with forky's, which starts it
by itself (as all from 258 on do); with and without Secure Boot.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.boot.kernel_inputs import load_options
from ansible_collections.cvm.fde.plugins.module_utils.boot.pcr import extend, extend_data, pcr4, zero
from ansible_collections.cvm.fde.plugins.module_utils.boot.pe import parse_pe
from ansible_collections.cvm.fde.plugins.module_utils.boot.reference_set import Request, reference_set
from ansible_collections.cvm.fde.plugins.module_utils.boot.secure_boot import Variable, read_der
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.event_log import parse as parse_log
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.reference import PHASE_INITRD
from ansible_collections.cvm.fde.tests.lab.keys import keys
from ansible_collections.cvm.fde.tests.lab.machine import enrolled_variables, variables
from ansible_collections.cvm.fde.tests.lab.readout import ADDED, Parts, Readout, parts, read_out
from ansible_collections.cvm.fde.tests.lab.trees import parts_tree

#: Suite: whether its stub has firmware measure the kernel too where Secure Boot is off.
STUBS = {"trixie": True, "forky": False}
PCRS = (4, 7, 9, 12, 13, 14)


@dataclass(frozen=True)
class Boot:
    """One way to boot a suite's kernel image."""

    suite: str
    secure_boot: bool = True
    #: Whether an add-on, a credential and a system extension lie beside the image.
    added: bool = False

    @property
    def name(self) -> str:
        return f"readout-{self.suite}-{'added' if self.added else 'on' if self.secure_boot else 'off'}"


BOOTS = [boot for suite in STUBS for boot in (Boot(suite), Boot(suite, secure_boot=False), Boot(suite, added=True))]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Boot, Future[Readout]]]:
    """What the machine held in each boot, two at a time."""
    folder = tmp_path_factory.mktemp("added")
    (folder / "words.cred").write_bytes(b"what the host wants the guest to believe")
    (folder / "tools.raw").write_bytes(b"an extension".ljust(4096, b"."))
    for suite in STUBS:
        parts(suite)

    def beside(boot: Boot) -> dict[str, Path]:
        files = [parts(boot.suite).addon, *folder.iterdir()] if boot.added else []
        return {file.name: file for file in files}

    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {boot: pool.submit(read_out, boot.name, boot.suite, boot.secure_boot, beside(boot)) for boot in BOOTS}


def computed(boot: Boot) -> dict[str, Any]:
    """Return the legal values of the SHA-256 bank, from files alone."""
    enrolled = enrolled_variables(variables(keys(), boot.secure_boot))
    request = Request(
        boot.name,
        parts(boot.suite).uki.read_bytes(),
        {Variable(name): content for name, content in enrolled.items()},
        certificate(),
        boot.secure_boot,
    )
    found = reference_set(request)
    stub = parts_tree(boot.suite) / "usr/lib/systemd/boot/efi/linuxx64.efi.stub"
    assert f"systemd-stub {found['uki']['stub_version']} ".encode() in stub.read_bytes()
    values: dict[str, Any] = found["pcrs"]["sha256"]
    return values


def certificate() -> bytes:
    return read_der(keys().certificate("db").read_bytes(), "CERTIFICATE", "db")


def images(built: Parts) -> dict[str, bytes]:
    """Return the Authenticode digests of a kernel image and of what is in it and beside it."""
    uki = parse_pe(built.uki.read_bytes())
    kernel, addon = parse_pe(uki.section(".linux")), parse_pe(built.addon.read_bytes())
    return {"uki": uki.authenticode(), "kernel": kernel.authenticode(), "addon": addon.authenticode()}


@pytest.mark.parametrize("boot", [boot for boot in BOOTS if not boot.added], ids=lambda boot: boot.name)
def test_a_tpm_holds_what_is_computed_from_the_kernel_image(held: dict[Boot, Future[Readout]], boot: Boot) -> None:
    found, expected = held[boot].result().pcrs, computed(boot)
    # No system has run: each PCR has its first legal value, the one from before the separator of the OS.
    assert {pcr: found[pcr].hex() for pcr in PCRS} == {pcr: expected[str(pcr)][0] for pcr in PCRS}
    assert extend_data(found[11], b"enter-initrd").hex() == expected["11"][PHASE_INITRD]


@pytest.mark.parametrize("suite", STUBS)
def test_only_without_secure_boot_an_old_stub_has_firmware_measure_the_kernel(
    held: dict[Boot, Future[Readout]], suite: str
) -> None:
    digests = images(parts(suite))
    on, off = (held[Boot(suite, secure_boot=enforced)].result().pcrs[4] for enforced in (True, False))
    assert on == pcr4([digests["uki"]])
    assert off == (pcr4([digests["uki"], digests["kernel"]]) if STUBS[suite] else on)


@pytest.mark.parametrize("suite", STUBS)
def test_what_lies_beside_the_image_changes_what_it_should_and_nothing_else(
    held: dict[Boot, Future[Readout]], suite: str
) -> None:
    found, expected = held[Boot(suite, added=True)].result(), computed(Boot(suite))
    changed = {pcr for pcr in PCRS if found.pcrs[pcr].hex() not in expected[str(pcr)]}
    assert changed == {4, 9, 12, 13}
    assert extend_data(found.pcrs[11], b"enter-initrd").hex() == expected["11"][PHASE_INITRD]
    digests = images(parts(suite))
    assert found.pcrs[4] == pcr4([digests["uki"], digests["addon"]])
    # The add-on's words come first, then the archive of credentials; the extension is alone in PCR 13.
    log = parse_log(found.log)
    assert log is not None
    words, credential = (event.digests["sha256"] for event in log.events if event.pcr == 12)
    (extension,) = (event.digests["sha256"] for event in log.events if event.pcr == 13)
    with_words = extend_data(zero(), load_options(ADDED.encode()))
    assert extend(zero(), words) == with_words
    assert found.pcrs[12] == extend(with_words, credential)
    assert found.pcrs[13] == extend(zero(), extension)


@pytest.mark.parametrize("boot", BOOTS, ids=lambda boot: boot.name)
def test_the_firmwares_log_leads_to_what_the_tpm_holds(held: dict[Boot, Future[Readout]], boot: Boot) -> None:
    found = held[boot].result()
    log = parse_log(found.log)
    assert log is not None
    replayed = log.values("sha256")
    # PCR 8 and above 14 are untouched or not the firmware's.
    assert {pcr: found.pcrs[pcr] for pcr in replayed} == replayed
