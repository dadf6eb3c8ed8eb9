"""What commands print for people (tables) and for programs (JSON)."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lockstep.kinds import plain
from lockstep.schema import SCHEMA_FILE

if TYPE_CHECKING:
    from lockstep.alerts import Checked
    from lockstep.capture import Captured
    from lockstep.changelog import Watermark
    from lockstep.compact import Compacted
    from lockstep.declaration import Declaration
    from lockstep.explain import Explanation
    from lockstep.ingest import Summary
    from lockstep.log_check import Checked as LogChecked
    from lockstep.log_repair import Repair as LogRepair
    from lockstep.migrate import Evidence, Fit, Promotion
    from lockstep.new_contract import Added
    from lockstep.operate import Run
    from lockstep.postgres import Problem
    from lockstep.publish import Published
    from lockstep.quarantine import Entry, Retry
    from lockstep.reconcile import Reconciled
    from lockstep.verify import Verified
    from lockstep.warehouse import Row

console = Console(highlight=False, soft_wrap=True)
if not console.is_terminal:
    console.width = 200  # a pipe has no width; rich would fold every table to 80 columns


def json(value: Any) -> None:
    """Print as indented JSON; times in ISO format, UTC."""
    print(json_module.dumps(value, indent=2, default=plain))


def _seconds(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}" if at else "-"


def _minutes(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M}" if at else "-"


def run(result: Run) -> None:
    for failure in result.failures:
        console.print(Text(f"FAILED  {failure}", style="red"))
    if result.receipts:
        receipts(result.receipts)
    for note in result.notes:
        print(f"Note: {note}", file=sys.stderr)
    done = "Planned and ran" if result.planned else "Ran"
    if result.agrees:
        console.print(f"{done} in {result.seconds:.1f} s: all paths agree.")
    else:
        way_on = "`lockstep explain` says why." if result.receipts else "Mend what is named above and run again."
        console.print(f"{done} in {result.seconds:.1f} s: some checks failed. {way_on}")
    if result.published:
        published(result.published, briefly=True)
    if result.compacted and (result.compacted.hours or result.compacted.problem):
        compacted(result.compacted)
    for warning in result.warnings:
        print(f"Warning: {warning}", file=sys.stderr)


def published(p: Published, briefly: bool = False) -> None:
    if not briefly:
        table = Table("mart", "domain", "served from", "as of", "reason", box=None, pad_edge=False)
        for m in p.marts:
            as_of = "when queried" if m["is_live"] and m["served_from"] == "live" else _seconds(m["as_of"])
            table.add_row(m["mart"], m["domain"] or "-", m["served_from"], as_of, m["reason"])
        console.print(table)
        for mart, why in p.refused.items():
            console.print(Text(f"NOT PUBLISHED  {mart}: {why}", style="red"))
    console.print(f"Published {p.path} in {p.seconds:.1f} s: {p.size / 1e6:,.1f} MB.")


def compacted(c: Compacted) -> None:
    if c.problem:
        console.print(Text(f"Not compacted: {c.problem}", style="yellow"))
    elif not c.until:
        console.print("Nothing is published yet, so no hour may be compacted.")
    else:
        print(
            f"Compacted {c.files:,} files into {c.hours:,}, {c.bytes_before / 1e6:,.1f} MB into "
            f"{c.bytes_after / 1e6:,.1f} MB, of the hours until {_minutes(c.until)}."
        )


def log_checked(c: LogChecked) -> None:
    for finding in c.findings:
        console.print(Text(f"{finding.kind.upper()}  {finding.what}", style="red"))
        for sentence in finding.published:
            console.print(f"    {sentence}")
    if c.unrecorded:
        console.print(
            f"Of {len(c.unrecorded):,} files nothing was recorded, beginning with {c.unrecorded[0]}: whether they are "
            "as they landed is not known. `lockstep log check --record` records them as they are."
        )
    if c.recorded:
        console.print(f"Recorded {c.recorded:,} files as they are.")
    if c.debris:
        console.print(f"{len(c.debris):,} landings did not come to their end; what they left is in {c.debris[0]} ...")
    rate = c.rows / c.seconds if c.seconds else 0
    console.print(
        f"Checked {c.files:,} files with {c.rows:,} changes up to position {c.position:,} in {c.seconds:.1f} s "
        f"({rate:,.0f} changes/s): "
        + ("all are as they landed." if c.is_sound else "docs/runbooks/the-log-is-damaged.md says what to do.")
    )


def log_repaired(r: LogRepair) -> None:
    console.print(r.before)
    for sentence in r.says:
        console.print(f"  {sentence}")
    for name in r.moved:
        console.print(f"  {name} goes to the debris: no landing has named it.")
    if r.is_done:
        console.print("The watermark is repaired. `lockstep log check` says whether the files are as they landed.")
    elif r.watermark:
        console.print("Nothing was written. `lockstep log repair --yes` does it.")


def receipts(rows: list[Row]) -> None:
    if not rows:
        console.print("No receipts.")
        return
    _receipts(rows, "cut", "rebuild = increments")


def live_receipts(rows: list[Row]) -> None:
    """Receipts of `lockstep reconcile --now`."""
    if not rows:
        console.print("No live receipts: `lockstep reconcile --now` makes them.")
        return
    _receipts(rows, "as_of", "query = live figures")


def _receipts(rows: list[Row], moment: str, equation: str) -> None:
    table = Table("domain", moment.replace("_", " "), "reconciled at", box=None, pad_edge=False)
    for name in ("position", "cells compared", "differing"):
        table.add_column(name, justify="right")
    table.add_column(equation)
    table.add_column("verdict")
    for r in rows:
        equal = r["rebuild_fingerprint"] == r["increments_fingerprint"]
        proof = f"{_short(r['rebuild_fingerprint'])} = {_short(r['increments_fingerprint'])}" if equal else _apart(r)
        table.add_row(
            r["domain"],
            _minutes(r["cut"]) if moment == "cut" else _seconds(r[moment]),
            _seconds(r["reconciled_at"]),
            f"{r['position'] or 0:,}",
            f"{r['cells_compared']:,}",
            f"{r['cells_differing']:,}",
            proof,
            Text(r["verdict"], style={"passed": "green", "empty": "yellow"}.get(r["verdict"], "red")),
        )
    console.print(table)


def source_receipts(rows: list[Row]) -> None:
    """Receipts of `lockstep verify-source`."""
    if not rows:
        console.print("No receipts of the source: `lockstep verify-source` makes them.")
        return
    table = Table("source table", "verified at", "lsn", box=None, pad_edge=False)
    for name in ("position", "rows compared", "differing", "in quarantine"):
        table.add_column(name, justify="right")
    table.add_column("source = log")
    table.add_column("verdict")
    styles = {"passed": "green", "incomplete": "yellow", "failed": "red"}
    for r in rows:
        equal = r["source_fingerprint"] == r["log_fingerprint"]
        kinds = ("missing_in_the_log", "only_in_the_log", "modified", "unbalanced")
        counts = ", ".join(f"{r[kind]:,} {kind.replace('_', ' ')}" for kind in kinds if r[kind])
        proof = f"{_short(r['source_fingerprint'])} = {_short(r['log_fingerprint'])}" if equal else ""
        events = [f"{r[f'events_{state}']:,} {state}" for state in ("open", "discarded") if r[f"events_{state}"]]
        table.add_row(
            r["source_table"],
            r["verified_at"][:19].replace("T", " "),
            r["lsn"],
            f"{r['position']:,}",
            f"{r['rows_compared']:,}",
            f"{r['differing']:,}",
            ", ".join(events) or "0",
            counts or proof,
            Text(r["verdict"], style=styles[r["verdict"]]),
        )
    console.print(table)


def verified(v: Verified, limit: int) -> None:
    for warning in v.warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    rows = v.receipts(limit, with_values=True)
    console.print(f"{v.source} at {v.lsn} is position {v.position:,} of the change log.")
    source_receipts(rows)
    for r in rows:
        if r["columns_not_compared"]:
            dropped = ", ".join(r["columns_not_compared"])
            console.print(Text(f"{r['source_table']}: not compared, as the source has them no more: {dropped}"))
        if r["columns_not_known"]:
            added = ", ".join(f"{name} ({_count(n, 'row')})" for name, n in r["columns_not_known"].items())
            console.print(
                Text(f"{r['source_table']}: not compared where no change has come since they were added: {added}")
            )
        for d in r["keys"]:
            key = ", ".join(f"{name} {value}" for name, value in d["key"].items())
            told = [f"{n} is {_quoted(ours)}, in the log {_quoted(logs)}" for n, (ours, logs) in d["columns"].items()]
            if d["kind"] == "unbalanced":
                told.append(f"its changes add up to {_count(d['rows_in_log'], 'row')}")
            told += [d["note"]] if d["note"] else []
            told += ["an event of it is in quarantine"] if d["in_quarantine"] else []
            console.print(Text(f"{r['source_table']} {key}: {d['kind']}" + "".join(f"; {t}" for t in told)))
        if r["differing"] > len(r["keys"]):
            console.print(f"{r['source_table']}: {_count(r['differing'] - len(r['keys']), 'more key')} (`--limit`)")
    equal = "The change log equals the source." if v.is_equal else Text("The change log differs from it.", style="red")
    console.print(equal)
    resynced({t.table: t.landed for t in v.tables if t.landed is not None})


def resynced(landed: Mapping[str, int]) -> None:
    for table, changes in landed.items():
        console.print(f"{table} was resynced: {_count(changes, 'change')} landed.")


def _quoted(value: str | None) -> str:
    return "null" if value is None else json_module.dumps(value, ensure_ascii=False)


def _apart(receipt: Row) -> str:
    """The measures that lie beyond their tolerance, in how many cells, and how far in the worst."""
    beyond = [m for m in receipt["measures"] if not m["is_within_tolerance"]]
    if not beyond:
        return "within tolerance"
    return ", ".join(
        f"{m['measure']} in {m['cells_differing']:,} of {m['cells']:,} by up to {m['worst_absolute']:g}" for m in beyond
    )


def _short(fingerprint: str) -> str:
    return f"…{fingerprint[-8:]}"


def status(result: Row) -> None:
    lag = result["lag_seconds"]
    facts = {
        "home": result["home"],
        "source": result["source"] or "-",
        "watermark": f"position {result['position']:,}, logged at {_seconds(result['logged_at'])} UTC"
        + (f" ({lag:,.0f} s ago)" if lag is not None else ""),
        "hours closed": f"until {_minutes(result['closed_until'])}",
        "quarantine": f"{result['quarantined']} open"
        + "".join(f"; {_held(table, hold)}" for table, hold in result["holds"].items()),
    }
    if result["capture"]:
        facts["capture"] = _capture(result["capture"])
    grid = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        grid.add_row(name, fact)
    console.print(grid)
    for reason in result["gaps"]:
        console.print(Text(f"Held: {reason}.", style="yellow"))
    if result["warehouse"] == "busy":
        console.print("A run has the warehouse open: what is served can be told when it is done.")
        return
    if result["problem"]:
        print(f"Error: {result['problem']}", file=sys.stderr)
        return
    for note in result["notes"]:
        console.print(Text(f"Note: {note}", style="yellow"))
    if not result["domains"]:
        console.print("No warehouse yet: `lockstep run` builds it.")
        return
    table = Table(
        "domain",
        "mode",
        "served from",
        "as of",
        "sealed until",
        "folded until",
        "verified cut",
        "reason",
        box=None,
        pad_edge=False,
    )
    for d in result["domains"]:
        table.add_row(
            d["domain"],
            d["mode"],
            d["served_from"],
            _seconds(d["as_of"]),
            _minutes(d["sealed_until"]),
            _minutes(d["folded_until"]),
            _minutes(d["verified_cut"]),
            d["reason"],
        )
    console.print(table)


def _held(table: str, hold: Row) -> str:
    name = "all tables" if table == "*" else table
    by = f"{_count(hold['events'], 'event')} of {'an unknown table' if table == '*' else table}"
    return f"{name} held since {_seconds(hold['logged_at'])}, position {hold['position']:,}, by {by}"


def _capture(c: Row) -> str:
    """How a capture stands, in a few lines."""
    seen = f"{c['age_seconds']:,.0f} s ago"
    if not c["is_running"]:
        return f"not running: {c['phase']} {seen}" + (f": {c['problem']}" if c["problem"] else "")
    lines = [f"{c['phase']} as process {c['pid']}, slot {c['slot']}, trigger {c['trigger_seconds']:g} s"]
    if c["is_stale"]:
        lines[0] += f"; STUCK? It last said so {seen}"
    if c["problem"]:
        lines[0] += f": {c['problem']}"
    if c["lag_bytes"] is not None:
        age = f" and {c['lag_seconds']:.1f} s" if c["lag_seconds"] is not None else ""
        behind = f"{c['lag_bytes']:,} bytes{age}"
        kept = f"; the server keeps {c['retained_bytes'] or 0:,} bytes of log for it"
        room = f" and will keep {c['safe_bytes']:,} more" if c["safe_bytes"] is not None else ""
        lines.append(f"{c['changes_per_second']:,.1f} changes/s, {behind} behind{kept}{room}")
    lines.append(
        f"since its start {_count(c['changes'], 'change')} in {_count(c['batches'], 'batch')} and "
        f"{_count(c['files'], 'file')}, {c['quarantined']:,} to quarantine, {_count(c['reconnects'], 'reconnect')}"
    )
    return "\n".join(lines)


def explanations(all_domains: list[Explanation]) -> None:
    """Why each domain's paths disagree. What lies in the log and was shown for one domain is named again, not shown."""
    from lockstep.explain import LATE_TOLERATED, MEANING

    shown: dict[tuple[str, str], str] = {}
    for e in all_domains:
        tolerated = f", but for {_count(e.tolerated, 'cell')} within the tolerance" if e.tolerated else ""
        if e.is_clean:
            console.print(f"{e.domain}: nothing to explain, the paths agree at the cut {_minutes(e.cut)}{tolerated}.")
        else:
            console.print(f"[bold]{e.domain}[/bold] at the cut {_minutes(e.cut)}")
        for cell in e.cells:
            console.print(Text(f"  {cell['class']:9} {_cell(cell, ('rebuilt', 'added up'))}"))
        if e.cells and e.tolerated:
            console.print(f"  and {_count(e.tolerated, 'cell')} within the tolerance")
        for kind in dict.fromkeys(f.kind for f in e.findings):
            style = "yellow" if kind == LATE_TOLERATED else "red"
            console.print(Text(f"{kind.upper()}: {MEANING[kind]}", style=style))
            for finding in (f for f in e.findings if f.kind == kind):
                first = shown.setdefault((kind, finding.where), e.domain)
                console.print(Text(f"  {finding.where}" + (f" (see {first})" if first != e.domain else "")))
                for event in finding.events if first == e.domain else []:
                    at = f"{event['position']} {_seconds(event['logged_at'])}"
                    console.print(Text(f"    {at} {event['op']}  {_images(event)}"))


def _cell(cell: Row, sides: tuple[str, str]) -> str:
    """A cell of `reconcile`: its grain, and the measures in which the two sides differ."""
    measures = [name.removeprefix("rebuild_") for name in cell if name.startswith("rebuild_")]
    values = {f"{side}_{m}" for m in measures for side in ("rebuild", "increments")}
    columns = {n: v for n, v in cell.items() if n not in values | {"cut", "class"} and v is not None}
    grain = ", ".join(f"{n} {plain(v)}" for n, v in columns.items())
    if cell["class"] == "nonunique":
        return f"{grain}: there is more than one such row"
    apart = [m for m in measures if cell[f"rebuild_{m}"] != cell[f"increments_{m}"]]
    return f"{grain}: " + ", ".join(
        f"{m} {_value(cell[f'rebuild_{m}'])} {sides[0]}, {_value(cell[f'increments_{m}'])} {sides[1]}" for m in apart
    )


def _value(value: Any) -> str:
    if isinstance(value, (int, float)):
        return f"{value:,}"
    if isinstance(value, Decimal):
        return f"{value:,f}"
    return "nothing" if value is None else plain(value)


def _images(event: Row) -> str:
    """The columns in which the two images differ, or the one image there is."""
    before, after = event["before"], event["after"]
    if before and after:
        changed = [n for n in after if before[n] != after[n]]
        return ", ".join(f"{n} {plain(before[n])} -> {plain(after[n])}" for n in changed) or "no column changed"
    image = after or before or {}
    return ", ".join(f"{n} {plain(v)}" for n, v in image.items() if v is not None)


def progress(records: int, bytes_read: int) -> None:
    """A line on standard error that replaces itself; none if that is not a terminal."""
    if sys.stderr.isatty():
        print(f"\r{records:,} records, {bytes_read / 1e6:,.0f} MB", end="\r", file=sys.stderr, flush=True)


def traced(models: int, of: int) -> None:
    """As `progress`, for the models whose columns are traced; the line goes with the last."""
    if sys.stderr.isatty():
        line = f"\rTraced the columns of {models} of {of} models" if models < of else "\r\x1b[K"
        print(line, end="", file=sys.stderr, flush=True)


def ingested(summary: Summary) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_row("read", f"{summary.read:,} records")
    landed = ", ".join(f"{table} {n:,}" for table, n in summary.landed.most_common())
    grid.add_row("landed", f"{summary.landed.total():,} changes" + (f": {landed}" if landed else ""))
    grid.add_row("known already", f"{summary.known:,}")
    grid.add_row(
        "no changes",
        f"{summary.boundaries:,} transaction marks, {summary.heartbeats:,} heartbeats, {summary.tombstones:,} "
        f"tombstones, {summary.others:,} schema changes and messages",
    )
    if summary.ignored:
        ignored = ", ".join(f"{table} {n:,}" for table, n in summary.ignored.most_common())
        grid.add_row("ignored", f"{summary.ignored.total():,} of tables the project does not know: {ignored}")
    if summary.quarantined:
        grid.add_row("quarantined", Text(f"{summary.quarantined:,}", style="red"))
    grid.add_row("watermark", f"{_point(summary.before)} -> {_point(summary.after)}")
    console.print(grid)
    for sentence in summary.joined:
        console.print(Text(sentence))
    if summary.waiting:
        joins = "joins" if len(summary.waiting) == 1 else "join"
        console.print(
            Text(
                f"{', '.join(summary.waiting)}: declared, and {joins} the log once an event with it has landed and "
                "nothing of the table is open in quarantine. Until then it reads NULL."
            )
        )
    if summary.unfinished:
        behind = summary.kept - summary.unfinished_events
        console.print(
            f"{_count(summary.unfinished, 'unfinished transaction')} with {_count(summary.unfinished_events, 'event')} "
            + (f"and {_count(behind, 'event')} behind " if behind else "")
            + f"{'is' if summary.unfinished == 1 else 'are'} kept for the next delivery."
        )


def quarantined(entries: list[Entry]) -> None:
    if not entries:
        console.print("No events.")
        return
    table = Table("position", "logged at", "table", "state", "reason", box=None, pad_edge=False)
    for e in entries:
        table.add_row(
            f"{e['position']}", e["logged_at"][:19].replace("T", " "), e["table"], e["state"], Text(e["reason"])
        )
    console.print(table)


def quarantined_event(entry: Entry) -> None:
    grid = Table.grid(padding=(0, 2))
    for name in ("position", "logged_at", "table", "state", "reason", "event"):
        grid.add_row(name.replace("_", " "), Text(str(entry[name])))
    console.print(grid)


def retried(result: Retry) -> None:
    console.print(f"{_count(len(result.landed), 'event')} landed.")
    for position, reason in result.failed.items():
        console.print(Text(f"{position} still fails: {reason}", style="red"))


def _point(watermark: Watermark) -> str:
    return f"{watermark.position:,} ({_seconds(watermark.logged_at)})"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 'es' if what.endswith('ch') else 's'}"


def status_line(text: str) -> None:
    """A line on standard error that replaces itself; none if that is not a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)


def simulation(result: Row) -> None:
    print(
        f"Simulated {result['changes']:,} changes in {result['transactions']:,} transactions, up to "
        f"{_seconds(result['logged_at'])} UTC, in {result['seconds']:.1f} s. "
        f"The log ends at position {result['position']:,}."
    )


def simulation_into(result: Row) -> None:
    if result["loaded"]:
        print(
            f"Loaded {result['loaded']:,} rows into {result['database']} in {result['load_seconds']:.1f} s: the "
            f"company as of {_seconds(result['until'])} UTC."
        )
    if "changes" in result:
        print(
            f"Committed {result['changes']:,} changes in {result['transactions']:,} transactions to "
            f"{result['database']} in {result['live_seconds']:.1f} s."
        )


def declared(directory: Path, declaration: Declaration) -> None:
    """What `lockstep init --from` wrote, what it named otherwise, and what it left out."""
    columns = sum(len(table.columns) for table in declaration.tables)
    print(
        f"{directory / SCHEMA_FILE} declares {_count(len(declaration.tables), 'table')}, {_count(columns, 'column')}."
    )
    for title, lines in (
        ("Named otherwise in the log", declaration.named_otherwise),
        ("Columns that it does not declare", declaration.columns_left_out),
        ("Left out", declaration.tables_left_out),
    ):
        if lines:
            print(f"{title}:")
            for line in lines:
                print(f"  {line}")


def server_needs(directory: Path, problems: Sequence[Problem]) -> None:
    """What a server needs before it can be captured, as SQL that can be run."""
    if not problems:
        print(f"The server is ready: `lockstep capture` in {directory} follows these tables.")
        return
    print(f"Before `lockstep capture` in {directory} can follow them, the server needs:\n")
    for problem in problems:
        print(f"-- {problem.text}\n{problem.statement}")
    print()


def captured(s: Captured) -> None:
    snapshot = f"Snapshot: {s.snapshot:,} changes. " if s.snapshot else ""
    print(
        f"{snapshot}Captured {s.changes:,} changes in {s.batches:,} batches, {s.quarantined:,} events to quarantine, "
        f"{s.reconnects:,} reconnects. Position {s.position:,}, continues from {s.lsn}."
    )


def gaps(reasons: list[str]) -> None:
    for reason in reasons:
        print(f"Held: {reason}.", file=sys.stderr)


def reconciled(results: list[Reconciled], limit: int, *, live: bool = False) -> None:
    (live_receipts if live else receipts)([r.receipt for r in results])
    sides = ("as the query has it", "live") if live else ("rebuilt", "added up")
    for result in results:
        for cell in result.cells:
            console.print(Text(f"{result.receipt['domain']}  {cell['class']:9} {_cell(cell, sides)}"))
        more = result.receipt["cells_beyond"] - len(result.cells)
        if result.cells and more:
            console.print(f"{result.receipt['domain']}: {_count(more, 'more cell')} (`--limit`)")
        domain = result.receipt["domain"]
        if live and any(cell["class"] == "nonunique" for cell in result.cells):
            print(
                f"{domain} is served from its rebuild: its query gives more than one row of a cell. Name in the grain "
                f"all columns that tell rows apart, in models/rebuild/{domain}.sql and in seeds/contracts.csv."
            )
        elif live and result.receipt["verdict"] == "failed":
            print(
                f"{domain} is served from its rebuild until another passes: `lockstep reconcile {domain} --now`, which "
                "publishes from nothing. If that fails too, an hour since the last verified rebuild is wrong, or how "
                f"the tail is read: `lockstep reconcile {domain}` tells which."
            )


_STYLES = {"fits": "green", "not yet": "yellow", "does not fit": "red"}


def fits(rows: list[Fit]) -> None:
    table = Table(
        "domain", "mode", "acted on", "figures", "path", "cheapest cadence", "contract", box=None, pad_edge=False
    )
    for f in rows:
        verdict = Text(f.verdict, style=_STYLES[f.verdict])
        within, fresh = f"within {f.horizon_minutes:,} min", f"{f.freshness_seconds:,} s old"
        table.add_row(f.domain, f.mode, within, fresh, f.path, f.cadence, verdict + Text(f": {f.reason}", style=""))
    console.print(table)


def promotion(p: Promotion) -> None:
    """The evidence on a domain's next step, and what stands against it."""
    console.print(f"{p.domain}: {p.mode} -> {p.target}" if p.target else f"{p.domain} is live already.")
    if p.evidence:
        _evidence(p.evidence, p.contract.shadow_days, p.contract.freshness_seconds)
    for objection in p.objections:
        console.print(Text(f"AGAINST IT  {objection}", style="red"))


def _evidence(e: Evidence, required: int, freshness: int) -> None:
    if e.shadow_days or (e.receipts and e.receipts[-1]["mode"] == "shadow"):
        days = ", ".join(map(str, e.shadow_days)) or "none"
        console.print(f"days in shadow  {len(e.shadow_days)} of {required}: {days}")
    if e.receipts:
        mode, since = e.receipts[-1]["mode"], _seconds(e.receipts[0]["reconciled_at"])
        console.print(f"receipts        {e.passed} passed, {e.failed} failed, in mode {mode}, since {since}")
        worst = Table("measure", "cells differing", "worst", "allowed", box=None, pad_edge=False)
        for w in e.worst:
            apart = f"{w['worst_absolute']:g} {w['unit']} ({w['worst_relative']:.2%})" if w["cells_differing"] else "0"
            allowed = [f"{w['tolerance_absolute']:g}"] if w["tolerance_absolute"] else []
            allowed += [f"{w['tolerance_relative']:.2%}"] if w["tolerance_relative"] else []
            share = f", in {w['tolerance_cells']:.2%} of the cells" if w["tolerance_cells"] < 1 else ""
            worst.add_row(w["measure"], f"{w['cells_differing']:,}", apart, (" or ".join(allowed) or "0") + share)
        console.print(worst)
    console.print(f"live figures    {_freshness(e.live_age_seconds, freshness)}")


def _freshness(age: float | None, objective: int) -> str:
    return f"{age:,.0f} s old now, objective {objective:,} s" if age is not None else f"none, objective {objective:,} s"


def contract_added(added: Added, is_dry_run: bool) -> None:
    for file, lines in added.lines.items():
        print(f"{file}:")
        for line in lines:
            print(f"  {line}")
    contract = added.contract
    print(f"As its query says: of {', '.join(contract.sources)}, by {', '.join(contract.grain)}")
    for m in contract.all_measures:
        print(f"  {m.name}: {m.description} ({m.merge}, {m.unit})")
    if contract.is_recomputed:
        print(f"It is not derived but recomputed: live figures are the query over all rows. {added.because}")
    elif added.because:
        print(f"The measures merge by finish: they are computed from cells when they are read ({added.because}).")
    print(
        "Nothing was written." if is_dry_run else "Next: `sqlmesh plan`, which computes the hours that the log has had."
    )


def facts(rows: list[Row]) -> None:
    table = Table("fact", "increments", box=None, pad_edge=False)
    measured = ("cells", "of the rows", "an hour", "a read", "the query") if "cells" in rows[0] else ()
    for name in ("of", "tables that change it", "figures", "mode", *measured, "because"):
        table.add_column(name)
    for r in rows:
        tables = (" x " if r["is_join"] else ", ").join(r["tables"])
        costs: list[str] = []
        if measured:
            costs = ["" if r["cells"] is None else f"{r['cells']:,}", "" if r["share"] is None else f"{r['share']:.1%}"]
            taken = (r["hour_seconds"], r["read_seconds"], r["rebuild_seconds"])
            costs += ["" if seconds is None else f"{1000 * seconds:,.1f} ms" for seconds in taken]
        table.add_row(r["fact"], r["increments"], r["of"], tables, r["figures"], r["mode"], *costs, r["because"] or "-")
    console.print(table)


def derived_sql(found: dict[str, str]) -> None:
    for what, sql in found.items():
        print(f"-- {what}\n{sql};\n")


def migration(rows: list[Row]) -> None:
    table = Table("domain", "mode", box=None, pad_edge=False)
    for name in ("days in shadow", "receipts", "worst divergence", "live figures", "served from", "next step"):
        table.add_column(name)
    for r in rows:
        planned = "" if r["planned_mode"] in (None, r["mode"]) else f" (planned: {r['planned_mode']})"
        apart = ", ".join(f"{w['measure']} by {w['worst_absolute']:g} {w['unit']}" for w in r["worst"])
        days = f"{r['shadow_days']} of {r['shadow_days_required']}" if r["mode"] == "shadow" else "-"
        failed = f", {r['receipts_failed']} failed" if r["receipts_failed"] else ""
        table.add_row(
            r["domain"],
            r["mode"] + planned,
            days,
            f"{r['receipts_passed']} passed{failed}",
            apart or ("0" if r["receipts_passed"] + r["receipts_failed"] else "-"),
            _freshness(r["live_age_seconds"], r["freshness_seconds"]),
            r["served_from"] or "-",
            r["next_step"],
        )
    console.print(table)


def alerts(checked: Checked, channels: int) -> None:
    for incident in checked.incidents:
        state = Text("RESOLVED", style="green") if incident.resolved_at else Text("OPEN    ", style="red")
        subject = f": {incident.subject}" if incident.subject else ""
        console.print(state + Text(f"  {incident.condition}{subject}, since {incident.opened_at}", style=""))
        console.print(Text(f"          {incident.text}"))
    if checked.unknown:
        console.print(f"Not known while a run has the warehouse open: {', '.join(checked.unknown)}.")
    if not checked.incidents and not checked.unknown:
        console.print("All is in order.")
    for failure in checked.failures:
        print(f"Not sent, to be tried again at the next check: {failure}", file=sys.stderr)
    if not channels:
        console.print("No channel is configured, so nobody is told: see docs/alerts.md.")
    elif checked.sent:
        console.print(f"{_count(checked.sent, 'message')} sent.")
