"""The `lockstep` command line. Each command parses its arguments here and does its work in a module of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from lockstep.errors import LockstepError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Hourly, daily and live numbers from one change log, that provably agree.

    Everything a command writes lies under LOCKSTEP_HOME (default: ./data).
    """


def home() -> Path:
    """The data home: LOCKSTEP_HOME, or ./data."""
    return Path(os.environ.get("LOCKSTEP_HOME") or "data").resolve()


def main() -> None:
    """Run the command line; a mistake of the user's ends with its message and exit code 1, without a stack trace."""
    try:
        cli(standalone_mode=True)
    except LockstepError as e:
        click.echo(f"Error: {e}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
