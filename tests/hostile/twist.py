# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a hostile host: changes in the module's honest result what a file says, and prints the rest as it is.

The first argument names a JSON object, whose fields replace those of the same names in the answer of either round.
"""

from __future__ import annotations

import json
import sys

result = json.load(sys.stdin)
answer = result.get("answer", {})
with open(sys.argv[1], encoding="utf-8") as file:
    answer.update({name: value for name, value in json.load(file).items() if name in answer})
print(json.dumps(result))
