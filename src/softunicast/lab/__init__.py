# SPDX-License-Identifier: Apache-2.0
"""A fleet in network namespaces: two nodes, a router, an internet, clients; a checker at the router; a
demonstration.
"""
