"""The `lockstep` command line. Each command parses its arguments here and does its work in a module of its own."""

from __future__ import annotations

import dataclasses
import sys
from datetime import UTC, datetime

import click

from lockstep import show
from lockstep.errors import LockstepError
from lockstep.project import home


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Hourly, daily and live numbers from one change log, that provably agree.

    Everything a command writes lies under LOCKSTEP_HOME (default: ./data).
    """


@cli.command()
@click.option(
    "--at", metavar="TIME", help="Run as of this time (UTC, e.g. '2026-11-18 06:00'), for replays. Default: now."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--verbose", is_flag=True, help="Show SQLMesh's own output.")
def run(at: str | None, as_json: bool, verbose: bool) -> None:
    """Bring all figures up to date and reconcile them.

    Plans first if the home has no warehouse yet; then computes the hours that are sealed and the daily rebuild if one
    is due, and reads the receipts. Exit code 0 only if every model ran, every audit passed and all paths agree.

    \b
    Examples:
      lockstep run                          # what is due now, e.g. from cron, every hour
      lockstep run --at '2026-11-18 00:30'  # as if it were that time
    """
    from lockstep import operate

    result = operate.run(home(), parse_time(at), verbose)
    if as_json:
        show.json(
            {
                "planned": result.planned,
                "seconds": round(result.seconds, 1),
                "agrees": result.agrees,
                "failures": result.failures,
                "receipts": result.receipts,
            }
        )
    else:
        show.run(result)
    if not result.agrees:
        sys.exit(1)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def status(as_json: bool) -> None:
    """Show how far the log and the figures are: watermark, lag, sealed hours, quarantine, what is served.

    Exit code 1 if an event waits in quarantine or a domain is not served as its contract's mode asks.
    """
    from lockstep import operate

    result = operate.status(home())
    if as_json:
        show.json(result)
    else:
        show.status(result)
    if result["quarantined"] or any(d["mode"] == "live" and d["served_from"] != "live" for d in result["domains"]):
        sys.exit(1)


@cli.command()
@click.option("--domain", help="Only this domain.")
@click.option("--failed", is_flag=True, help="Only receipts that failed.")
@click.option("--last", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many, the newest.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def receipts(domain: str | None, failed: bool, last: int, as_json: bool) -> None:
    """List the receipts: the stored result of every reconciliation, oldest first.

    Exit code 1 if the last receipt of a domain failed.
    """
    from lockstep import contracts, operate

    if domain and domain not in contracts.load():
        raise LockstepError(f"There is no domain {domain}. The contracts have: {', '.join(contracts.load())}.")
    found = [r for r in operate.receipts(home()) if domain in (None, r["domain"])]
    newest = {r["domain"]: r for r in found}
    shown = [r for r in found if not failed or r["verdict"] != "passed"][-last:]
    if as_json:
        show.json(shown)
    else:
        show.receipts(shown)
    if any(r["verdict"] != "passed" for r in newest.values()):
        sys.exit(1)


@cli.command()
@click.argument("domain", required=False)
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many cells and keys."
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def explain(domain: str | None, limit: int, as_json: bool) -> None:
    """Say why a reconciliation or an audit failed: which cells, which keys, which change events, what kind of fault.

    Looks at every domain, or only at DOMAIN, with the models as the project's files have them: after a failed
    `sqlmesh plan dev` it explains that plan. Exit code 0 only if there is nothing to explain.
    """
    from lockstep import contracts
    from lockstep.explain import explain as diagnose

    loaded = contracts.load()
    if domain and domain not in loaded:
        raise LockstepError(f"There is no domain {domain}. The contracts have: {', '.join(loaded)}.")
    explanations = [diagnose(home(), c, limit) for c in loaded.values() if domain in (None, c.domain)]
    if as_json:
        show.json([dataclasses.asdict(e) for e in explanations])
    else:
        for explanation in explanations:
            show.explanation(explanation)
    if not all(e.is_clean for e in explanations):
        sys.exit(1)


def parse_time(text: str | None) -> datetime | None:
    """An ISO time in UTC, with or without an offset; None stays None."""
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise LockstepError(f"{text!r} is not a time. Write it like '2026-11-18 06:00' (UTC).") from None
    return at.astimezone(UTC).replace(tzinfo=None) if at.tzinfo else at


def main() -> None:
    """Run the command line; a mistake of the user's ends with its message and exit code 1, without a stack trace."""
    try:
        cli(standalone_mode=True)
    except LockstepError as e:
        click.echo(f"Error: {e}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
