# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two keys of a TPM that identify it: the endorsement key (EK) and the attestation key (AK).

Neither is stored by us: the EK is the one the platform made persistent, or is made again from the standard template;
the AK is a primary of the endorsement hierarchy with a fixed template, so that it is the same key in the initrd of
the first boot and years later.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Iterator, Optional

from .esys import exists, flushed, nv_read, tss
from .templates import AK_ECC_P256, EK_ECC_P256, EK_RSA_2048, Template

#: Where the platform keeps the EK of template L-1 (TCG EK Credential Profile, TPM v2.0 Provisioning Guidance).
EK_RSA_HANDLE = 0x81010001
EK_RSA_CERTIFICATE = 0x01C00002
EK_ECC_CERTIFICATE = 0x01C0000A
#: No EK certificate in use is near this size; what is larger is not read.
CERTIFICATE_LIMIT = 8192


@dataclass(frozen=True)
class Key:
    """A loaded key: its ESYS handle and its TPMT_PUBLIC."""

    handle: Any
    public: bytes


@dataclass(frozen=True)
class EndorsementKey(Key):
    """The EK, and its certificate (DER) where the TPM holds one."""

    certificate: Optional[bytes]


@contextmanager
def endorsement_key(esys: Any) -> Iterator[EndorsementKey]:
    """Yield the EK: RSA unless only an ECC certificate exists; the persistent RSA one where the platform made it."""
    rsa_certificate = certificate(esys, EK_RSA_CERTIFICATE)
    ecc_certificate = None if rsa_certificate else certificate(esys, EK_ECC_CERTIFICATE)
    if ecc_certificate is not None:
        with primary(esys, EK_ECC_P256) as key:
            yield EndorsementKey(key.handle, key.public, ecc_certificate)
    elif exists(esys, EK_RSA_HANDLE):
        handle = esys.tr_from_tpmpublic(EK_RSA_HANDLE)
        public, _name, _qualified = esys.read_public(handle)
        yield EndorsementKey(handle, bytes(public.publicArea.marshal()), rsa_certificate)
    else:
        with primary(esys, EK_RSA_2048) as key:
            yield EndorsementKey(key.handle, key.public, rsa_certificate)


@contextmanager
def attestation_key(esys: Any) -> Iterator[Key]:
    """Yield the AK: ECC P-256, ECDSA with SHA-256, restricted to what the TPM itself made."""
    with primary(esys, AK_ECC_P256) as key:
        yield key


@contextmanager
def primary(esys: Any, template: Template) -> Iterator[Key]:
    """Yield the primary key of the endorsement hierarchy that ``template`` gives."""
    area, _size = tss.TPMT_PUBLIC.unmarshal(template.public)
    handle, public, _data, _hash, _ticket = esys.create_primary(
        tss.TPM2B_SENSITIVE_CREATE(), tss.TPM2B_PUBLIC(publicArea=area), tss.ESYS_TR.ENDORSEMENT
    )
    with flushed(esys, handle):
        yield Key(handle, bytes(public.publicArea.marshal()))


def certificate(esys: Any, index: int) -> Optional[bytes]:
    """Return the DER certificate in an NV index, without the padding that some platforms leave behind it."""
    if not exists(esys, index):
        return None
    content = nv_read(esys, index)
    if len(content) < 4 or content[:2] != b"\x30\x82":
        return None
    length = 4 + int.from_bytes(content[2:4], "big")
    return content[:length] if length <= min(len(content), CERTIFICATE_LIMIT) else None
