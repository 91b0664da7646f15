# SPDX-License-Identifier: Apache-2.0
"""Many servers share the same addresses for outgoing traffic, by slices of source ports, without NAT."""
