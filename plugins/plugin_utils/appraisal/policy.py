# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The appraisal policy: what an operator demands of a machine, as data.

Documented in ``docs/appraisal-policy.md``, with a JSON schema in ``docs/schema/policy.schema.json``. Whatever a policy
leaves out is demanded in full, and what it says beyond what is known here is refused: a typing error never makes a
policy weaker.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Mapping, Optional

from .policy_map import PolicyMap
from .roads.trust import NO_ID_KEY, RoadName

VERSION = 1
_DIGEST = re.compile(r"[0-9a-f]{64,128}")


class Freshness(str, Enum):
    """How far it is excluded that something old is shown, from the weakest level to the strongest."""

    #: The answers belong to the nonce, and to the present boot.
    BOOT = "boot"
    #: The header of the volume is the one that the TPM remembers.
    HEADER = "header"
    #: The TPM itself has not gone back since the ledger knows it.
    LEDGER = "ledger"
    #: The file system in the volume is the one that was last written.
    DATA = "data"

    @property
    def rank(self) -> int:
        return list(Freshness).index(self)


@dataclass(frozen=True)
class SetTerms:
    """When machines may show the reference values of one set, by its name."""

    name: str
    not_before: Optional[datetime.datetime] = None
    not_after: Optional[datetime.datetime] = None
    revoked: bool = False


@dataclass(frozen=True)
class HardwareTerms:
    """What the processor's report must say; an empty demand is none.

    ``minimum_tcb`` has the least number of each component by product, as reports name them.
    """

    products: frozenset[str] = frozenset()
    minimum_tcb: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    firmware_status: frozenset[str] = frozenset()
    measurements: frozenset[str] = frozenset()
    #: Digests of the keys that may have signed what was launched.
    id_keys: frozenset[str] = frozenset()

    @property
    def demanded(self) -> bool:
        launch = self.measurements or self.id_keys
        return bool(self.products or self.minimum_tcb or self.firmware_status or launch)


@dataclass(frozen=True)
class VolumeTerms:
    """What the encrypted volume must be like. ``maximum_recoveries`` of None sets no bound."""

    authenticated: bool = True
    unique_key: bool = True
    evidence: bool = True
    maximum_recoveries: Optional[int] = None
    strategies: frozenset[str] = frozenset(("clone", "overlay", "copy", "ephemeral"))


@dataclass(frozen=True)
class Policy:
    """One appraisal policy. ``sets`` is empty where every set that is given is good without an end."""

    name: str = "default"
    waived_checks: frozenset[str] = frozenset()
    roads: tuple[RoadName, ...] = (RoadName.EK_CERTIFICATE,)
    sets: tuple[SetTerms, ...] = ()
    hardware: HardwareTerms = field(default_factory=HardwareTerms)
    #: Least firmware version of the TPM, as its quotes state it.
    minimum_tpm_firmware: int = 0
    #: Seconds between the challenge and the answer.
    maximum_age: int = 300
    #: Seconds for which a verdict counts.
    valid_for: int = 86400
    #: Whether the TPM must know that its clock has not gone back.
    safe_clock: bool = False
    freshness: Freshness = Freshness.HEADER
    volume: VolumeTerms = field(default_factory=VolumeTerms)

    @property
    def waived(self) -> frozenset[str]:
        """The checks whose outcome does not count."""
        derived = set(self.waived_checks)
        if not self.volume.authenticated:
            derived.add("evidence_encryption")
        if not self.volume.unique_key:
            derived.add("unique_volume_key")
        if not self.volume.evidence:
            # Without it no key is proved that could be another host's.
            derived.update((*_EVIDENCE, "unique_volume_key"))
        return frozenset(derived)

    def document(self) -> dict[str, Any]:
        """Return the whole policy as JSON has it, nothing left out: `parse_policy` reads it again."""
        hardware, volume = self.hardware, self.volume
        return {
            "version": VERSION,
            "name": self.name,
            "waived_checks": sorted(self.waived_checks),
            "roads": [road.value for road in self.roads],
            "reference_sets": [_set_document(terms) for terms in self.sets],
            "hardware": {
                "products": sorted(hardware.products),
                "minimum_tcb": {product: dict(tcb) for product, tcb in hardware.minimum_tcb.items()},
                "firmware_status": sorted(hardware.firmware_status),
                "measurements": sorted(hardware.measurements),
                "id_keys": sorted(hardware.id_keys),
                "minimum_tpm_firmware": self.minimum_tpm_firmware,
            },
            "evidence": {
                "maximum_age": self.maximum_age,
                "valid_for": self.valid_for,
                "safe_clock": self.safe_clock,
            },
            "freshness": self.freshness.value,
            "volume": {
                "authenticated": volume.authenticated,
                "unique_key": volume.unique_key,
                "evidence": volume.evidence,
                "maximum_recoveries": volume.maximum_recoveries,
                "strategies": sorted(volume.strategies),
            },
        }

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON of `document`: two policies that demand the same have the same."""
        text = json.dumps(self.document(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


#: What is not judged where no evidence of the volume's creation is demanded.
_EVIDENCE = (
    *("evidence_signature", "evidence_claims", "evidence_pcrs", "evidence_replay", "evidence_phase", "evidence_boot"),
    *("evidence_image", "evidence_encryption", "evidence_anchor", "evidence_history", "volume_key", "recoveries"),
    *("recovery_replay", "recovery_phase", "recovery_boot"),
)
#: Checks that may be waived. The others are what every verdict rests on: keys, quote, and the image that runs.
WAIVABLE = frozenset(
    (
        *_EVIDENCE,
        *("firmware_log", "userspace_log", "log_replay", "secure_boot"),
        *("pcr_4", "pcr_7", "pcr_12", "pcr_13", "pcr_14"),
        *("anchor_signature", "anchor_policy", "anchor_state", "header_committed"),
        *("identity", "anchor_freshness", "unique_volume_key"),
    )
)


def parse_policy(found: Any) -> Policy:
    """Read a policy from plain data. Raises ``AppraisalError`` with the code ``bad-policy``."""
    top = PolicyMap(found, "policy")
    top.only(
        *("version", "name", "waived_checks", "roads", "reference_sets"),
        *("hardware", "evidence", "freshness", "volume"),
    )
    if top.number("version", -1) != VERSION:
        top.wrong("version", f"must be {VERSION}")
    hardware, evidence, volume = top.inner("hardware"), top.inner("evidence"), top.inner("volume")
    evidence.only("maximum_age", "valid_for", "safe_clock")
    return Policy(
        name=top.text("name", "policy"),
        waived_checks=frozenset(top.words("waived_checks", (), WAIVABLE)),
        roads=tuple(RoadName(road) for road in top.words("roads", ("ek-certificate",), _ROADS, some=True)),
        sets=_sets(top),
        hardware=_hardware(hardware),
        minimum_tpm_firmware=hardware.number("minimum_tpm_firmware", 0),
        maximum_age=evidence.number("maximum_age", 300, least=1),
        valid_for=evidence.number("valid_for", 86400, least=1),
        safe_clock=evidence.truth("safe_clock", False),
        freshness=Freshness(top.word("freshness", Freshness.HEADER.value, [level.value for level in Freshness])),
        volume=_volume(volume),
    )


_ROADS = tuple(road.value for road in RoadName)


def _sets(top: PolicyMap) -> tuple[SetTerms, ...]:
    found = []
    for entry in top.entries("reference_sets"):
        entry.only("name", "not_before", "not_after", "revoked")
        begin, end = entry.moment("not_before"), entry.moment("not_after")
        terms = SetTerms(entry.text("name", None), begin, end, entry.truth("revoked", False))
        if terms.not_before and terms.not_after and terms.not_before > terms.not_after:
            entry.wrong("not_after", "is before not_before")
        found.append(terms)
    if len({terms.name for terms in found}) != len(found):
        top.wrong("reference_sets", "names a set twice")
    return tuple(found)


def _hardware(hardware: PolicyMap) -> HardwareTerms:
    hardware.only("products", "minimum_tcb", "firmware_status", "measurements", "id_keys", "minimum_tpm_firmware")
    minimum = hardware.inner("minimum_tcb")
    tcb = {product: minimum.inner(product).numbers() for product in minimum.names()}
    id_keys = frozenset(hardware.texts("id_keys", _DIGEST))
    if NO_ID_KEY in id_keys:
        hardware.wrong("id_keys", "names nobody: zeros are shown by everything that was launched without a signature")
    return HardwareTerms(
        frozenset(hardware.words("products", ())),
        tcb,
        frozenset(hardware.words("firmware_status", ())),
        frozenset(hardware.texts("measurements", _DIGEST)),
        id_keys,
    )


def _volume(volume: PolicyMap) -> VolumeTerms:
    volume.only("authenticated", "unique_key", "evidence", "maximum_recoveries", "strategies")
    every = tuple(sorted(VolumeTerms().strategies))
    recoveries = None if volume.absent("maximum_recoveries") else volume.number("maximum_recoveries", 0)
    return VolumeTerms(
        volume.truth("authenticated", True),
        volume.truth("unique_key", True),
        volume.truth("evidence", True),
        recoveries,
        frozenset(volume.words("strategies", every, every, some=True)),
    )


def _set_document(terms: SetTerms) -> dict[str, Any]:
    return {
        "name": terms.name,
        "not_before": terms.not_before and terms.not_before.isoformat(),
        "not_after": terms.not_after and terms.not_after.isoformat(),
        "revoked": terms.revoked,
    }
