"""The `lockstep` command line. Each command parses its arguments here and does its work in a module of its own."""

from __future__ import annotations

import dataclasses
import re
import sys
from datetime import UTC, datetime

import click

from lockstep import show
from lockstep.errors import LockstepError
from lockstep.project import home

_LIVE_RATE = 50


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


@cli.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--complete", is_flag=True, help="The input is whole: its end ends every transaction whose END record has not come."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def ingest(files: tuple[str, ...], complete: bool, as_json: bool) -> None:
    """Land Debezium change events from files of JSON lines, plain or gzip; - is standard input.

    Several files are read as one stream, in the order given. Events may be bare envelopes, wrapped in schema and
    payload, with their keys (key, tab, value; or {"key", "value"}) or as `kcat -J` prints them. What has landed before
    is not landed twice, so anything may be given again. An event that breaks the landing contract goes to quarantine.

    Exit code 0 if everything landed or was known; 1 if something went to quarantine or the input could not be read
    to its end. After a crash, or exit code 1 with another message, give the same input again.

    \b
    Examples:
      lockstep ingest shop.jsonl.gz
      lockstep ingest 2026-11-18/*.jsonl 2026-11-19/*.jsonl
      kcat -C -b broker -t shop.orders -e -J | lockstep ingest -
    """
    from lockstep import ingest as landing

    summary = landing.ingest(home(), files, ends_transactions=complete, progress=show.progress)
    if as_json:
        show.json(summary.as_row())
    else:
        show.ingested(summary)
    if summary.problem:
        raise LockstepError(summary.problem)
    if summary.quarantined:
        raise LockstepError(
            f"{summary.quarantined:,} events went to quarantine; the rest has landed. "
            "`lockstep quarantine list` shows them with their reasons."
        )


@cli.group()
def quarantine() -> None:
    """Look at events that broke the landing contract, and decide about them.

    Each is kept whole, at the position it would have had. Until it is retried or discarded, no hour of its table from
    there on can seal (of no table, if its table is unknown), so that no figure is computed over a hole.
    """


_STATES = click.Choice(["open", "landed", "discarded", "all"])
_POSITIONS = click.argument("positions", nargs=-1, type=click.IntRange(min=1), metavar="[POSITION]...")


@quarantine.command("list")
@click.option("--state", type=_STATES, default="open", show_default=True, help="Only events in this state.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON, with the whole events.")
def quarantine_list(state: str, as_json: bool) -> None:
    """List quarantined events with their reasons. Exit code 1 if an event is open."""
    from lockstep.quarantine import entries

    found = entries(home())
    shown = [e for e in found if state in ("all", e["state"])]
    if as_json:
        show.json(shown)
    else:
        show.quarantined(shown)
    if any(e["state"] == "open" for e in found):
        sys.exit(1)


@quarantine.command("show")
@click.argument("position", type=click.IntRange(min=1))
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def quarantine_show(position: int, as_json: bool) -> None:
    """Show the whole event at POSITION, and why it is in quarantine. Exit code 1 if it is open."""
    from lockstep.quarantine import entries

    (entry,) = entries(home(), [position])
    if as_json:
        show.json(entry)
    else:
        show.quarantined_event(entry)
    if entry["state"] == "open":
        sys.exit(1)


@quarantine.command("retry")
@_POSITIONS
@click.option("--all", "all_open", is_flag=True, help="All open events.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def quarantine_retry(positions: tuple[int, ...], all_open: bool, as_json: bool) -> None:
    """Read open events again by the rules of this version; those that pass land at the positions kept for them.

    Helps after an upgrade of lockstep or of its source schema; the event itself is never changed. Exit code 1 if an
    event still fails.
    """
    from lockstep.quarantine import retry

    result = retry(home(), _chosen(positions, all_open))
    if as_json:
        show.json({"landed": result.landed, "failed": result.failed})
    else:
        show.retried(result)
    if result.failed:
        sys.exit(1)


@quarantine.command("discard")
@_POSITIONS
@click.option("--all", "all_open", is_flag=True, help="All open events.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def quarantine_discard(positions: tuple[int, ...], all_open: bool, yes: bool) -> None:
    """Give up open events for good, so that the hours they hold can seal. This cannot be undone.

    Figures from then on lack whatever the events said. If the source can send a row again (an update that changes
    nothing is enough), have it do so first.
    """
    from lockstep.quarantine import discard

    chosen = _chosen(positions, all_open)
    if chosen and not yes:
        click.confirm(f"Discard {len(chosen):,} events for good?", abort=True)
    discard(home(), chosen)
    click.echo(f"Discarded {len(chosen):,} events.")


def _chosen(positions: tuple[int, ...], all_open: bool) -> list[int]:
    """The positions a command shall work on: those named, or those of all open events."""
    from lockstep.quarantine import entries

    if bool(positions) == all_open:
        raise LockstepError("Name the positions of the events (`lockstep quarantine list`), or use --all.")
    return [e["position"] for e in entries(home(), positions, "open" if all_open else None)]


@cli.command()
@click.option("--seed", type=click.IntRange(min=0), help="Draws another company.  [default: 7]")
@click.option("--days", type=click.IntRange(min=1), help="Length of the history.  [default: 3]")
@click.option(
    "--orders-per-day", type=click.IntRange(min=1), help="Each causes about 14 changes in all.  [default: 5000]"
)
@click.option("--until", metavar="TIME", help="End of the history (UTC).  [default: now]")
@click.option("--live", "is_live", is_flag=True, help="Go on at wall-clock time from where the log ends.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True, max=20_000),
    help=f"With --live: changes per second.  [default: {_LIVE_RATE}]",
)
@click.option(
    "--for",
    "seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="With --live: end after so long.  [default: when interrupted]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def simulate(
    seed: int | None,
    days: int | None,
    orders_per_day: int | None,
    until: str | None,
    is_live: bool,
    rate: float | None,
    seconds: float | None,
    as_json: bool,
) -> None:
    """Fill the change log with a simulated company: orders, deliveries and what makes real logs hard.

    A history begins with a snapshot and ends at --until; the same options make the same log, bit for bit. If it is
    interrupted, the same command finishes it. With --live the company goes on from there, at wall-clock time, until
    Ctrl-C; on an empty home it gets a history first.

    \b
    Examples:
      lockstep simulate                                    # three days up to now, in seconds
      lockstep simulate --days 30 --orders-per-day 26500   # ten million changes
      lockstep simulate --seed 1 --until '2026-11-18 23:00'
      lockstep simulate --live --rate 200 --for 30         # half a minute of traffic
    """
    from lockstep import simulate as simulation
    from lockstep import simulate_live
    from lockstep.changelog import ChangeLog

    if not is_live and (rate is not None or seconds is not None):
        raise LockstepError("--rate and --for are about live changes; add --live.")
    log = ChangeLog(home())
    history = (seed, days, orders_per_day, parse_time(until))
    begun = simulation.progress(log)
    if not (is_live and begun and begun.is_finished):
        result = simulation.run(log, simulation.choose_history(log, *history), show.status_line)
    elif any(option is not None for option in history):
        raise LockstepError(
            "--seed, --days, --orders-per-day and --until describe a history, and this home already has one. "
            "Leave them out, or choose another LOCKSTEP_HOME."
        )
    if is_live:
        result = simulate_live.run(log, rate or _LIVE_RATE, seconds, show.status_line)
    if as_json:
        show.json(result)
    else:
        show.simulation(result)


@cli.command()
@click.argument("dsn", metavar="postgresql://...")
@click.option("--slot", default="lockstep", show_default=True, help="The replication slot to make and read.")
@click.option("--publication", default="lockstep", show_default=True, help="The publication to make or use.")
@click.option("--schema", default="public", show_default=True, help="The schema that holds the source tables.")
@click.option("--trigger", default="1s", show_default=True, help="How long changes gather: 200ms, 1s, 5s, 1min.")
@click.option("--until-caught-up", is_flag=True, help="End when all that was committed at the start has landed.")
@click.option("--new-snapshot", is_flag=True, help="Read all tables again, and land how they differ from the log.")
def capture(
    dsn: str, slot: str, publication: str, schema: str, trigger: str, until_caught_up: bool, new_snapshot: bool
) -> None:
    """Capture a running PostgreSQL, each change exactly once, until stopped (SIGTERM or Ctrl-C).

    The first start checks the server, makes the publication and the slot and lands a snapshot; every later one
    continues from what has landed. Passwords are best left to ~/.pgpass or PGPASSWORD. Exit code 0 if it was stopped.

    \b
    Examples:
      lockstep capture postgresql://lockstep@db/shop
      lockstep capture postgresql://lockstep@db/shop --trigger 200ms
      lockstep capture postgresql://lockstep@db/shop --until-caught-up     # from cron
    """
    try:
        import psycopg2  # noqa: F401
    except ModuleNotFoundError:
        raise LockstepError("Capturing needs psycopg2: pip install 'lockstep[capture]'") from None
    import logging

    from lockstep.capture import capture as follow
    from lockstep.postgres import Source

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    source = Source(dsn, slot=slot, publication=publication, schema=schema)
    summary = follow(home(), source, parse_seconds(trigger), until_caught_up=until_caught_up, new_snapshot=new_snapshot)
    show.captured(summary)


def parse_time(text: str | None) -> datetime | None:
    """An ISO time in UTC, with or without an offset; None stays None."""
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise LockstepError(f"{text!r} is not a time. Write it like '2026-11-18 06:00' (UTC).") from None
    return at.astimezone(UTC).replace(tzinfo=None) if at.tzinfo else at


_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0}


def parse_seconds(text: str) -> float:
    """A duration like 200ms, 1s or 5min, in seconds."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|min)", text.strip())
    if not match or float(match[1]) == 0:
        raise LockstepError(f"{text!r} is not a duration. Write it like 200ms, 1s or 1min.")
    return float(match[1]) * _SECONDS[match[2]]


def main() -> None:
    """Run the command line; a mistake of the user's ends with its message and exit code 1, without a stack trace."""
    try:
        cli(standalone_mode=True)
    except LockstepError as e:
        click.echo(f"Error: {e}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
