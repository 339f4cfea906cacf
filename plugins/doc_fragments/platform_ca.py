# Copyright: (c) 2026, the cvm.fde authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The authorities of the clouds' platforms."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  platform_ca:
    description:
      - Files (PEM) with the authorities of each cloud's platform, on the control node, by the road that they count on.
        None counts on another road, so whoever vouches for TPMs cannot make up a chip.
      - Without those of a road no machine is better than V(unknown) on it.
    type: dict
    suboptions:
      gcp_ak_certificate:
        description: Google's root (C(EK/AK CA Root)) and its intermediate, for the road V(gcp-ak-certificate).
        type: list
        elements: path
        default: []
      azure_snp:
        description: AMD's roots (ARK), and its signing keys (ASK) where the machines do not send them, for the road
          V(azure-snp).
        type: list
        elements: path
        default: []
      azure_tdx:
        description: Intel's root (C(Intel SGX Root CA)), for the road V(azure-tdx).
        type: list
        elements: path
        default: []
      aws_nitrotpm:
        description: AWS's root (C(aws.nitro-enclaves)), for the road V(aws-nitrotpm).
        type: list
        elements: path
        default: []
"""
