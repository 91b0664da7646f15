# SPDX-License-Identifier: Apache-2.0
"""BGP by somebody else's daemon: what is announced, and how BIRD is told."""
