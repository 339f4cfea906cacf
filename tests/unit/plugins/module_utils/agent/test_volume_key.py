# SPDX-License-Identifier: GPL-3.0-or-later
"""The volume key depends on both random generators, and nothing of it stays behind."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.agent import volume_key
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


class Tpm:
    """A TPM that answers TPM2_GetRandom from a fixed string, fewer bytes at a time than asked for."""

    def __init__(self, content: bytes) -> None:
        self._parts: Iterator[bytes] = iter([content[at : at + 20] for at in range(0, len(content), 20)])

    def get_random(self, _count: int) -> bytes:
        return next(self._parts)


def test_the_mix_is_hkdf_over_both() -> None:
    kernel, tpm = bytearray(os.urandom(96)), bytearray(os.urandom(96))
    salt = b"cvm.fde volume key"
    expected = HKDF(SHA512(), 96, salt, salt).derive(bytes(kernel + tpm))
    assert volume_key.mixed(kernel, tpm) == expected


def test_each_source_changes_every_key() -> None:
    kernel, tpm = bytearray(os.urandom(96)), bytearray(os.urandom(96))
    other_kernel, other_tpm = bytearray(kernel), bytearray(tpm)
    other_kernel[0] ^= 1
    other_tpm[95] ^= 1
    pairs = ((kernel, tpm), (other_kernel, tpm), (kernel, other_tpm))
    assert len({bytes(volume_key.mixed(*pair)) for pair in pairs}) == 3


@pytest.mark.parametrize("broken", [b"", bytes(96), b"ab" * 48, os.urandom(95)])
def test_a_broken_generator_is_noticed(broken: bytes) -> None:
    good = bytearray(os.urandom(96))
    with pytest.raises(FdeError, match="kernel"):
        volume_key.mixed(bytearray(broken), good)
    with pytest.raises(FdeError, match="TPM"):
        volume_key.mixed(good, bytearray(broken))


@pytest.mark.parametrize("size", [32, 64, 96, 128, 200])
def test_keys_of_every_size_are_those_of_the_standard(size: int) -> None:
    kernel, tpm = bytearray(os.urandom(size)), bytearray(os.urandom(size))
    salt = b"cvm.fde volume key"
    assert volume_key.mixed(kernel, tpm, size) == HKDF(SHA512(), size, salt, salt).derive(bytes(kernel + tpm))


def test_the_key_is_overwritten_afterwards() -> None:
    with volume_key.fresh(Tpm(os.urandom(200))) as key:
        assert len(key) == 96 and any(key)
    assert not any(key)


def test_both_halves_are_overwritten_too(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bytearray] = []
    genuine = volume_key.mixed

    def mixed(kernel: bytearray, tpm: bytearray, size: int) -> bytearray:
        held.extend((kernel, tpm))
        assert all(any(half) for half in held)
        return genuine(kernel, tpm, size)

    monkeypatch.setattr(volume_key, "mixed", mixed)
    with volume_key.fresh(Tpm(os.urandom(200))):
        pass
    assert [len(half) for half in held] == [96, 96] and not any(map(any, held))


def test_a_tpm_that_gives_nothing_is_noticed() -> None:
    class Silent:
        def get_random(self, _count: int) -> bytes:
            return b""

    with pytest.raises(FdeError, match="it gives nothing"), volume_key.fresh(Silent()):
        raise AssertionError


def test_the_key_is_overwritten_after_an_error_too() -> None:
    with pytest.raises(RuntimeError), volume_key.fresh(Tpm(os.urandom(200))) as key:
        raise RuntimeError
    assert not any(key)
