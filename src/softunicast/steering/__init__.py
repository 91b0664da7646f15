# SPDX-License-Identifier: Apache-2.0
"""Steering: who owns an answer, and how it gets there."""
