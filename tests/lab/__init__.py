# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab: confidential-VM stand-ins on one machine.

A guest is a QEMU machine with OVMF, Secure Boot under the lab's own keys and a software TPM whose endorsement key is
certified by the lab's own authority. Everything that is built lies in one folder, ``build/`` of the checkout, under a
name that contains the digest of its recipe, so that nothing is built twice.
"""
