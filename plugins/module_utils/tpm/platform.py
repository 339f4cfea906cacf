# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the platform of a cloud gives its machines to prove themselves by, beside the TPM's own certificate.

Collected only where the verifier asks for it; nothing here is judged.
Source: go-tpm-tools client/handles.go (Google's NV indexes); azure-cvm-tooling az-cvm-vtpm (report, metadata service);
aws/NitroTPM-Tools nitro-tpm-attest (its command line).
"""

from __future__ import annotations

import base64
import os
import struct
import tempfile
from typing import Any, Mapping, Optional, Sequence

from ..errors import FdeError
from ..runner import Runner
from .esys import exists, nv_read, tss
from .keys import Key, certificate, primary
from .metadata import MetadataService
from .templates import AK_ECC_P256, Template

#: Certificate of Google's attestation key, and the template that makes the key again: ECC, then RSA.
GOOGLE_KEYS = ((0x01C10002, 0x01C10003), (0x01C10000, 0x01C10001))
#: The paravisor's report.
AZURE_REPORT = 0x01400001
#: Larger contents are not what they should be.
CONTENT_LIMIT = 16384
#: Where the hardware's report lies in the paravisor's, the size of a TD report, and where its kind is said (4: TDX).
_HARDWARE, _TD_REPORT, _KIND, _TDX = 32, 1024, 32 + 1184 + 8, 4
_NITROTPM = "nitro-tpm-attest"


def collect(
    esys: Any, runner: Runner, wanted: Sequence[str], nonce: bytes, key: Key, metadata: MetadataService
) -> dict[str, Any]:
    """Return what this machine has of the ``wanted`` (``google``, ``azure``, ``nitrotpm``), as JSON carries it.

    ``key`` is the attestation key. What the machine does not have is null.
    """
    found: dict[str, Any] = {}
    if "google" in wanted:
        found["google"] = _google(esys, nonce, key)
    if "azure" in wanted:
        found["azure"] = _azure(esys, metadata)
    if "nitrotpm" in wanted:
        found["nitrotpm"] = _nitrotpm(runner, nonce, key)
    return found


def _google(esys: Any, nonce: bytes, key: Key) -> Optional[Mapping[str, Any]]:
    """Have the key that Google certified certify the attestation key in turn."""
    for index, template in GOOGLE_KEYS:
        certified = certificate(esys, index)
        area = _content(esys, template) if certified else None
        if not certified or not area:
            continue
        with primary(esys, Template(area, b"")) as platform:
            attest, signature = esys.certify(
                key.handle, platform.handle, tss.TPM2B_DATA(nonce), tss.TPMT_SIG_SCHEME(scheme=tss.TPM2_ALG.NULL)
            )
            return {
                "certificate": _encode(certified),
                "key": _encode(platform.public),
                "statement": {"attest": _encode(bytes(attest)), "signature": _encode(bytes(signature.marshal()))},
            }
    return None


def _azure(esys: Any, metadata: MetadataService) -> Optional[Mapping[str, Any]]:
    report = _content(esys, AZURE_REPORT)
    if report is None:
        return None
    if report[_KIND : _KIND + 4] == struct.pack("<I", _TDX):
        quote = metadata.td_quote(report[_HARDWARE : _HARDWARE + _TD_REPORT])
        return {"report": _encode(report), "td_quote": quote and _encode(quote)}
    vcek, *chain = metadata.chip_certificates() or (None,)
    return {"report": _encode(report), "vcek": vcek and _encode(vcek), "chain": [_encode(one or b"") for one in chain]}


def _nitrotpm(runner: Runner, nonce: bytes, key: Key) -> Optional[str]:
    """Ask AWS's own program for a document over nonce and key; None where it is not installed."""
    if runner.find(_NITROTPM) is None:
        return None
    with tempfile.TemporaryDirectory(prefix="cvm-fde-") as folder:
        arguments = []
        for option, content in (("--nonce", nonce), ("--public-key", point(key.public))):
            path = os.path.join(folder, option.strip("-"))
            with open(path, "wb") as file:
                file.write(content)
            arguments += [option, path]
        document = runner.run([_NITROTPM, *arguments]).stdout
    if len(document) > CONTENT_LIMIT:
        raise FdeError(_NITROTPM, "its document is too large", "Install AWS's own program of this name")
    return _encode(document)


def point(public: bytes) -> bytes:
    """Return the attestation key (TPMT_PUBLIC) as an uncompressed point, which is how documents name it."""
    rest, coordinates = public[len(AK_ECC_P256.fixed) :], b"\4"
    for _coordinate in range(2):
        (size,) = struct.unpack_from(">H", rest)
        coordinates += rest[2 : 2 + size].rjust(32, b"\0")
        rest = rest[2 + size :]
    return coordinates


def _content(esys: Any, index: int) -> Optional[bytes]:
    """Return an NV index that was written and is of a sensible size."""
    if not exists(esys, index):
        return None
    public, _name = esys.nv_read_public(esys.tr_from_tpmpublic(index))
    if int(public.nvPublic.dataSize) > CONTENT_LIMIT or not int(public.nvPublic.attributes) & 1 << 29:
        return None
    return nv_read(esys, index)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()
