# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to be changed about the unlock methods of a volume follows from what it has and what is wanted."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.luks2.enrolment import Enrolled, Plan, enrolled, plan
from ansible_collections.cvm.fde.plugins.module_utils.luks2.header import Header
from ansible_collections.cvm.fde.plugins.module_utils.luks2.keyslots import ByKey, Means
from ansible_collections.cvm.fde.plugins.module_utils.luks2.method import Passphrase, Recovery, Tpm2, same_key
from ansible_collections.cvm.fde.plugins.module_utils.luks2.recovery_key import (
    LETTERS,
    new_recovery_key,
    recovery_key_text,
    typed_recovery_key,
)
from ansible_collections.cvm.fde.plugins.module_utils.luks2.secret import random_secret
from hypothesis import given
from hypothesis import strategies as st

PEM = b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(bytes(range(100))) + b"\n-----END PUBLIC KEY-----\n"
SIGNED = Tpm2(pcrs=(7, 12), public_key=PEM)
PCR7 = Tpm2(pcrs=(7,))
TEMPORARY = Enrolled(None, 0)
TPM = Enrolled(PCR7, 1, 0)
KEY = Enrolled(Recovery(), 2, 1)
WORD = Enrolled(Passphrase(), 3)


@pytest.mark.parametrize(
    ("found", "wanted", "dead", "adds", "removes"),
    [
        ([TEMPORARY], [PCR7, Recovery()], [], [PCR7, Recovery()], [TEMPORARY]),
        ([TEMPORARY], [Passphrase()], [], [Passphrase()], [TEMPORARY]),
        ([TPM, KEY], [PCR7, Recovery()], [], [], []),
        ([TPM, KEY], [Recovery(), PCR7], [], [], []),
        ([TPM, KEY], [PCR7], [], [], [KEY]),
        ([TPM], [PCR7, Recovery()], [], [Recovery()], []),
        ([TPM], [PCR7, PCR7], [], [], []),
        ([TPM, KEY], [SIGNED, Recovery()], [], [SIGNED], [TPM]),
        ([TPM, KEY], [PCR7, Recovery()], [1], [PCR7], [TPM]),
        ([TPM, KEY], [PCR7, Recovery()], [2], [Recovery()], [KEY]),
        ([TPM, Enrolled(PCR7, 4, 2)], [PCR7], [], [], [Enrolled(PCR7, 4, 2)]),
        ([TPM, Enrolled(PCR7, 4, 2)], [PCR7], [1], [], [TPM]),
        ([WORD, KEY], [Passphrase()], [3], [Passphrase()], [WORD, KEY]),
        ([TPM, KEY, WORD], [PCR7, Recovery(), Passphrase()], [], [], []),
    ],
    ids=[
        "a new volume",
        "a temporary key is no passphrase",
        "nothing to do",
        "the order does not matter",
        "one goes",
        "one comes",
        "one that is wanted twice is there once",
        "another policy replaces the old one",
        "a keyslot that no longer opens is made anew",
        "a recovery key is rotated",
        "a second keyslot of the same kind goes",
        "of two the one that still opens stays",
        "a passphrase is replaced",
        "all kinds",
    ],
)
def test_a_plan_says_what_comes_and_what_goes(found, wanted, dead, adds, removes):
    planned = plan(found, wanted, dead)
    assert planned == Plan(tuple(adds), tuple(removes))
    assert planned.changes == bool(adds or removes)


def test_no_plan_leaves_a_volume_that_nothing_opens():
    with pytest.raises(FdeError, match="last unlock method cannot be removed"):
        plan([TPM, KEY], [])


_METHODS = st.sampled_from([PCR7, SIGNED, replace(PCR7, pcrlock=True), Recovery(), Passphrase()])
_FOUND = st.lists(st.one_of(st.none(), _METHODS), max_size=8)


@given(methods=_FOUND, wanted=st.lists(_METHODS, min_size=1, max_size=5), dead=st.sets(st.integers(0, 7)))
def test_every_plan_ends_with_what_is_wanted_and_nothing_dead(methods, wanted, dead):
    found = [Enrolled(method, number) for number, method in enumerate(methods)]
    planned = plan(found, wanted, dead)
    kept = [slot for slot in found if slot not in planned.removes]
    after = [slot.method for slot in kept] + list(planned.adds)
    assert sorted(after, key=str) == sorted(set(wanted), key=str)
    assert not {slot.keyslot for slot in kept} & dead


def test_the_keyslots_of_a_header_are_known_by_their_tokens(forger):
    public_key = base64.b64decode(forger.metadata(forger.genuine())["tokens"]["0"]["tpm2_pubkey"])
    root = enrolled(Header.parse(forger.genuine()))
    assert root == (Enrolled(Tpm2(pcrs=(7, 12), public_key=public_key), 1, 0),)
    passphrase = enrolled(Header.parse(forger.genuine("2.8.8-authenticated")))
    assert passphrase == (Enrolled(Passphrase(), 1),)


def test_other_tokens_are_told_from_those_that_can_be_wanted(forger):
    def found(change):
        def edit(metadata):
            token = metadata["tokens"]["0"]
            token.update(change)
            if change.get("type") == "systemd-recovery":
                metadata["tokens"]["0"] = {"type": token["type"], "keyslots": token["keyslots"]}

        return enrolled(Header.parse(forger.edited(edit)))[0].method

    assert found({"type": "systemd-recovery"}) == Recovery()
    assert found({"tpm2-pin": True}) is None
    assert found({"tpm2_pcrlock": True}).pcrlock
    # Without its token the keyslot has a random key, stretched like one.
    assert found({"keyslots": []}) is None


def test_equal_tpm_policies_are_equal_however_they_are_written():
    one_line = PEM.replace(b"\n", b" ").replace(b"BEGIN PUBLIC KEY----- ", b"BEGIN PUBLIC KEY-----\n")
    assert Tpm2(pcrs=(12, 7, 7), public_key=one_line) == SIGNED
    assert Tpm2(public_key=None, public_key_pcrs=(11,)) == Tpm2(public_key=None, public_key_pcrs=())
    assert same_key(PEM, PEM.replace(b"\n", b"\r\n"))
    assert not same_key(PEM, PEM.replace(b"A", b"B", 1))
    assert not same_key(b"no PEM", PEM)


def test_a_tpm_policy_that_makes_no_sense_is_refused():
    for options in ({"pcrs": (24,)}, {"pcrs": (-1,)}, {"public_key": PEM, "public_key_pcrs": ()}):
        with pytest.raises(ValueError, match="PCR"):
            Tpm2(**options)


@pytest.mark.parametrize("pcrs", [(), (16,), (16, 23)])
def test_a_policy_that_every_system_can_fulfil_binds_nothing(pcrs):
    assert not Tpm2(pcrs=pcrs).bound
    assert Tpm2(pcrs=(7, *pcrs)).bound
    assert Tpm2(pcrs=pcrs, public_key=PEM).bound
    assert Tpm2(pcrs=pcrs, pcrlock=True).bound


def test_no_secret_is_shown():
    text = repr(ByKey(bytearray(b"secret"))) + repr(
        Means(recovery=bytearray(b"secret"), passphrase=bytearray(b"secret"))
    )
    assert "secret" not in text


def test_a_recovery_key_has_the_spelling_of_systemd():
    text = recovery_key_text(bytes.fromhex("0123456789abcdef" * 4))
    assert text == b"-".join([b"cbdefghi", b"jklnrtuv"] * 4)
    assert len(text) == 71
    assert set(text) <= {*LETTERS, ord("-")}


def test_recovery_keys_are_random():
    keys = {bytes(new_recovery_key()) for _attempt in range(50)}
    assert len(keys) == 50
    assert all(len(set(key)) > 8 for key in keys)


@pytest.mark.parametrize(
    "spelling",
    [
        lambda text: text,
        lambda text: text.upper(),
        lambda text: text.replace(b"-", b""),
        lambda text: text.replace(b"-", b" ") + b"\r\n",
    ],
    ids=["as written", "capitals", "without hyphens", "with spaces"],
)
def test_a_typed_recovery_key_is_understood(spelling):
    text = new_recovery_key()
    assert typed_recovery_key(bytearray(spelling(bytes(text)))) == text


@pytest.mark.parametrize("typed", [b"", b"cbdefghi", b"a" * 64, b"c" * 63, b"c" * 65, "ü".encode() * 32])
def test_what_is_no_recovery_key_is_refused_without_repeating_it(typed):
    with pytest.raises(FdeError) as caught:
        typed_recovery_key(bytearray(typed))
    assert not typed or len(typed) < 20 or typed.decode() not in str(caught.value)


def test_a_recovery_key_has_32_bytes():
    with pytest.raises(ValueError, match="32"):
        recovery_key_text(bytes(31))
    assert len(random_secret(32)) == 32
