# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents: what an appraisal read and wrote, kept as it was under its digest, compressed and stored once.

The event logs of a host rarely change between two attestations; addressed by their digest, they cost their place once.
"""

from __future__ import annotations

import hashlib
import zlib

#: Bytes of one document. Event logs are tens of KiB; a verifier's own limits are far below this one.
DOCUMENT_LIMIT = 16 * 1024 * 1024
#: Bytes of one compressed document: zlib adds 5 bytes per 16 KiB block to what does not compress.
PACKED_LIMIT = DOCUMENT_LIMIT + DOCUMENT_LIMIT // 1024


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pack(content: bytes) -> bytes:
    """Compress a document; ValueError if it is larger than the ledger keeps."""
    if len(content) > DOCUMENT_LIMIT:
        raise ValueError(f"a document has at most {DOCUMENT_LIMIT} bytes, this one has {len(content)}")
    return zlib.compress(content)


def unpack(packed: object, digest: str) -> bytes:
    """Return the document with this digest; ValueError unless ``packed`` is exactly that. Memory is bounded."""
    if not isinstance(packed, bytes) or len(packed) > PACKED_LIMIT:
        raise ValueError("is not a compressed document")
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(packed, DOCUMENT_LIMIT + 1)
    except zlib.error:
        raise ValueError("does not decompress") from None
    if len(content) > DOCUMENT_LIMIT or not inflater.eof or inflater.unused_data:
        raise ValueError("does not decompress to one document of allowed size")
    if digest_of(content) != digest:
        raise ValueError("is not what its digest was made from")
    return content
