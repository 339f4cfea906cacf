# SPDX-License-Identifier: GPL-3.0-or-later
# What a person or a machine does with this project. Everything that is built lies in build/ and .venv/.

LAB := tests/lab/lab
PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
# Images, device-mapper and guests need root.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo -E)
# Builds the tree of tools when it is missing, and names it to what follows.
WITH_TOOLS := tree="$$($(LAB) tools)" && export FDE_TOOLS_TREE="$$tree" &&
APT := $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -q
# The newest Python that the machine has.
HOST_PYTHON := $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(name) -c 'import sys; sys.version_info >= (3, 11) and print("$(name)")' 2>/dev/null)))

# What 'make test' is made of, in this order: the quick parts first.
PARTS := lint sanity unit integration attacks crash hostile e2e

# The whole boots among them: what a TPM holds when a kernel starts, one attack, and two instances.
BOOTS := tests/e2e/test_reference_values.py tests/e2e/test_disk.py::test_a_signed_add_on_is_refused \
	tests/e2e/test_attestation.py

.PHONY: help setup demo test more-e2e molecule crash clean crash-boots crash-matrix fuzz $(PARTS)

help: ## say what there is
	@sed -n 's/^\([a-z0-9-]*\):.* ## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## install the Debian packages and the virtual environment that are missing
	$(if $(HOST_PYTHON),,@echo "setup: installing python3"; $(APT) update && $(APT) install --yes python3)
	@$(or $(HOST_PYTHON),python3) tests/lab/setup.py

demo: setup ## seal an image, boot two guests from it, attest them, show the fleet
	@$(LAB) demo

test: setup ## run all tests
	@tests/all.sh $(PARTS)

lint: setup ## check style and types
	@tests/lint.sh

sanity: setup ## run ansible-test sanity on the archive as it is shipped
	@tests/sanity.sh

unit: setup ## test the parts, with a software TPM where one is needed
	$(WITH_TOOLS) $(PYTEST) tests/unit tests/fuzz

integration: setup ## test with real device-mapper in a User-mode Linux guest
	$(WITH_TOOLS) $(SUDO) $(PYTEST) tests/integration

attacks: setup ## attack the boot agent and the verifier, and systemd as it comes, and see what stops it
	$(WITH_TOOLS) $(SUDO) $(PYTEST) tests/attacks

crash: setup ## cut the power at a sample of the moments of a machine's life
	$(WITH_TOOLS) $(SUDO) $(PYTEST) tests/crash

crash-matrix: setup ## cut the power behind every write barrier, and print as the last line what came of it
	@$(WITH_TOOLS) $(SUDO) $(PYTHON) -m tests.crash.matrix

crash-boots: setup ## cut the power of whole machines in QEMU, at twelve moments from the first boot to a complete root
	$(SUDO) $(PYTHON) -m tests.crash.whole

fuzz: setup ## fuzz every parser of what strangers send (FUZZ_SECONDS each, 60)
	@$(PYTHON) -c 'import atheris' 2>/dev/null || $(PYTHON) -m pip --quiet install atheris
	@$(PYTHON) -m tests.fuzz --seconds $(or $(FUZZ_SECONDS),60)

hostile: setup ## attest ssh hosts that flood, stall, lie and replay
	$(SUDO) $(PYTEST) tests/hostile

e2e: setup ## test whole boots in QEMU: reference values, an attack, two instances, their attestation and enrolment
	$(SUDO) $(PYTEST) $(BOOTS)

more-e2e: setup ## test all whole boots: also changed disks, every strategy, recovery, the end of a clone, data volumes (an hour)
	$(SUDO) $(PYTEST) tests/e2e

molecule: setup ## run every scenario of Molecule, as somebody who tries the roles does
	$(SUDO) env PATH="$(CURDIR)/.venv/bin:$$PATH" molecule test --all

clean: ## stop the guests and delete everything that was built
	@test ! -x $(PYTHON) || $(LAB) down --delete
	$(SUDO) rm -rf --one-file-system build .venv
