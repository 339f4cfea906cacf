# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemd does by itself in the place of the boot agent, when it is attacked in the same way.

python -m tests.attacks.stock                # run it, and write stock.json, which the document is made of
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..integration import uml
from ..lab.process import run
from .catalogue import DOCUMENT, STOCK, document


def version(tree: Path) -> str:
    """Return the major version of a tree's systemd."""
    return run(["chroot", tree, "systemd-repart", "--version"]).split()[1]


def measured(tree: Path) -> dict[str, Any]:
    """Run the attacks in User-mode Linux on a tree of tools and return what came of them."""
    with tempfile.TemporaryDirectory(prefix="fde-exchange-") as exchange:
        command = ["python3", "-m", "tests.attacks.stock_inside", "/exchange/stock.json"]
        outcome = uml.Guest(tree, idle=420).run(command, exchange=Path(exchange), echo=__name__ == "__main__")
        if outcome.status != 0:
            raise RuntimeError(f"the attacks did not come to their end:\n{outcome.output[-4000:]}")
        return {"systemd": version(tree), "results": json.loads((Path(exchange) / "stock.json").read_text())}


if __name__ == "__main__":
    if why := uml.missing():
        sys.exit(why)
    tools = uml.tools_tree()
    assert tools is not None
    STOCK.write_text(json.dumps(measured(tools), indent=1) + "\n")
    DOCUMENT.write_text(document())
