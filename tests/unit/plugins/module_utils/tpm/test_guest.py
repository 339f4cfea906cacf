# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest asks its TPM, on a real software TPM."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.tpm import esys as access
from ansible_collections.cvm.fde.plugins.module_utils.tpm import measurements, quote, templates
from ansible_collections.cvm.fde.plugins.module_utils.tpm.anchor import SIZE
from ansible_collections.cvm.fde.plugins.module_utils.tpm.certify import certifiable, certify
from ansible_collections.cvm.fde.plugins.module_utils.tpm.esys import TpmError, exists, opened
from ansible_collections.cvm.fde.plugins.module_utils.tpm.keys import (
    EK_RSA_HANDLE,
    attestation_key,
    endorsement_key,
    primary,
)

SELECTION = {"sha256": (0, 7, 11)}


def transient(esys: Any) -> int:
    # The union is read out of "found", which must not be freed before.
    _more, found = esys.get_capability(access.tss.TPM2_CAP.HANDLES, 0x80000000, 16)
    return len(found.data.handles)


def test_the_attestation_key_is_the_same_after_every_start(make_machine: Callable[..., Any]) -> None:
    machine = make_machine("restarted")
    seen = set()
    for _start in range(2):
        with opened(machine.tcti) as esys, attestation_key(esys) as key:
            assert templates.AK_ECC_P256.made(key.public)
            seen.add(key.public)
        machine.start()
    assert len(seen) == 1


def test_two_tpms_have_two_attestation_keys(machine: Any, make_machine: Callable[..., Any]) -> None:
    other = make_machine("another")
    publics = []
    for tcti in (machine.tcti, other.tcti):
        with opened(tcti) as esys, attestation_key(esys) as key:
            publics.append(key.public)
    assert publics[0] != publics[1]


def test_the_endorsement_key_is_the_platforms_own_with_its_certificate(machine: Any) -> None:
    with opened(machine.tcti) as esys:
        assert exists(esys, EK_RSA_HANDLE)
        with endorsement_key(esys) as key:
            assert templates.EK_RSA_2048.made(key.public)
            assert key.certificate is not None
            assert int.from_bytes(key.certificate[2:4], "big") + 4 == len(key.certificate)
        with primary(esys, templates.EK_RSA_2048) as again:
            assert again.public == key.public


def test_nothing_stays_behind_in_the_tpm(machine: Any) -> None:
    with opened(machine.tcti) as esys:
        with attestation_key(esys), pytest.raises(RuntimeError, match="on purpose"), endorsement_key(esys):
            raise RuntimeError("on purpose")
        assert transient(esys) == 0


def test_a_quote_carries_the_values_it_speaks_of(machine: Any) -> None:
    with opened(machine.tcti) as esys, attestation_key(esys) as key:
        quoted = quote.quote(esys, key, b"n" * 32, SELECTION)
        body, _size = access.tss.TPMS_ATTEST.unmarshal(quoted.attest)
        values = quoted.pcrs["sha256"]
        assert sorted(values) == [0, 7, 11]
        digest = hashlib.sha256(b"".join(values[pcr] for pcr in sorted(values))).digest()
        assert bytes(body.attested.quote.pcrDigest) == digest
        assert bytes(body.extraData) == b"n" * 32


class Restless:
    """A TPM whose PCR 11 is extended by somebody else between a quote and the reading of its values."""

    def __init__(self, esys: Any, times: int) -> None:
        self._esys = esys
        self._times = times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._esys, name)

    def quote(self, *arguments: Any) -> Any:
        answer = self._esys.quote(*arguments)
        if self._times:
            self._times -= 1
            digest = access.tss.TPMT_HA(hashAlg=access.tss.TPM2_ALG.SHA256, digest=access.tss.TPMU_HA(sha256=b"x" * 32))
            self._esys.pcr_extend(access.tss.ESYS_TR(11), access.tss.TPML_DIGEST_VALUES([digest]))
        return answer


def test_a_pcr_that_moves_in_between_is_quoted_again(make_machine: Callable[..., Any]) -> None:
    machine = make_machine("restless")
    with opened(machine.tcti) as esys, attestation_key(esys) as key:
        quoted = quote.quote(Restless(esys, 3), key, b"", SELECTION)
        assert quoted.pcrs == quote.read_pcrs(esys, SELECTION)
        with pytest.raises(FdeError, match="changed during each"):
            quote.quote(Restless(esys, 99), key, b"", SELECTION)


def test_a_bank_that_the_tpm_does_not_have_is_named(machine: Any) -> None:
    with pytest.raises(FdeError, match="no PCR 0 in a bank 'sha1'"), opened(machine.tcti) as esys:
        quote.read_pcrs(esys, {"sha1": (0,)})


def test_an_index_is_certified_only_where_it_was_written(machine: Any) -> None:
    with opened(machine.tcti) as esys, attestation_key(esys) as key:
        assert not certifiable(esys, 0x01800001, 1)
        assert certifiable(esys, 0x0180FDE0, SIZE)
        assert not certifiable(esys, 0x0180FDE0, SIZE + 1)
        found = certify(esys, key, 0x0180FDE0, b"n", SIZE)
        body, _size = access.tss.TPMS_ATTEST.unmarshal(found.attest)
        assert bytes(body.attested.nv.nvContents)[:4] == b"CVFA"


def test_a_tpm_that_is_not_there_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(TpmError, match="Check that there is a TPM"), opened(f"device:{tmp_path}/tpm"):
        pytest.fail("there is no TPM to open")


def test_a_library_that_is_not_there_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "tss", None)
    with pytest.raises(FdeError, match="Install the package"), opened():
        pytest.fail("there is no library to open it with")


def test_logs_that_are_not_there_are_none(tmp_path: Path) -> None:
    assert measurements.firmware_log(str(tmp_path / "none")) is None
    with measurements.held_userspace_log(str(tmp_path / "none")) as held:
        assert held.read() == measurements.UserspaceLog(None, True)


def test_systemds_log_is_held_while_it_is_read_and_its_mark_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\x1e{}\n")
    with measurements.held_userspace_log(str(path)) as held:
        assert held.read() == measurements.UserspaceLog(b"\x1e{}\n", True)
        writer = os.open(path, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(writer)
    path.chmod(0o600 | stat.S_ISVTX)
    with measurements.held_userspace_log(str(path)) as held:
        assert held.read().complete is False


def test_a_log_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as log:
        log.truncate(measurements.LOG_LIMIT + 1)
    with pytest.raises(FdeError, match="larger than"):
        measurements.firmware_log(str(path))
