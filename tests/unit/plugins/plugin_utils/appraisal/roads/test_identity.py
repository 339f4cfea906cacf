# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a road establishes is what the register of identities decides by."""

from __future__ import annotations

import dataclasses
import datetime

import pytest
from ansible_collections.cvm.fde.plugins.plugin_utils.appraisal.roads.trust import AkTrust, RoadName
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.identities import Register, Trouble
from ansible_collections.cvm.fde.plugins.plugin_utils.ledger.records import Action, Decision, Identity

EK, OTHER_EK, AK, OTHER_AK = (bytes([number] * 32).hex() for number in range(1, 5))


def trust(ek, ak=AK, road=RoadName.EK_CERTIFICATE) -> AkTrust:
    moment = datetime.datetime(2026, 6, 1, tzinfo=datetime.timezone.utc)
    return AkTrust(road, b"\0\x0b" + bytes(32), ak, ek, None, None, (), (), (), (), moment)


def identity(host: str, established: AkTrust) -> Identity:
    return Identity(host, established.road.value, established.ek, established.ak)


@pytest.mark.parametrize("road", list(RoadName))
def test_every_road_has_a_name_that_the_ledger_takes(road) -> None:
    register = Register([identity("web1", trust(EK, road=road))])
    assert register.conflicts() == ()


def test_one_endorsement_key_on_two_hosts_waits_for_an_operator_whichever_road_was_taken() -> None:
    clone = trust(EK, OTHER_AK, RoadName.AZURE_SNP)
    register = Register([identity("web1", trust(EK)), identity("web2", clone)])
    assert [conflict.trouble for conflict in register.conflicts("web2")] == [Trouble.SHARED_KEY]
    assert register.conflicts("web1")


def test_a_known_host_with_a_new_key_waits_until_it_is_approved() -> None:
    register = Register([identity("web1", trust(EK)), identity("web1", trust(OTHER_EK, OTHER_AK))])
    assert [conflict.trouble for conflict in register.conflicts("web1")] == [Trouble.NEW_KEY]
    register.note(Decision("web1", Action.APPROVE_IDENTITY, "alice", "reinstalled", key=OTHER_EK))
    assert register.conflicts() == ()


def test_without_an_endorsement_key_the_attestation_key_stands_for_the_machine() -> None:
    first, second = (trust(None, road=RoadName.AWS_NITROTPM) for _host in range(2))
    register = Register([identity("web1", first), identity("web2", dataclasses.replace(second))])
    assert [conflict.trouble for conflict in register.conflicts("web2")] == [Trouble.SHARED_KEY]
