# SPDX-License-Identifier: Apache-2.0
"""The agent: one a node, root. It reconciles plan and bindings into the kernel; the data plane lives on
without it."""
