# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sealed image: the base image with the boot agent, sealed by the collection's own role."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Optional

from .ansible import LOCAL, inventory, playbook
from .cache import CHECKOUT, cached, digest
from .images import COMMAND_LINE, pack
from .keys import keys
from .machine import secure_boot_contents
from .process import LabError
from .trees import SUITE, base_tree, copy_tree, names_resolved, tools_tree, variant

#: What of the collection decides what a sealed image is.
CORE = CHECKOUT / "plugins/module_utils"
#: The security version of every image that has one.
SVN = 1
PREPARES = [CHECKOUT / "plugins/modules/image_prepare.py", CHECKOUT / "plugins/action/image_prepare.py"]
SEALS = [CHECKOUT / "plugins/modules/image_seal.py", CHECKOUT / "roles/image/tasks", CHECKOUT / "roles/image/defaults"]
PREPARE_PLAYBOOK = Path(__file__).with_name("prepare.yml")


@dataclass(frozen=True)
class Sealed:
    """A folder with a sealed image and its signed manifest."""

    folder: Path

    @property
    def image(self) -> Path:
        return self.folder / "sealed.raw"

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.json"

    def variables(self) -> dict[str, object]:
        """Return what the playbook ``attest`` must know about the guests of this image."""
        return {
            "fde_manifest": str(self.manifest),
            "fde_manifest_key": str(keys().public("manifest")),
            "fde_endorsement_ca": [str(keys().ek_authority)],
            # Of both rounds, for an emulated machine that shares its host.
            "attest_timeout": 1200,
        }


def prepared_tree(suite: str = SUITE, strategy: Optional[str] = None) -> Path:
    """Return the tree of the base image with the boot agent in it; parameters as in ``sealed_image``."""
    recipe = digest(base_tree(suite).name, CORE, CHECKOUT / "roles/image/files", *PREPARES, strategy)
    name = variant("prepared", suite, strategy or "")
    what = f"the tree with the boot agent ({suite})"
    return cached(what, name, recipe, lambda at: _prepare(suite, at, _variables(strategy=strategy)), keep=2)


def sealed_image(
    suite: str = SUITE,
    strategy: Optional[str] = None,
    recovery: Optional[str] = None,
    sector: int = 512,
    volume_disk: Optional[str] = None,
) -> Sealed:
    """Return the sealed image, made first when there is none for this state of the checkout.

    ``strategy``, ``recovery`` and ``volume_disk`` are variables of the role ``image`` (``image_...``); None is what the
    role does by default. ``sector`` is the size of its disks' sectors, in bytes.
    """
    tree = prepared_tree(suite, strategy)
    enrolled = list(secure_boot_contents(keys()).values())
    wanted = _variables(strategy=strategy, recovery=recovery, volume_disk=volume_disk)
    recipe = digest(tree.name, tools_tree().name, COMMAND_LINE, Path(__file__), *SEALS, *enrolled, wanted, sector)
    words = (suite, strategy or "", f"recovery-{recovery}" if recovery else "", "4k" if sector == 4096 else "")
    words = (*words, f"disk-{volume_disk.replace(':', '-')}" if volume_disk else "")
    what = f"the sealed image ({' '.join(word for word in words if word)})"
    name = variant("sealed", *words)
    return Sealed(cached(what, name, recipe, lambda at: _seal(tree, at, wanted, sector), keep=2))


def _variables(**wanted: Optional[str]) -> dict[str, str]:
    """Return variables of the role ``image``, without those that are left to the role."""
    return {f"image_{name}": value for name, value in wanted.items() if value is not None}


def _prepare(suite: str, tree: Path, wanted: Mapping[str, str]) -> None:
    copy_tree(base_tree(suite), tree)
    log = tree.with_suffix(".log")
    hosts = inventory(tree.with_suffix(".json"), {"image_builders": {"localhost": LOCAL}})
    with names_resolved(tree):
        playbook(str(PREPARE_PLAYBOOK), hosts, {"image_root": str(tree), **wanted}, log=log)
    hosts.unlink()
    log.unlink()


def _seal(tree: Path, folder: Path, wanted: Mapping[str, str], sector: int) -> None:
    folder.mkdir()
    raw = folder / "prepared.raw"
    pack(tree, raw, sector)
    lab = keys()
    enrolled = [{"variable": name, "content": str(file)} for name, file in secure_boot_contents(lab).items()]
    builder = {
        **LOCAL,
        **wanted,
        "image_src": str(raw),
        "image_dest": str(folder / "sealed.raw"),
        "image_name": "cvm.fde lab",
        "image_manifest": str(folder / "manifest.json"),
        "image_manifest_key": str(lab.key("manifest")),
        "image_pcr_private_key": str(lab.key("pcr")),
        "image_secure_boot_key": str(lab.key("db")),
        "image_secure_boot_certificate": str(lab.certificate("db")),
        "image_secure_boot_variables": enrolled,
        "image_command_line": COMMAND_LINE,
        "image_security_version": 0 if wanted.get("image_strategy") == "ephemeral" else SVN,
        "image_tools_tree": str(tools_tree()),
    }
    hosts = inventory(folder / "inventory.json", {"image_builders": {"localhost": builder}})
    playbook("cvm.fde.seal_image", hosts, log=folder / "seal.log")
    if not (folder / "sealed.raw").exists():
        raise LabError(f"the playbook seal_image succeeded without an image; see {folder / 'seal.log'}")
    raw.unlink()
