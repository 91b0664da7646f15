# SPDX-License-Identifier: Apache-2.0
"""How a socket of a program that chooses for itself gets into a slice: the choice, the four ways, the tries. No I/O
loop of any kind in here; `softunicast.client` has those."""
