# SPDX-License-Identifier: Apache-2.0
"""The terminating proxy: SOCKS5, HTTP CONNECT, plain HTTP and PROXY protocol in; sockets in slices out."""
