# SPDX-License-Identifier: Apache-2.0
"""What local programs ask a running agent, over its unix socket: docs/api.md."""
