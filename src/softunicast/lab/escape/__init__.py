# SPDX-License-Identifier: Apache-2.0
"""Why forwarded packets do not go through the host's own stack: each reason as an experiment, told by one's own kernel.

A host has an address, 198.51.100.10, and a slice of its ports. Its own sockets use them, and so do packets that
programs on it forward for others. Ten years of ways to let both live together exist; each step here builds network
namespaces, does one of them with real packets, shows what went over the wire and compares what was expected with
what was seen. Nothing here is used by the product; nothing but `softunicast escape` and tests import it.

    notes        what a step says: commands, packets, expectations, figures
    stage        the namespaces, captures, packets and sockets
    sockopts     the socket options that Python has no names for
    surgery      moving the local rule and putting it back
    mover        the programs between a client's device and the host's, and the userspace NAT of two strategies
    strategies   snat, ctnetlink, hold and softunicast, each whole
    contest      ten downloads and an eleventh, and what each costs
    steps        which there are
    pages        text, JSON and Markdown
"""
