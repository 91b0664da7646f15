# SPDX-License-Identifier: Apache-2.0
"""What the proxy's protocols say, without any I/O.

    client bytes --> front --> [PROXY header] --> socks5 | http1 --> commands for whoever holds the sockets

A layer takes events (messages.Event: bytes came, the upstream connection stands or failed) and gives commands
(messages.Command: send these bytes to the client, connect there, relay from now on, close). It knows no
socket, clock or configuration file; who may pass is asked through `Accounts`. So every conversation can be
written down as a test: `<< command`, `>> event`. The manner is mitmproxy's layers and h11's.
"""
