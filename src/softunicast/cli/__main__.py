# SPDX-License-Identifier: Apache-2.0
"""`python -m softunicast.cli`."""

from softunicast.cli.main import main

main()
