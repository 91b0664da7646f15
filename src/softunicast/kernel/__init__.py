# SPDX-License-Identifier: Apache-2.0
"""Everything that touches Linux: BPF objects and maps, netlink, cgroups, namespaces, sysctls, devices."""
