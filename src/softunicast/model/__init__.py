# SPDX-License-Identifier: Apache-2.0
"""The pure model: addresses, slices, plan, allocation, bindings. No I/O, no clock, no randomness."""
