# SPDX-License-Identifier: Apache-2.0
"""Measures the data plane beside what one would use instead: `make bench`, or `python -m bench` as root.

Everything runs in namespaces made here, in one run, in interleaved rounds; ratios are paired within a round, because
a machine's speed drifts. Nothing leaves the machine and nothing stays on it.

    forward   a forwarded packet: bare tc redirects, routing, nftables SNAT, fish
    crowded   a new forwarded flow when the slice is 50, 90, 99 % used towards its destination
    dialing   socket, connect, close: plain and in a slice that is 0, 50, 90, 99 % used
    steering  a packet through su_steer and su_steer_tc, over an empty program
"""
