# SPDX-License-Identifier: Apache-2.0
"""python -m bench [--rounds N] [--write FILE]"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from bench import carried, dialing, forward, library, limits, report, steering, tables, tools
from softunicast.errors import SoftunicastError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the data plane beside its peers.")
    parser.add_argument("--rounds", type=int, default=7, help="of each case, interleaved (default %(default)s)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the report there instead of on stdout")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("namespaces and programs need root")
    if arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    started = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - started:5.0f} s  {what}", file=sys.stderr, flush=True)

    try:
        with tempfile.TemporaryDirectory() as folder:
            helpers = tools.compile_helpers(Path(folder))
            say("forwarded packets")
            forwarded = forward.measure(helpers, arguments.rounds)
            profile = forward.profile(helpers)
            say("new flows in a crowded slice")
            crowded = forward.measure_crowded(helpers, max(1, arguments.rounds // 2))
            say("a million flows, a refused flood")
            million = limits.measure_million(helpers)
            flood = limits.measure_flood(helpers, arguments.rounds)
            say("sockets")
            dialed = dialing.measure(helpers, arguments.rounds)
            say("the Python library")
            called = library.measure(helpers, max(1, arguments.rounds // 2))
            say("steering")
            steered = steering.measure(helpers, arguments.rounds)
            sized = steering.measure_sizes(helpers, arguments.rounds)
            say("a fleet's tables")
            filled = tables.measure(arguments.rounds)
            say("streams through the wrong site")
            streams = carried.measure(arguments.rounds)
    except (OSError, RuntimeError, SoftunicastError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - started
    results = report.Results(
        arguments.rounds,
        seconds,
        forwarded,
        crowded,
        profile,
        million,
        flood,
        dialed,
        called,
        steered,
        sized,
        filled,
        streams,
    )
    text = report.markdown(results)
    if arguments.write is None:
        print(text)
        return 0
    new = arguments.write.with_name(arguments.write.name + ".new")
    new.write_text(text)
    new.replace(arguments.write)
    say(f"written: {arguments.write}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
