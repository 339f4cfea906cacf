# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An appraisal policy as operators write it: YAML, without anything that two readers may understand differently."""

from __future__ import annotations

from typing import Any

import yaml  # type: ignore[import-untyped]

from .appraisal.errors import AppraisalError
from .appraisal.policy import Policy, parse_policy


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML's plain types only: no name twice in a mapping, no merging, no anchors, no second document."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise AppraisalError("bad-policy", "the policy uses an alias")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _value in node.value]
        if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
            raise AppraisalError("bad-policy", "the policy has a key twice, or one that is no text")
        return dict(super().construct_mapping(node, deep))

    def flatten_mapping(self, node: Any) -> None:
        """Leave ``<<`` what it is: an unknown key."""


def load_policy(content: bytes) -> Policy:
    """Read a policy. Raises ``AppraisalError`` with the code ``bad-policy``."""
    try:
        return parse_policy(yaml.load(content.decode("utf-8"), Loader=_Loader))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise AppraisalError("bad-policy", "the policy is not YAML in UTF-8") from error
