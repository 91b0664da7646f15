# SPDX-License-Identifier: Apache-2.0
"""The pure model: addresses, slices, the plan, its allocation and the bindings. No I/O, no clock, no randomness."""
