# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of luks2_volume: what they mean, what cannot be meant, and that no secret is ever shown."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.cvm.fde.plugins.action.luks2_volume import OPTIONS
from ansible_collections.cvm.fde.plugins.module_utils.errors import FdeError
from ansible_collections.cvm.fde.plugins.module_utils.luks2.method import Passphrase, Recovery, Tpm2
from ansible_collections.cvm.fde.plugins.module_utils.volume.options import ARGUMENTS, secrets_of, wanted_volumes
from ansible_collections.cvm.fde.plugins.module_utils.volume.wanted import State, Wanted, check_all
from ansible_collections.cvm.fde.plugins.modules import luks2_volume

DEVICE = "/dev/disk/by-id/virtio-DATA1"


def wanted(*volumes: dict[str, Any], **options: Any) -> tuple[Wanted, ...]:
    """Return what the module would understand, after Ansible's own checks."""
    given = [{"name": "data", "device": DEVICE, "unlock": [{"method": "tpm2"}], **one} for one in volumes]
    result = ArgumentSpecValidator(dict(ARGUMENTS)).validate({"volumes": given, **options})
    assert not result.error_messages, result.error_messages
    made = wanted_volumes(result.validated_parameters)
    check_all(made)
    return made


MOUNT = {"mount": {"path": "/srv/data"}}


def test_the_defaults_are_an_authenticated_ext4_that_the_tpm_unlocks_at_boot() -> None:
    [one] = wanted(MOUNT)
    assert (one.profile.name, one.file_system.value, one.journal, one.wipe) == ("authenticated", "ext4", True, True)
    assert (one.state, one.boot, one.nofail, one.unlock) == (State.MOUNTED, True, True, (Tpm2((7,)),))


@pytest.mark.parametrize(
    ("options", "journal", "wipe"),
    [
        ({"file_system": "ext4"}, True, True),
        ({"file_system": "xfs"}, True, True),
        ({"file_system": "btrfs"}, True, True),
        ({"file_system": "ext4", "profile": "aegis"}, True, True),
        ({"file_system": "none", "mount": None}, True, True),
        ({"file_system": "btrfs", "journal": "never", "wipe": "always"}, False, True),
        ({"file_system": "xfs", "wipe": "never"}, True, False),
        ({"file_system": "ext4", "wipe": "never"}, True, False),
        ({"file_system": "btrfs", "profile": "confidential"}, True, False),
        ({"file_system": "xfs", "profile": "confidential"}, True, False),
    ],
)
def test_volumes_have_a_journal_and_are_wiped_where_they_are_authenticated(
    options: dict[str, Any], journal: bool, wipe: bool
) -> None:
    [one] = wanted({**MOUNT, **options})
    assert (one.journal, one.wipe) == (journal, wipe)


@pytest.fixture(scope="module")
def certificate() -> str:
    """A certificate that may receive recovery keys, in PEM."""
    return pem("openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=escrow -keyout /dev/null -out /dev/stdout")


@pytest.fixture(scope="module")
def public_key() -> str:
    """The public key of somebody who signs PCR policies, in PEM."""
    return pem("openssl genrsa 2048 | openssl pkey -pubout")


def pem(command: str) -> str:
    return subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True).stdout


def test_every_unlock_method_is_understood(tmp_path: Any, certificate: str, public_key: str) -> None:
    (tmp_path / "key.pem").write_text(public_key)
    unlock = [
        {"method": "tpm2", "pcrs": [7, 4]},
        {"method": "tpm2", "pcrs": [], "public_key": str(tmp_path / "key.pem")},
        {"method": "tpm2", "pcrlock": True},
        {"method": "recovery"},
        {"method": "passphrase", "passphrase": "a long passphrase"},
    ]
    [one] = wanted({**MOUNT, "unlock": unlock}, certificates=[certificate])
    assert one.unlock == (
        Tpm2((4, 7)),
        Tpm2((), public_key.encode()),
        Tpm2((7,), pcrlock=True),
        Recovery(),
        Passphrase(),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no mount point"),
        ({**MOUNT, "name": "Data"}, "lower-case"),
        ({**MOUNT, "name": "a-b"}, "lower-case"),
        ({**MOUNT, "name": "../etc/passwd"}, "lower-case"),
        ({**MOUNT, "name": ".."}, "lower-case"),
        ({**MOUNT, "name": ""}, "lower-case"),
        ({**MOUNT, "name": "a" * 33}, "lower-case"),
        ({**MOUNT, "name": "data\n"}, "lower-case"),
        ({**MOUNT, "name": "control"}, "use for themselves"),
        ({**MOUNT, "name": "data_dif"}, "use for themselves"),
        ({**MOUNT, "device": "/etc/passwd"}, "below /dev"),
        ({**MOUNT, "device": "/dev/vdb,none"}, "not a plain path"),
        ({"mount": {"path": "/srv/a b"}}, "not a plain absolute path"),
        ({"mount": {"path": "/srv/../etc"}}, "not a plain absolute path"),
        ({"mount": {"path": "/"}}, "not a plain absolute path"),
        ({"mount": {"path": "//"}}, "not a plain absolute path"),
        ({"mount": {"path": "/./"}}, "not a plain absolute path"),
        ({"mount": {"path": "srv/data"}}, "not a plain absolute path"),
        ({"mount": {"path": "/srv//data"}}, "'/srv//data' is to be written '/srv/data'"),
        ({"mount": {"path": "//srv/data"}}, "'//srv/data' is to be written '/srv/data'"),
        ({"mount": {"path": "/srv/./data"}}, "'/srv/./data' is to be written '/srv/data'"),
        ({"mount": {"path": "/srv/data/"}}, "'/srv/data/' is to be written '/srv/data'"),
        ({"mount": {"path": "/srv", "options": ["noexec defaults"]}}, "cannot hold"),
        ({"mount": {"path": "/srv", "options": ["a,b"]}}, "cannot hold"),
        ({**MOUNT, "file_system": "none"}, "no file system"),
        ({**MOUNT, "unlock": []}, "nothing would unlock it"),
        ({**MOUNT, "unlock": [{"method": "tpm2"}, {"method": "tpm2"}]}, "listed twice"),
        ({**MOUNT, "unlock": [{"method": "tpm2", "pcrs": []}]}, "every state of the machine"),
        ({**MOUNT, "unlock": [{"method": "tpm2", "pcrs": [24]}]}, "0 to 23"),
        ({**MOUNT, "unlock": [{"method": "recovery"}]}, "known to nobody"),
        ({**MOUNT, "unlock": [{"method": "passphrase"}]}, "a passphrase is needed"),
        ({**MOUNT, "unlock": [{"method": "tpm2", "passphrase": "x"}]}, "a passphrase is needed"),
        ({**MOUNT, "unlock": [{"method": "tpm2", "public_key": "/nowhere.pem"}]}, "cannot be read"),
        (
            {"mount": {"path": "/var"}, "unlock": [{"method": "tpm2", "pcrlock": True}]},
            "'/var/lib/systemd/pcrlock.json' is read, which would lie on it",
        ),
        ({**MOUNT, "profile": "confidential", "journal": "never"}, "belong to authenticated"),
        ({**MOUNT, "label": "a/b"}, "label"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FdeError, match=message):
        wanted(options)


#: What would otherwise be noticed when the device is overwritten already.
NO_KEYS = {
    "garbage": "echo garbage",
    "nothing": "true",
    "half a key": "openssl genrsa 2048 2>/dev/null | openssl pkey -pubout | head -n 4",
    "a private key": "openssl genrsa 2048 2>/dev/null",
    "a key that no TPM takes": "openssl genrsa 1024 2>/dev/null | openssl pkey -pubout",
    "a kind that systemd does not verify": "openssl ecparam -name prime256v1 -genkey | openssl pkey -pubout",
    "two keys": "for n in 1 2; do openssl genrsa 2048 2>/dev/null | openssl pkey -pubout; done",
}


@pytest.mark.parametrize("command", NO_KEYS.values(), ids=NO_KEYS)
def test_a_public_key_that_verifies_nothing_is_refused_at_once(tmp_path: Any, command: str) -> None:
    (tmp_path / "key.pem").write_text(pem(command))
    with pytest.raises(FdeError, match="verifies no signed PCR policy|cannot be read|TPM"):
        wanted({**MOUNT, "unlock": [{"method": "tpm2", "public_key": str(tmp_path / "key.pem")}]})


NO_CERTIFICATES = {
    "garbage": "echo garbage",
    "a weak key": "openssl req -x509 -newkey rsa:1024 -nodes -subj /CN=x -keyout /dev/null -out /dev/stdout",
    "a key that only signs": "openssl req -x509 -newkey ed25519 -nodes -subj /CN=x -keyout /dev/null -out /dev/stdout",
    "a private key as well": "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=x -keyout /dev/stdout",
}


@pytest.mark.parametrize("command", NO_CERTIFICATES.values(), ids=NO_CERTIFICATES)
def test_a_certificate_that_receives_nothing_is_refused_at_once(certificate: str, command: str) -> None:
    unlock = [{"method": "recovery"}]
    wanted({**MOUNT, "unlock": unlock}, certificates=[certificate])
    with pytest.raises(FdeError, match="escrow certificate cannot receive"):
        wanted({**MOUNT, "unlock": unlock}, certificates=[certificate, pem(command)])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"name": "data", "device": "/dev/vdc", "mount": {"path": "/b"}}, "name 'data'"),
        ({"name": "b", "mount": {"path": "/b"}}, "device"),
        ({"name": "b", "device": "/dev/vdc", **MOUNT}, "mount point"),
    ],
)
def test_two_volumes_share_nothing(other: dict[str, Any], message: str) -> None:
    with pytest.raises(FdeError, match=f"two volumes have the {message}"):
        wanted(MOUNT, other)


def leaves(spec: dict[str, Any], documented: dict[str, Any]) -> Any:
    for name, option in spec.items():
        yield name, option, documented[name]
        if "options" in option:
            yield from leaves(option["options"], documented[name]["suboptions"])


def test_the_documentation_has_the_options_that_a_user_has_and_their_defaults() -> None:
    documented = yaml.safe_load(luks2_volume.DOCUMENTATION)["options"]
    assert set(documented) == set(ARGUMENTS) and set(OPTIONS) < set(ARGUMENTS)
    for name, option, told in leaves(OPTIONS, documented):
        assert set(option.get("options", ())) == set(told.get("suboptions", ())), name
        assert option.get("choices") == told.get("choices"), name
        assert option.get("default") == told.get("default"), name
        assert option.get("type", "str") == told["type"], name


def test_every_secret_is_marked_as_one() -> None:
    marked = [
        name
        for name, option, _told in leaves(OPTIONS, yaml.safe_load(luks2_volume.DOCUMENTATION)["options"])
        if option.get("no_log")
    ]
    assert sorted(marked) == ["passphrase", "passphrase", "recovery_key"]


def test_what_is_wanted_never_shows_a_secret() -> None:
    given = {
        **MOUNT,
        "unlock": [{"method": "passphrase", "passphrase": "first secret"}],
        "unlock_with": {"recovery_key": "second secret"},
    }
    [one] = wanted(given)
    assert "secret" not in repr(one)
    assert secrets_of([given]) == ["first secret", "second secret"]


ROLE = Path(__file__).parents[5] / "roles/volume/meta/argument_specs.yml"


def test_the_role_takes_what_the_module_takes() -> None:
    """Every option of the role's lists is the module's: its type, its choices, its default, whether it is a secret."""
    options = yaml.safe_load(ROLE.read_text())["argument_specs"]["main"]["options"]
    for name, of_role in (
        ("volumes", "volume_list"),
        ("escrow", "volume_escrow"),
        ("tpm2_device", "volume_tpm2_device"),
    ):
        compare(OPTIONS[name], options[of_role], of_role, outermost=True)


def compare(module: dict[str, Any], role: dict[str, Any], name: str, *, outermost: bool = False) -> None:
    words = ["choices", "elements", *(() if outermost else ("default", "required"))]
    assert [module.get(word) for word in words] == [role.get(word) for word in words], name
    assert module.get("type", "str") == role["type"], name
    assert bool(module.get("no_log")) is bool(role.get("no_log")), name
    inner = module.get("options", {})
    assert set(inner) == set(role.get("options", {})), name
    for option, spec in inner.items():
        compare(spec, role["options"][option], f"{name}.{option}")
