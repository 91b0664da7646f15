# SPDX-License-Identifier: Apache-2.0
"""The library for programs that choose their slices: docs/library.md. `import softunicast` finds its names here."""
