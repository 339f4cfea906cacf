# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the attacks under ``inside`` in User-mode Linux, and keeps the document of all attacks true."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.cvm.fde.tests.attacks import catalogue, stock
from ansible_collections.cvm.fde.tests.integration import in_guest, uml

INSIDE = Path(__file__).resolve().parent / "inside"


@pytest.fixture(scope="session")
def guests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[in_guest.Guests]:
    if why := uml.missing():
        pytest.skip(why)
    with in_guest.Guests(INSIDE, in_guest.chosen(request, "test_attack"), tmp_path_factory) as found:
        yield found


@pytest.mark.parametrize("function", list(in_guest.functions(INSIDE)))
def test_attack(function: str, guests: in_guest.Guests) -> None:
    guests.check(function)


def test_the_document_is_what_the_tests_say() -> None:
    assert catalogue.DOCUMENT.read_text() == catalogue.document(), "run: python -m tests.attacks.catalogue"


def test_of_the_attacks_in_booted_guests_make_test_tries_the_one_that_the_document_says(
    attacks: list[catalogue.Attack],
) -> None:
    (boots,) = re.findall(r"^BOOTS := ((?:.*\\\n)*.*)", (catalogue.CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    booted = {f"{one.file}::{one.test}" for one in attacks if one.where == "booted guest"}
    tried = {one for one in booted if one in boots.split() or one.partition("::")[0] in boots.split()}
    assert tried == {"tests/e2e/test_disk.py::test_a_signed_add_on_is_refused"}


@pytest.fixture(scope="module")
def attacks() -> list[catalogue.Attack]:
    return list(catalogue.attacks())


@pytest.mark.parametrize("kind", list(catalogue.Kind))
def test_every_kind_of_attack_is_tried(kind: catalogue.Kind, attacks: list[catalogue.Attack]) -> None:
    assert [one for one in attacks if one.kind is kind]


Kind = catalogue.Kind
#: Where a heading names several attacks: each of them, and its test.
WITHIN = {
    (Kind.PRE_CREATED, "partition"): "test_an_empty_partition_that_waits_for_the_first_boot_is_refused",
    (Kind.PRE_CREATED, "volume"): "test_a_volume_that_waits_for_the_first_boot_is_refused",
    (Kind.DISKS, "added"): "test_a_partition_that_nobody_made_is_refused_later",
    (Kind.DISKS, "removed"): "test_a_missing_volume_is_refused",
    (Kind.DISKS, "copied"): "test_a_second_disk_with_the_same_ids_is_refused",
    (Kind.VERITY, "data"): "test_a_changed_block_of_the_image_is_an_error_and_not_other_data",
    (Kind.VERITY, "data, in a booted guest"): "test_a_changed_root_is_not_booted",
    (Kind.VERITY, "hashes"): "test_on_a_changed_hash_tree_no_volume_is_completed",
    (Kind.VERITY, "hashes, without a volume"): "test_an_ephemeral_instance_without_its_verified_root_is_refused",
    (Kind.VERITY, "another image"): "test_another_image_of_the_same_builder_is_never_put_below_a_volume",
    (Kind.VERITY, "root hash"): "test_another_root_hash_is_refused",
    (Kind.CONFIGURATION, "what is measured"): "test_what_the_host_adds_to_the_configuration_is_refused",
    (Kind.CONFIGURATION, "Secure Boot"): "test_without_secure_boot_nothing_is_made",
    (Kind.CONFIGURATION, "kernel image"): "test_a_changed_kernel_image_is_refused_by_secure_boot",
    (Kind.CONFIGURATION, "command line"): "test_words_that_the_host_adds_to_the_command_line_are_refused",
    (Kind.CONFIGURATION, "add-on"): "test_a_signed_add_on_is_refused",
    (Kind.CONFIGURATION, "credential"): "test_a_credential_beside_the_kernel_image_is_refused",
    (Kind.CONFIGURATION, "credential by SMBIOS"): "test_credentials_that_the_host_hands_to_systemd_have_no_effect",
    (Kind.CONFIGURATION, "extra file"): "test_a_system_extension_beside_the_kernel_image_is_refused",
    (Kind.ANCHOR, "deleted"): "test_a_deleted_anchor_is_refused",
    (Kind.ANCHOR, "redefined"): "test_an_anchor_of_another_key_is_refused",
    (Kind.OTHER_TPM, "another TPM"): "test_the_tpm_of_another_instance_is_refused",
    (Kind.OTHER_TPM, "another state"): "test_a_later_phase_gets_neither_key_nor_anchor",
    (Kind.EVIDENCE, "removed"): "test_a_header_without_its_evidence_is_refused",
    (Kind.EVIDENCE, "copied"): "test_evidence_of_another_instance_in_the_header_is_refused",
    (Kind.EVIDENCE, "removed, at the verifier"): "test_a_machine_without_evidence_is_not_trusted",
    (Kind.EVIDENCE, "copied, at the verifier"): "test_the_evidence_of_another_instance_is_refused",
    (Kind.EVIDENCE, "forged"): "test_evidence_forged_with_a_software_key_is_refused",
}


@pytest.mark.parametrize(("kind", "what"), WITHIN)
def test_every_attack_that_a_heading_names_is_tried(
    kind: catalogue.Kind, what: str, attacks: list[catalogue.Attack]
) -> None:
    assert WITHIN[kind, what] in {one.test for one in attacks if one.kind is kind}


def test_what_systemd_does_by_itself_is_what_the_document_says() -> None:
    """The document tells of one version of systemd.

    The mirror may have a newer one without a change of ours. What the document says is still true of the version that
    it names, so that is no failure: it is only not tried again.
    """
    if why := uml.missing():
        pytest.skip(why)
    tree, recorded = uml.tools_tree(), json.loads(catalogue.STOCK.read_text())
    assert tree is not None
    if (version := stock.version(tree)) != recorded["systemd"]:
        pytest.skip(f"recorded of systemd {recorded['systemd']}, not {version}; run: python -m tests.attacks.stock")
    assert stock.measured(tree) == recorded, "run: python -m tests.attacks.stock"


def test_every_test_in_this_folder_that_runs_in_a_guest_is_an_attack(attacks: list[catalogue.Attack]) -> None:
    listed = {f"{Path(one.file).name}::{one.test}" for one in attacks if "tests/attacks/inside" in one.file}
    assert listed == set(in_guest.functions(INSIDE))
