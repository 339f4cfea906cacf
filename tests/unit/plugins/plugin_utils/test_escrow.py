# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The control node keeps envelopes so that none is lost, or hands them to a lookup plugin and asks for them back."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import lookup_loader
from ansible.template import Templar
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.escrow.envelope import Belonging
from ansible_collections.cvm.fde.plugins.plugin_utils.escrow import Envelope, hand_over, keep
from ansible_collections.cvm.fde.plugins.plugin_utils.lookup import user_lookup

UUID = "6a2f0e55-5b7e-4d0e-9d59-1c2f35e7a003"


def _envelope(content: bytes = b"\x30 sealed", host: str = "db1", volume: str = "data") -> Envelope:
    return Envelope(Belonging(host, volume, UUID), content)


def test_an_envelope_is_a_file_that_only_its_owner_reads(tmp_path):
    folder = tmp_path / "new" / "escrow"
    kept = keep(str(folder), _envelope())
    target = folder / f"db1-data-{UUID}.cms"
    assert (kept.place, kept.changed, kept.older) == (str(target), True, None)
    assert target.read_bytes() == b"\x30 sealed"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert os.listdir(folder) == [target.name]
    assert not keep(str(folder), _envelope()).changed


def test_an_older_envelope_is_never_lost(tmp_path):
    first, second = keep(str(tmp_path), _envelope(b"one")), keep(str(tmp_path), _envelope(b"two"))
    third = keep(str(tmp_path), _envelope(b"three"))
    assert first.older is None
    assert [Path(path).read_bytes() for path in (second.older, third.older, third.place)] == [b"one", b"two", b"three"]
    assert keep(str(tmp_path), _envelope(b"one")).changed
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [b"one", b"one", b"three", b"two"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "..", "a\0b", "ü", "-"])
def test_no_name_leaves_the_directory(tmp_path, name):
    kept = keep(str(tmp_path / "escrow"), _envelope(host=name, volume=name))
    assert os.path.dirname(kept.place) == str(tmp_path / "escrow")
    assert os.listdir(tmp_path) == ["escrow"]


@pytest.mark.parametrize(
    ("one", "other"),
    [(("db", "1-data"), ("db-1", "data")), (("db-1", "2"), ("db", "1-2")), (("a%2Db", "c"), ("a", "b-c"))],
)
def test_no_two_volumes_have_an_envelope_of_the_same_name(one, other):
    assert _envelope(host=one[0], volume=one[1]).name != _envelope(host=other[0], volume=other[1]).name


@pytest.mark.parametrize(
    "uuid", ["", "root", UUID.upper(), UUID + "\n", "../" + UUID[3:], UUID.replace("-", ""), "data-" + UUID]
)
def test_an_envelope_has_the_uuid_of_a_header_or_none_at_all(uuid):
    with pytest.raises(FdeError, match="it says that the UUID"):
        Envelope(Belonging("db1", "data", uuid), b"")


def test_a_directory_that_cannot_be_written_is_an_error_for_the_user(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FdeError, match="cannot be stored"):
        keep(str(tmp_path / "file"), _envelope())


def test_a_write_that_fails_leaves_the_older_envelope(tmp_path, monkeypatch):
    kept = keep(str(tmp_path), _envelope(b"one"))

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(FdeError, match="No space left"):
        keep(str(tmp_path), _envelope(b"two"))
    assert Path(kept.place).read_bytes() == b"one"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_a_disk_that_does_not_keep_what_is_written_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda source, target: target.write_bytes(b"other"))
    with pytest.raises(FdeError, match="reads back otherwise"):
        keep(str(tmp_path), _envelope())


class Vault:
    """A store with the interface of a lookup plugin."""

    def __init__(self, *, strict=False, keeps=True):
        self.stored, self.calls, self._strict, self._keeps = {}, [], strict, keeps

    def __call__(self, plugin, terms, options):
        self.calls.append((plugin, list(terms), dict(options)))
        if "escrow" in options:
            if self._keeps:
                self.stored[terms[0]] = options["escrow"]
            return ["stored"]
        if self._strict and terms[0] not in self.stored:
            raise KeyError(terms[0])
        return [self.stored[terms[0]]] if terms[0] in self.stored else []


@pytest.mark.parametrize("strict", [False, True], ids=["answers with nothing", "fails for what it has not"])
def test_a_lookup_plugin_stores_the_envelope_and_gives_it_back(strict):
    vault = Vault(strict=strict)
    kept = hand_over(vault, "acme.vault.keys", {"mount": "fde"}, _envelope())
    assert (kept.place, kept.changed) == (f"acme.vault.keys:db1-data-{UUID}.cms", True)
    (_asked, stored, _read) = vault.calls
    assert stored == (
        "acme.vault.keys",
        [f"db1-data-{UUID}.cms"],
        {
            "mount": "fde",
            "escrow": base64.b64encode(b"\x30 sealed").decode(),
            "host": "db1",
            "volume": "data",
            "luks_uuid": UUID,
        },
    )
    assert not hand_over(vault, "acme.vault.keys", {"mount": "fde"}, _envelope()).changed


def test_a_plugin_that_forgets_the_envelope_is_found_out():
    with pytest.raises(FdeError, match="reads back otherwise"):
        hand_over(Vault(keeps=False), "acme.vault.keys", {}, _envelope())


def test_a_plugin_that_fails_is_named():
    def broken(plugin, terms, options):
        raise RuntimeError("permission denied")

    with pytest.raises(FdeError, match="acme.vault.keys.*permission denied"):
        hand_over(broken, "acme.vault.keys", {}, _envelope())


def test_options_cannot_stand_in_for_what_the_plugin_is_given():
    with pytest.raises(FdeError, match="escrow, host"):
        hand_over(Vault(), "acme.vault.keys", {"host": "x", "escrow": "y"}, _envelope())


PLUGIN = """
import os
from ansible.plugins.lookup import LookupBase

class LookupModule(LookupBase):
    def run(self, terms, variables=None, directory=None, escrow=None, **metadata):
        path = os.path.join(directory, terms[0])
        if escrow is not None:
            with open(path, "w") as file:
                file.write(escrow)
            return [path]
        if not os.path.exists(path):
            return []
        with open(path) as file:
            return [file.read()]
"""


def test_a_real_lookup_plugin_is_run_as_a_task_runs_it(tmp_path):
    (tmp_path / "fde_test_escrow.py").write_text(PLUGIN)
    lookup_loader.add_directory(str(tmp_path))
    loader = DataLoader()
    lookup = user_lookup(loader, Templar(loader), {})
    kept = hand_over(lookup, "fde_test_escrow", {"directory": str(tmp_path)}, _envelope())
    assert kept.changed
    assert (tmp_path / f"db1-data-{UUID}.cms").read_text() == base64.b64encode(b"\x30 sealed").decode()
    with pytest.raises(FdeError, match="no such lookup plugin"):
        hand_over(lookup, "acme.nothing.here", {}, _envelope())
