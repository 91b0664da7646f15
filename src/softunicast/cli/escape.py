# SPDX-License-Identifier: Apache-2.0
"""`softunicast escape`: why forwarded packets do not go through the host's own stack, told by one's own kernel.

Each step builds namespaces, does an experiment with real packets, compares what it saw with what was expected, and
takes everything down again. Exit status 1 when something was not as expected.
"""

from __future__ import annotations

import signal
import sys

import click

from softunicast.cli.output import write_json
from softunicast.errors import UsageError
from softunicast.lab import build


@click.command()
@click.option("--step", "numbers", type=int, multiple=True, metavar="N", help="Only this step; may be repeated.")
@click.option("--list", "only_list", is_flag=True, help="List the steps and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON when all is done.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Write what docs/strategies.md holds when all is done.")
def escape(numbers: tuple[int, ...], only_list: bool, as_json: bool, as_markdown: bool) -> None:
    """Ten years of ways to share a host's address with forwarded packets, each as an experiment on this kernel.

    Exit status 1 when something seen is not what was expected.
    """
    from softunicast.lab.escape import pages
    from softunicast.lab.escape.steps import STEPS

    if as_json and as_markdown:
        raise UsageError("escape: --json and --markdown exclude each other; choose one")
    by_number = {step.number: step for step in STEPS}
    for number in numbers:
        if number not in by_number:
            raise UsageError(f"escape: no step {number}; there are 1 to {len(STEPS)}, see `softunicast escape --list`")
    if only_list:
        for step in STEPS:
            click.echo(f"{step.number:2}  {step.name:14}  {step.title}")
        return
    build.check_tools(("ip", "nsenter", "nft", "curl"))
    talks = not (as_json or as_markdown)

    def say(line: str) -> None:
        if talks:
            click.echo(f"  {line}")

    done = []
    # Ended by a signal or not, a step takes its namespaces down.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        for step in STEPS:
            if numbers and step.number not in numbers:
                continue
            if talks:
                click.echo(f"\n{step.number}. {step.title}\n{step.tried}\n")
            done.append(step.perform(say))
    finally:
        signal.signal(signal.SIGTERM, before)
    if as_json:
        write_json(pages.as_json(done))
    elif as_markdown:
        click.echo(pages.markdown(done), nl=False)
    else:
        _verdict([(notes.number, check.what) for notes in done for check in notes.checks if not check.ok])
    click.get_current_context().exit(0 if all(notes.ok for notes in done) else 1)


def _verdict(wrong: list[tuple[int, str]]) -> None:
    click.echo("")
    for number, what in wrong:
        click.echo(f"not as expected, step {number}: {what}")
    if not wrong:
        click.echo("all as expected")
