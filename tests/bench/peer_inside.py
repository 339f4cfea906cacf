# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts of ``peer.py``, in one guest: python3 -m tests.bench.peer_inside SIZE HOST...

Every host is a mount namespace with an /etc of its own, a disk of SIZE bytes and a software TPM, so that hosts do not
write into one another's tables. Commands come as files in /exchange, see ``peer_files.py``; ``/exchange/end`` ends it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from threading import Thread

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration/inside"))

from software_tpm import Tpm

EXCHANGE = Path("/exchange")
DISKS = Path("/dev/disk/by-id")
HOSTS = Path("/run/hosts")
#: A namespace, kept by a bind mount, and a Python that runs in it. In /run/cvm-fde lie the lock and the header copies.
NAMESPACE = """
set -eu
cp -a /etc "$1.etc"
touch "$1.ns"
mkdir -p /run/cvm-fde "$1.run"
unshare --mount="$1.ns" --propagation slave sh -ec 'mount --bind "$0.etc" /etc; mount --bind "$0.run" /run/cvm-fde' "$1"
printf '#!/bin/sh\\nexec nsenter --mount=%s.ns /usr/bin/python3 "$@"\\n' "$1" >"$1.python"
chmod 0755 "$1.python"
"""


def make(host: str, size: int, stack: ExitStack) -> None:
    """Make a host; its TPM ends with ``stack``."""
    disk = Path(f"/tmp/{host}.disk")
    with disk.open("wb") as file:
        file.truncate(size)
    loop = subprocess.check_output(["losetup", "--find", "--show", disk], text=True).strip()
    (DISKS / f"bench-{host}").symlink_to(loop)
    stack.enter_context(Tpm.start(HOSTS / f"{host}.tpm"))
    subprocess.run(["sh", "-c", NAMESPACE, "sh", HOSTS / host], check=True)


def answer(request: Path) -> None:
    """Run what a request asks for, and leave what came of it beside it."""
    command = json.loads(request.read_text())["command"]
    request.unlink()
    with request.with_suffix(".in").open("rb") as given:
        done = subprocess.run(["sh", "-c", command], stdin=given, capture_output=True)
    request.with_suffix(".out").write_bytes(done.stdout)
    request.with_suffix(".err").write_bytes(done.stderr)
    draft = request.with_suffix(".status")
    draft.write_text(str(done.returncode))
    draft.rename(request.with_suffix(".told"))


def main() -> None:
    size, *hosts = sys.argv[1:]
    for directory in (DISKS, HOSTS):
        directory.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0700", "hosts", HOSTS], check=True)
    subprocess.run(["mount", "--make-private", HOSTS], check=True)
    with ExitStack() as stack:
        for host in hosts:
            make(host, int(size), stack)
        (EXCHANGE / "ready").touch()
        while not (EXCHANGE / "end").exists():
            for request in EXCHANGE.glob("*.json"):
                taken = request.rename(request.with_suffix(".taken"))
                Thread(target=answer, args=(taken,)).start()
            time.sleep(0.03)


if __name__ == "__main__":
    main()
