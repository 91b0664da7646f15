# SPDX-License-Identifier: Apache-2.0
"""The root of the command line.

Verbs are found by module: `softunicast VERB` imports `softunicast.cli.VERB` and runs the click command of the
same name in it, so that `softunicast plan` does not pay for what `softunicast lab` imports.

Exit status: 0 done; 1 the kernel or the machine refused; 2 the plan, the bindings or the arguments are wrong
(then nothing was changed). Errors are one line on stderr, `softunicast: what, where, what to do next`; only a
kernel that lacks several things earns a line for each. A verb that runs another program (`run`) passes its
status on with `ctx.exit(status)`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from softunicast.errors import SoftunicastError

VERBS: Final[dict[str, str]] = {
    "plan": "Check a plan, allocate slices, write bindings.",
    "agent": "Reconcile this node's kernel with plan and bindings.",
    "run": "Run a program whose sockets use a pool's slices.",
    "policy": "Put a service or a cgroup into a pool, or show which are.",
    "proxy": "Serve SOCKS5 and HTTP clients from slices.",
    "slices": "Show the slices of this node and how full they are.",
    "flows": "Show who holds which flow.",
    "counters": "Show what the data plane counted.",
    "drops": "Show which packets were dropped, and why.",
    "onramp": "Add, list and remove on-ramps: where clients' packets come in.",
    "terminator": "End the TCP of terminated on-ramps; the agent starts it.",
    "peers": "Show the other nodes and which of them live.",
    "announce": "Announce this node's prefixes by BIRD, or drain it.",
    "explain": "Say what would happen to a packet, and why.",
    "lab": "A fleet in network namespaces, to try things in.",
    "escape": "Why packets do not go through the host's stack, told by your own kernel.",
}


class Verbs(click.Group):
    """A group whose commands are modules, imported only when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"softunicast.cli.{cmd_name}")
        command = getattr(module, cmd_name)
        if not isinstance(command, click.Command):
            raise TypeError(f"softunicast.cli.{cmd_name}.{cmd_name} is no click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # From the table, not from the modules: --help imports nothing.
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """--version. importlib.metadata would cost every other start 80 ms, hence only here."""
    if not wanted or ctx.resilient_parsing:
        return
    from importlib import metadata

    try:
        click.echo(f"softunicast, version {metadata.version('softunicast')}")
    except metadata.PackageNotFoundError:
        click.echo("softunicast, version 0 (not installed)")
    ctx.exit()


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def cli() -> None:
    """Many servers share the same addresses for their outgoing traffic, by slices of source ports."""


def _one_line(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split()).rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return message
    return f"{message}; see `{context.command_path} --help`"


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name) and return its exit status; never raises SystemExit
    itself."""
    try:
        result = cli.main(args=arguments, prog_name="softunicast", standalone_mode=False)
    except SoftunicastError as error:
        for line in str(error).splitlines():
            click.echo(f"softunicast: {line}", err=True)
        return error.exit_status
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        click.echo(f"softunicast: {_one_line(error)}", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # The reader (`| head`) left: quietly, and without a second complaint when the interpreter flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return result if isinstance(result, int) else 0


def main() -> None:
    """Entry point of the `softunicast` program."""
    sys.exit(run())
