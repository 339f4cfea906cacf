# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An action that runs modules on hosts that may be hostile: what they print is bounded, and read by nobody else."""

from __future__ import annotations

import time
from typing import Any, Mapping, Optional

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

from .appraisal.documents import parse_json
from .appraisal.errors import AppraisalError
from .bounds import Late, TooMuch, end_children, memory_limit, time_limit
from .report import QUOTE_LIMIT, quoted

#: Characters that a module may print. An honest answer has some 100 KiB.
ANSWER_LIMIT = 4 * 1024 * 1024
#: Characters that any other command may print, which Ansible looks for a Python by, for example, and repeats.
COMMAND_LIMIT = 64 * 1024
#: Bytes that a process may allocate while it asks. Ansible holds what a host prints several times over.
MEMORY_LIMIT = 64 * 1024 * 1024
#: Characters that are remembered of what cannot be read.
PRINTED_LIMIT = 128 * 1024
#: Seconds for removing what is left on a host.
CLEANUP_TIME = 30


class Unanswered(Exception):
    """The module failed on the target, or did not end; the text is harmless."""


class AskingAction(ActionBase):  # type: ignore[misc]
    """Asks one host; ``deadline`` is when it must have answered everything, by the monotonic clock."""

    deadline = float("inf")
    #: The beginning of what was printed in place of an answer that can be read.
    printed: Optional[str] = None
    _room = ANSWER_LIMIT
    _found: Optional[dict[str, Any]] = None

    def ask(self, module: str, arguments: Mapping[str, Any], variables: dict[str, Any]) -> Any:
        """Return the ``answer`` of a module.

        Raises ``Unanswered`` where there is none in time, and ``AppraisalError`` where there is too much of it or it
        is not JSON. A host that cannot be reached is left to Ansible, with a message of bounded length.
        """
        result = self._bounded(module, dict(arguments), variables)
        if result.get("unreachable") or result.get("failed") or "answer" not in result:
            raise Unanswered(quoted(result.get("msg", "its module ended without an answer")))
        return result["answer"]

    def _bounded(self, module: str, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        # Raised only after the handlers are left: an exception keeps alive what was allocated below it.
        failure: Exception
        self._found = None
        try:
            with memory_limit(MEMORY_LIMIT), time_limit(self.deadline - time.monotonic()):
                result = self._execute_module(module_name=module, module_args=arguments, task_vars=variables)
                return dict(result) if self._found is None else self._found
        except Late:
            failure = Unanswered("it took longer than it was given")
        except (TooMuch, MemoryError, RecursionError):
            failure = AppraisalError("too-much", "the machine sent more than an answer can have")
        except AnsibleConnectionFailure as error:
            failure = AnsibleConnectionFailure(quoted(error))
        except (AnsibleError, AppraisalError) as error:
            failure = error if isinstance(error, AppraisalError) else Unanswered(quoted(error))
        except Exception as error:
            # Ansible stumbles over output of another form than it thinks of; that is the host's doing, too.
            failure = Unanswered(quoted(f"Ansible could not read what it printed ({type(error).__name__})"))
        end_children()
        raise failure

    def _configure_module(self, *arguments: Any, **options: Any) -> Any:
        """Prepare a module, which may take commands to find a Python for it."""
        self._room = COMMAND_LIMIT
        try:
            return super()._configure_module(*arguments, **options)
        finally:
            self._room = ANSWER_LIMIT

    def _low_level_execute_command(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Run a command; it is too much for the task if it prints more than it has room for."""
        result: dict[str, Any] = super()._low_level_execute_command(*arguments, **options)
        if len(result["stdout"]) + len(result["stderr"]) > self._room:
            raise TooMuch
        return result

    def _parse_returned_data(self, res: Mapping[str, Any], *more: Any) -> Any:
        """Read a module's output strictly, and keep what was found to ourselves.

        Ansible's reader repeats what surrounds the JSON as warnings and makes objects of its own from it, and what it
        returns differs between its versions. It is given an empty result to read, whatever the host printed.
        """
        printed = str(res.get("stdout", ""))
        try:
            self._found = read_result(printed, str(res.get("stderr", "")))
        except AppraisalError:
            self.printed = printed[:PRINTED_LIMIT]
            raise
        return super()._parse_returned_data({**res, "stdout": "{}", "stderr": ""}, *more)

    def cleanup(self, force: bool = False) -> None:
        """Remove what the module left on the host, in bounded time: the host may not want to."""
        try:
            with memory_limit(MEMORY_LIMIT), time_limit(CLEANUP_TIME):
                super().cleanup(force)
                return
        except (Late, TooMuch, MemoryError, AnsibleConnectionFailure):
            pass
        end_children()


def read_result(printed: str, complaint: str = "") -> dict[str, Any]:
    """Return what a module printed: a JSON object, perhaps after lines that a shell's profile printed.

    No object at all is a failure, explained by the end of what was printed as ``complaint``. Raises ``AppraisalError``
    for an object that is too long or malformed.
    """
    if len(printed) > ANSWER_LIMIT:
        raise AppraisalError("too-much", f"the machine's answer is longer than {ANSWER_LIMIT} characters")
    start = 0 if printed.startswith("{") else printed.find("\n{") + 1
    text = printed[start:].strip()
    if not text.startswith("{"):
        return {"failed": True, "msg": f"its module printed no result. {complaint[-QUOTE_LIMIT:]}"}
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise AppraisalError("malformed", "the machine's answer is not text") from error
    found = parse_json(raw, "machine's answer", ANSWER_LIMIT)
    return {name: found[name] for name in ("answer", "failed", "unreachable", "msg") if name in found}
