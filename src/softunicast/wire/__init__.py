# SPDX-License-Identifier: Apache-2.0
"""Packets as bytes: reading, checking and making them. Pure: no sockets, no clocks."""
