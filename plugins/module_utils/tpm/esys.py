# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A conversation with the TPM over its resource manager, by tpm2-pytss.

``tss`` is the library, or None where it is not installed; everything in this package takes it from here.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator, Optional

from ..errors import FdeError

try:
    import tpm2_pytss
except ImportError:
    tss: Any = None
else:
    tss = tpm2_pytss

#: The kernel's resource manager: what is left behind by a program is flushed when it closes the device.
_AUTHREAD = 1 << 18
DEFAULT_TCTI = "device:/dev/tpmrm0"


class TpmError(FdeError):
    """The TPM, or the way to it, refused a command."""

    def __init__(self, tcti: str, cause: str, rc: Optional[int] = None) -> None:
        super().__init__(
            f"the TPM at {tcti}",
            cause,
            "Check that there is a TPM 2.0, not in lockout, whose endorsement hierarchy has no password",
        )
        self.rc = rc


@contextmanager
def opened(tcti: str = DEFAULT_TCTI) -> Iterator[Any]:
    """Yield an ``ESAPI`` on the TPM at ``tcti`` (``device:PATH``, ``swtpm:path=SOCKET``, …) and close it afterwards.

    Raises ``TpmError`` when the library is missing, the TPM cannot be reached, or a command inside the block fails.
    """
    if tss is None:
        raise FdeError("tpm2-pytss", "the Python library is not installed", "Install the package python3-tpm2-pytss")
    try:
        with tss.ESAPI(tcti) as esys:
            yield esys
    except tss.TSS2_Exception as error:
        raise TpmError(tcti, f"it answered: {error}", int(error.rc)) from error


@contextmanager
def flushed(esys: Any, handle: Any) -> Iterator[Any]:
    """Yield a transient object or session and flush it afterwards, also after an error."""
    try:
        yield handle
    finally:
        esys.flush_context(handle)


def exists(esys: Any, handle: int) -> bool:
    """Tell whether an NV index or a persistent object with this TPM handle exists."""
    _more, found = esys.get_capability(tss.TPM2_CAP.HANDLES, handle, 1)
    handles = found.data.handles
    return len(handles) > 0 and int(handles[0]) == handle


def nv_read(esys: Any, index: int) -> bytes:
    """Return the whole content of an NV index that its own empty auth value, or that of the owner, may read."""
    nv = esys.tr_from_tpmpublic(index)
    public, _name = esys.nv_read_public(nv)
    size = int(public.nvPublic.dataSize)
    reader = nv if int(public.nvPublic.attributes) & _AUTHREAD else tss.ESYS_TR.OWNER
    step = min(_buffer_size(esys), 1024)
    content = b""
    while len(content) < size:
        content += bytes(esys.nv_read(nv, min(step, size - len(content)), len(content), reader))
    return content


def _buffer_size(esys: Any) -> int:
    """Return how many bytes one NV command may carry (TPM_PT_NV_BUFFER_MAX)."""
    _more, found = esys.get_capability(tss.TPM2_CAP.TPM_PROPERTIES, tss.TPM2_PT_NV.BUFFER_MAX, 1)
    properties = found.data.tpmProperties
    return int(properties[0].value) if len(properties) else 512
