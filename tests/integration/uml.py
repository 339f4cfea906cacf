# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a program as root in a User-mode Linux guest: real device-mapper within seconds, on any machine, as any kernel.

The guest's root is a *tools tree* (a Debian root directory with the programs under test) read through hostfs with a
tmpfs laid over it: whatever the program writes is gone afterwards, and the tree stays as it was. The checkout is
visible, read-only, under its own path. ``/exchange`` is a directory of the host for results: its files are what
counts, the console is for people.

The guest catches system calls by a filter (seccomp) where the machine has it; ptrace takes twice as long.

Each page of a process in the guest may become a mapping of the host's, of which Linux allows 65,530
(``vm.max_map_count``): a process that grows far beyond 256 MiB ends with ``Killed``, whatever memory there is, and the
console says ``UML ran out of memory on the host side``.

udev does not run in the guest. ``DM_DISABLE_UDEV=1`` is set for that reason: libdevmapper then makes the nodes under
/dev/mapper itself and waits for nobody. What udev would do (symbolic links, probing, cookies) is left to whole boots.

One command by hand::

    python -m tests.integration.uml --tree build/tools -- dmsetup targets
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from ..lab.trees import built_tools_tree

CHECKOUT = Path(__file__).resolve().parents[2]
INIT = Path(__file__).with_name("init")
#: Both in the tools tree, so that the kernel has the version of the lab's guests, whatever this machine has.
KERNEL = Path("usr/bin/linux.uml")
LIBRARIES = Path("usr/lib/x86_64-linux-gnu")

#: The environment of every command in the guest.
ENVIRONMENT = {
    "DM_DISABLE_UDEV": "1",
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "TERM": "dumb",
    "PYTHONDONTWRITEBYTECODE": "1",
    # Where tests/conftest.py links the checkout as the collection.
    "PYTHONPATH": str(CHECKOUT / "build/collections"),
    "FDE_INSIDE_UML": "1",
}


class GuestError(Exception):
    """The guest did not reach the end of its command: it could not start, it died, or it made no progress."""


class Silent(GuestError):
    """The guest was ended because it said nothing any more."""


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: its exit status, what it and the kernel printed, and the seconds the guest lived."""

    status: int
    output: str
    console: str
    seconds: float


def missing() -> str | None:
    """Return why no guest can be started on this machine, or None when one can."""
    tree = tools_tree()
    if tree is None:
        return "there is no tools tree (set FDE_TOOLS_TREE, or let the lab make one: make test)"
    if not (tree / KERNEL).exists():
        return f"{tree} has no User-mode Linux (Debian package user-mode-linux)"
    if os.geteuid() != 0:
        return "User-mode Linux is started with the libraries of the tools tree, which needs root"
    return None


def tools_tree() -> Path | None:
    """Return the root directory with the programs for the guest: FDE_TOOLS_TREE, or the one that the lab has built."""
    if named := os.environ.get("FDE_TOOLS_TREE"):
        return Path(named).resolve()
    return built_tools_tree()


@dataclass(frozen=True)
class Guest:
    """A User-mode Linux guest that lives as long as one command.

    ``shares`` are directories of the host that appear under their own path, writable when True. ``idle`` is the longest
    time in seconds without any output, after which the guest counts as hung, ``limit`` the longest life. ``words`` are
    added to the kernel's command line.
    """

    tree: Path
    memory: str = "2048M"
    shares: Mapping[Path, bool] = field(default_factory=dict)
    idle: float = 180.0
    limit: float = 1800.0
    words: Sequence[str] = ()

    def run(
        self,
        argv: Sequence[str],
        *,
        exchange: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path = CHECKOUT,
        echo: bool = False,
    ) -> Outcome:
        """Run ``argv`` in a new guest and return its outcome.

        ``exchange`` is an empty directory of the host, /exchange in the guest. ``echo`` passes the output on at once.
        Raises ``GuestError`` with the end of console and output when the command did not come to its own end.
        """
        self._prepare(argv, exchange, {**ENVIRONMENT, **(env or {})}, cwd)
        started = time.monotonic()
        output, console, why = self._boot(exchange, echo)
        status = exchange / "status"
        # The file is the only witness: it is written after the command ended, whatever the console says.
        if status.exists():
            why = None
        elif why is None:
            why = GuestError("the guest ended before its command did")
        if why is not None:
            raise type(why)(f"{why}\n--- output\n{_tail(output)}\n--- console\n{_tail(console)}")
        said, warned = (text.decode("utf-8", "replace") for text in (output, console))
        return Outcome(int(status.read_text()), said, warned, time.monotonic() - started)

    def _prepare(self, argv: Sequence[str], exchange: Path, env: Mapping[str, str], cwd: Path) -> None:
        shutil.copyfile(INIT, exchange / "init")
        shares = {CHECKOUT: False, **self.shares}
        (exchange / "shares").write_text("".join(f"{'rw' if rw else 'ro'}\t{path}\n" for path, rw in shares.items()))
        lines = [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
        lines += [f"cd {shlex.quote(str(cwd))} || exit 127", f"exec {shlex.join(argv)}", ""]
        (exchange / "command").write_text("\n".join(lines))

    def _boot(self, exchange: Path, echo: bool) -> tuple[bytes, bytes, GuestError | None]:
        """Start the kernel and wait for its end; return output, console and why it had to be ended, if it had."""
        with _pipe() as (console_in, console_out), _pipe() as (output_in, output_out), _memory_directory() as memory:
            process = subprocess.Popen(
                self._command_line(exchange, memory, console_out.fileno(), output_out.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=console_out,
                stderr=console_out,
                pass_fds=(console_out.fileno(), output_out.fileno()),
                env={"PATH": os.environ.get("PATH", os.defpath), "HOME": memory, "TMPDIR": memory},
                start_new_session=True,
            )
            console_out.close()
            output_out.close()
            try:
                return self._watch(process, output_in.fileno(), console_in.fileno(), echo)
            finally:
                _end(process)

    def _command_line(self, exchange: Path, memory: str, console: int, output: int) -> list[str]:
        first = (
            f"mount -t tmpfs t /mnt && mkdir /mnt/x && mount -t hostfs -o hostfs={exchange} x /mnt/x && . /mnt/x/init"
        )
        # The kernel is a program of the tree and wants the tree's C library. It starts itself anew from /proc/self/exe
        # and takes the memory behind its own program, so the tree's dynamic loader cannot be what is started.
        script = f'mount --bind "$0/{LIBRARIES}" "/{LIBRARIES}" && exec "$@"'
        return [
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(self.tree)),
            *(
                str(self.tree / KERNEL),
                f"mem={self.memory}",
                f"umid=fde-{os.getpid()}-{time.monotonic_ns()}",
                f"uml_dir={memory}/",
            ),
            *("root=/dev/root", "rootfstype=hostfs", f"rootflags={self.tree}", "ro"),
            # "gpt" is a word of every sealed image: the kernel may use the second copy of the partition table.
            *("quiet", "loglevel=4", "panic=-1", "seccomp=auto", "gpt", *self.words),
            *("con=null", f"con0=null,fd:{console}", "ssl=null", f"ssl0=null,fd:{output}"),
            *("init=/bin/sh", "--", "-c", f'"{first}"'),
        ]

    def _watch(
        self, process: subprocess.Popen[bytes], output_in: int, console_in: int, echo: bool
    ) -> tuple[bytes, bytes, GuestError | None]:
        received = {output_in: bytearray(), console_in: bytearray()}
        started = heard = time.monotonic()
        why: GuestError | None = None
        with selectors.DefaultSelector() as selector:
            for descriptor in received:
                selector.register(descriptor, selectors.EVENT_READ)
            while selector.get_map() and why is None:
                for key, _events in selector.select(timeout=1.0):
                    chunk = os.read(key.fd, 65536)
                    if not chunk:
                        selector.unregister(key.fd)
                        continue
                    heard = time.monotonic()
                    received[key.fd] += chunk
                    if echo and key.fd == output_in:
                        sys.stdout.buffer.write(chunk)
                        sys.stdout.flush()
                now = time.monotonic()
                if now - heard > self.idle:
                    stood = "\n".join(_standing(process.pid))
                    why = Silent(f"the guest said nothing for {self.idle:.0f} s and was ended; it stood at\n{stood}")
                elif now - started > self.limit:
                    why = GuestError(f"the guest was ended after {self.limit:.0f} s")
                elif process.poll() is not None and heard < now - 1:
                    break
        return bytes(received[output_in]), bytes(received[console_in]), why


def _standing(session: int) -> Iterator[str]:
    """Yield what the machine knows of a guest's kernel and of the processes that it traces, twice, a second apart.

    A line each: number, state, ticks in user and kernel mode, what it waits for. A kernel that waits for its own
    process, one that turns in circles and one that has nothing to do look different.
    """
    for pause in (1, 0):
        for entry in sorted(Path("/proc").glob("[0-9]*"), key=lambda found: int(found.name)):
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session:
                    yield f"{entry.name} {fields[0]} {fields[11]} {fields[12]} {(entry / 'wchan').read_text()}"
        time.sleep(pause)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the kernel and the processes it traces; they are in a session of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[FileIO, FileIO]]:
    reader, writer = os.pipe()
    with FileIO(reader, "r") as readable, FileIO(writer, "w") as writable:
        yield readable, writable


@contextlib.contextmanager
def _memory_directory() -> Iterator[str]:
    """Yield a directory for the guest's memory file, on a tmpfs where there is one."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fde-uml-", dir=parent) as path:
        yield path


def _tail(text: bytes, lines: int = 60) -> str:
    return "\n".join(text.decode("utf-8", "replace").splitlines()[-lines:])


def main(arguments: Sequence[str]) -> int:
    """Run one command in a guest; the exit status is the command's, 125 when the guest failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.integration.uml", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tree", type=Path, default=tools_tree(), help="root directory with the programs")
    parser.add_argument("--memory", default="2048M", help="memory of the guest")
    parser.add_argument("--idle", type=float, default=180.0, help="seconds without output that count as a hang")
    parser.add_argument("--share", action="append", default=[], metavar="DIR", help="a host directory to write to")
    parser.add_argument("--share-ro", action="append", default=[], metavar="DIR", help="a host directory to read")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="environment of the command")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    options = parser.parse_args(arguments)
    if options.tree is None:
        parser.error("there is no tools tree: give --tree or set FDE_TOOLS_TREE")
    shares = {Path(path).resolve(): True for path in options.share}
    shares.update({Path(path).resolve(): False for path in options.share_ro})
    guest = Guest(options.tree.resolve(), memory=options.memory, shares=shares, idle=options.idle)
    env = dict(pair.split("=", 1) for pair in options.env)
    with tempfile.TemporaryDirectory(prefix="fde-exchange-") as exchange:
        try:
            return guest.run(options.command, exchange=Path(exchange), env=env, echo=True).status
        except GuestError as error:
            print(error, file=sys.stderr)
            return 125


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
