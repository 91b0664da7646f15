# SPDX-License-Identifier: Apache-2.0
"""Packets in and out of slices: what the data plane is told, and what it tells."""
