# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest's half of credential activation: only the TPM that holds both keys can answer."""

from __future__ import annotations

from typing import Any

from .esys import flushed, tss
from .keys import Key


def activate(esys: Any, attestation: Key, endorsement: Key, credential: bytes, secret: bytes) -> bytes:
    """Return the secret in a credential made for this pair of keys.

    ``credential`` and ``secret`` are TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET as MakeCredential gives them, with
    their sizes.
    """
    blob, _size = tss.TPM2B_ID_OBJECT.unmarshal(credential)
    encrypted, _size = tss.TPM2B_ENCRYPTED_SECRET.unmarshal(secret)
    symmetric = tss.TPMT_SYM_DEF(algorithm=tss.TPM2_ALG.NULL)
    session = esys.start_auth_session(
        tss.ESYS_TR.NONE, tss.ESYS_TR.NONE, tss.TPM2_SE.POLICY, symmetric, tss.TPM2_ALG.SHA256
    )
    with flushed(esys, session):
        # The policy of every low-range EK template: whoever may use the endorsement hierarchy may use the EK.
        esys.policy_secret(tss.ESYS_TR.ENDORSEMENT, session)
        certificate_info = esys.activate_credential(
            attestation.handle, endorsement.handle, blob, encrypted, session1=tss.ESYS_TR.PASSWORD, session2=session
        )
    return bytes(certificate_info)
