# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets reach cryptsetup and systemd in memory files, and nothing else of them is left anywhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.plugins.module_utils.luks2 import volume
from ansible_collections.cvm.fde.plugins.module_utils.luks2.profile import AEGIS, AUTHENTICATED, CONFIDENTIAL
from ansible_collections.cvm.fde.plugins.module_utils.luks2.secret import descriptor_path, memory_file, wipe
from ansible_collections.cvm.fde.plugins.module_utils.runner import Completed, MissingProgram

UUID = "6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a003"


class Recorder:
    """A runner that reads the files its programs would read, and runs nothing."""

    def __init__(self, programs=("/usr/bin/systemd-cryptsetup",)):
        self.programs = programs

    def run(self, argv, *, stdin=None, pass_fds=(), env=None, ok=(0,)):
        self.argv, self.stdin, self.env = list(argv), stdin, env
        self.files = {descriptor_path(fd): Path(descriptor_path(fd)).read_bytes() for fd in pass_fds}
        self.modes = {os.fstat(fd).st_mode & 0o777 for fd in pass_fds}
        return Completed(tuple(argv), 0, b"", b"")

    def find(self, name):
        return name if name in self.programs else None

    def after(self, option):
        """The argument that follows an option."""
        return self.argv[self.argv.index(option) + 1]


def test_a_format_gets_both_keys_by_memory_files():
    runner = Recorder()
    key, temporary = bytearray(os.urandom(96)), bytearray(os.urandom(32))
    volume.format_volume(runner, "/dev/x", volume_key=key, temporary_key=temporary, uuid=UUID)
    assert runner.files[runner.after("--volume-key-file")] == key
    assert runner.files[runner.after("--key-file")] == temporary
    assert runner.modes == {0o600}
    assert runner.argv[-1] == "/dev/x"
    assert runner.stdin is None


@pytest.mark.parametrize(
    ("profile", "journal", "wipe_data", "options"),
    [
        (AUTHENTICATED, True, False, ["--integrity", "hmac-sha256", "--integrity-no-wipe"]),
        (AUTHENTICATED, False, True, ["--integrity", "hmac-sha256", "--integrity-no-journal"]),
        (AEGIS, True, False, ["--integrity", "aead", "--integrity-no-wipe"]),
        (CONFIDENTIAL, True, False, []),
    ],
)
def test_a_profile_decides_about_cipher_and_integrity(profile, journal, wipe_data, options):
    runner = Recorder()
    volume.format_volume(
        runner,
        "/dev/x",
        volume_key=bytearray(profile.volume_key_size),
        temporary_key=bytearray(32),
        uuid=UUID,
        profile=profile,
        journal=journal,
        wipe=wipe_data,
    )
    assert runner.after("--cipher") == profile.encryption
    assert runner.after("--key-size") == str(profile.cipher_key_size * 8)
    integrity = [word for word in runner.argv if word.startswith("--integrity")]
    assert [word for word in options if word.startswith("--")] == integrity
    assert not options or runner.after("--integrity") == options[1]


def test_keys_that_are_too_short_never_reach_cryptsetup():
    for key, temporary in ((bytearray(64), bytearray(32)), (bytearray(96), bytearray(8))):
        with pytest.raises(ValueError, match="key"):
            volume.format_volume(Recorder(), "/dev/x", volume_key=key, temporary_key=temporary, uuid=UUID)


def test_an_enrolment_names_every_part_of_its_policy():
    runner = Recorder()
    key = bytearray(os.urandom(32))
    volume.enrol_tpm2(runner, "/dev/x", unlock_key=key, public_key="/run/key.pem", pcrs=(7, 4))
    unlock = next(word for word in runner.argv if word.startswith("--unlock-key-file="))
    assert runner.files[unlock.partition("=")[2]] == key
    assert {
        "--tpm2-device=auto",
        "--tpm2-public-key=/run/key.pem",
        "--tpm2-public-key-pcrs=11",
        "--tpm2-pcrs=4+7",
        "--tpm2-pcrlock=",
        "--wipe-slot=0",
    } <= set(runner.argv)


def test_an_enrolment_without_a_signed_policy_says_so():
    runner = Recorder()
    volume.enrol_tpm2(
        runner,
        "/dev/x",
        unlock_key=bytearray(32),
        public_key=None,
        pcrs=(),
        pcrlock_policy="/run/pcrlock.json",
        wipe_keyslot=None,
    )
    assert {"--tpm2-public-key=", "--tpm2-pcrs=", "--tpm2-pcrlock=/run/pcrlock.json"} <= set(runner.argv)
    assert not [word for word in runner.argv if "public-key-pcrs" in word or "wipe-slot" in word]


def test_a_token_is_imported_as_canonical_json():
    runner = Recorder()
    volume.import_token(runner, "/dev/x", {"type": "cvm-fde", "keyslots": []})
    assert runner.stdin == b'{"keyslots":[],"type":"cvm-fde"}'
    assert json.loads(runner.stdin)["type"] == "cvm-fde"


def test_an_attach_uses_the_copy_of_the_header_and_never_asks():
    runner = Recorder()
    volume.attach(runner, "fde-crypt", "/dev/x", header="/run/header", signature="/run/s.json", volume_key_id="ab" * 32)
    assert runner.argv[:5] == ["/usr/bin/systemd-cryptsetup", "attach", "fde-crypt", "/dev/x", "-"]
    options = runner.argv[5].split(",")
    assert {"header=/run/header", "headless=yes", "tpm2-measure-pcr=yes", "fixate-volume-key=" + "ab" * 32} <= set(
        options
    )


def test_an_attach_without_a_signed_policy_or_measurement_asks_for_neither():
    runner = Recorder()
    volume.attach(runner, "data", "/dev/x", header="/run/header", signature=None, measure=False)
    assert "tpm2-signature" not in runner.argv[5] and "tpm2-measure-pcr" not in runner.argv[5]


@pytest.mark.parametrize("journal", [True, False])
def test_a_new_volume_is_opened_by_its_volume_key_and_told_about_its_journal(journal):
    runner = Recorder()
    key = bytearray(os.urandom(96))
    volume.attach_with_key(runner, "data", "/dev/x", header="/run/header", volume_key=key, journal=journal)
    assert runner.files[runner.after("--volume-key-file")] == key
    assert runner.after("--header") == "/run/header"
    assert ("--persistent" in runner.argv) is ("--integrity-no-journal" in runner.argv) is not journal


def test_a_volume_is_opened_by_a_secret_that_nobody_sees():
    runner = Recorder()
    secret = bytearray(b"correct horse battery staple")
    volume.attach_with_secret(runner, "data", "/dev/x", header="/run/header", secret=secret)
    assert runner.files[runner.after("--key-file")] == secret
    assert not any(secret.decode() in word for word in runner.argv)
    # A token in the header may not ask a plugin that is on the machine.
    assert "--disable-external-tokens" in runner.argv


@pytest.mark.parametrize("value", ["/run/a,key-slot=1", "/run/a b", "/run/a\n"])
def test_a_path_cannot_smuggle_an_option_in(value):
    with pytest.raises(ValueError, match="option list"):
        volume.attach(Recorder(), "fde-crypt", "/dev/x", header=value, signature="/run/s.json")


def test_a_missing_systemd_cryptsetup_is_named():
    with pytest.raises(MissingProgram, match="systemd-cryptsetup"):
        volume.detach(Recorder(programs=()), "fde-crypt")


def test_a_memory_file_is_overwritten_when_it_is_no_longer_needed():
    secret = bytearray(b"secret")
    with memory_file(secret) as descriptor:
        kept = os.dup(descriptor)
    assert os.pread(kept, 100, 0) == bytes(6)
    os.close(kept)
    assert secret == b"secret"
    wipe(secret)
    assert secret == bytes(6)
