# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Signature lists are those that enrolment writes; keys and certificates are read strictly."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.boot import secure_boot
from ansible_collections.cvm.fde.plugins.module_utils.boot.secure_boot import X509, Signature, Variable
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from hypothesis import given
from hypothesis import strategies as st

OWNER = uuid.UUID("4f1a3c42-6f3b-4b0e-9d6a-0f1c2a7d5e11")
PUBLIC_KEY = b"""-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAqI0VhlTT6V7HNnxRo1uD
lzuHEm2qYV09NxpTuo6k/xp9X8uOMfRznvSwkChim0V084Qv2akZnoLVfvyXFUuB
5MWbzZ0iACGT2WDRvpeVZuHrn36dqK+Tcv5OzL+F3QUXqGCvf52b0qIcFVc0g+wc
tm5zoYhk3NH7ndVhO6OP0tlAO7WTpSyy/tVKwru1jynAfyuN7x69k8B4YPbTbzQ+
s3ojWPrIXDPlxuY98BrYAJwnaEknt79dL+qMPdwdx3up9c974tqhF9wCDLsitAnm
aWqSKEh/+eULYGkCCjPivORM4frkREK5bNWSWNfmYCsaEblJZ6ZqsfLgaEvrvK/z
eQIDAQAB
-----END PUBLIC KEY-----
"""
#: Of the tree of tools where one is named, else of this machine.
VARIABLES = Path(os.environ.get("FDE_TOOLS_TREE", "/")) / "usr/share/OVMF/OVMF_VARS_4M.fd"
FW_VARS = shutil.which("virt-fw-vars", path=f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', '')}")


def test_lists_read_back() -> None:
    entries = (Signature(X509, OWNER, b"one"), Signature(X509, OWNER, b"three"))
    assert secure_boot.parse_lists(b"".join(map(secure_boot.encode_list, entries)), "db") == entries
    assert secure_boot.parse_lists(b"", "dbx") == ()


@pytest.mark.skipif(FW_VARS is None or not VARIABLES.exists(), reason="virt-fw-vars or OVMF is not installed")
def test_the_contents_are_those_that_virt_fw_vars_enrols(tmp_path: Path) -> None:
    certificate = tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-new", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x"]
        + ["-keyout", str(tmp_path / "key.pem"), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    out = tmp_path / "vars.json"
    assert FW_VARS is not None
    arguments = ["--set-pk", str(OWNER), str(certificate), "--add-kek", str(OWNER), str(certificate)]
    arguments += ["--add-db", str(OWNER), str(certificate), "--output-json", str(out)]
    subprocess.run([FW_VARS, "--input", str(VARIABLES), *arguments], check=True, capture_output=True)
    enrolled = {entry["name"]: bytes.fromhex(entry["data"]) for entry in json.loads(out.read_text())["variables"]}
    pem = certificate.read_bytes()
    names = (Variable.PK, Variable.KEK, Variable.DB)
    ours = secure_boot.read_variables([(variable, str(OWNER), "cert.pem", pem) for variable in names])
    assert {variable.value: content for variable, content in ours.items()} == {
        variable.value: enrolled[variable.value] for variable in names
    }


def test_parts_of_a_variable_follow_one_another() -> None:
    first, second = b"\x30one", b"\x30two"
    lists = secure_boot.encode_list(Signature(X509, OWNER, second))
    contents = secure_boot.read_variables([(Variable.DB, str(OWNER), "a", first), (Variable.DB, None, "b", lists)])
    assert [entry.data for entry in secure_boot.parse_lists(contents[Variable.DB], "db")] == [first, second]
    assert secure_boot.authority(contents, second) == Signature(X509, OWNER, second)


def test_a_signer_that_db_does_not_hold_once_vouches_for_nothing() -> None:
    entry = secure_boot.encode_list(Signature(X509, OWNER, b"\x30one"))
    digest = secure_boot.encode_list(Signature(secure_boot.SHA256, OWNER, b"\x30one"))
    for db in (b"", digest, entry * 2):
        with pytest.raises(FdeError, match="exactly once"):
            secure_boot.authority({Variable.DB: db}, b"\x30one")


@pytest.mark.parametrize(
    "part",
    [
        (Variable.DB, "no guid", "x", b"\x30cert"),
        (Variable.DB, str(OWNER), "x", b"not a certificate"),
        (Variable.DB, str(OWNER), "x", b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----"),
        (Variable.DBX, None, "x", b"not lists"),
    ],
)
def test_wrong_parts_are_refused(part: tuple[Variable, str | None, str, bytes]) -> None:
    with pytest.raises(FdeError):
        secure_boot.read_variables([part])


@given(st.binary(max_size=200))
def test_hostile_lists_raise_their_own_error(noise: bytes) -> None:
    good = secure_boot.encode_list(Signature(X509, OWNER, b"certificate"))
    for content in (noise, good + noise, good[:16] + noise):
        try:
            secure_boot.parse_lists(content, "db")
        except FdeError:
            continue


def test_a_key_is_read_from_both_of_its_forms() -> None:
    der = secure_boot.read_der(PUBLIC_KEY, "PUBLIC KEY", "key")
    assert der == base64.b64decode(b"".join(PUBLIC_KEY.splitlines()[1:-1]))
    assert secure_boot.read_der(der, "PUBLIC KEY", "key") == der
