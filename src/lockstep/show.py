"""What commands print for people (tables) and for programs (JSON)."""

from __future__ import annotations

import json as json_module
import sys
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from lockstep.capture import Captured
    from lockstep.changelog import Watermark
    from lockstep.explain import Explanation
    from lockstep.ingest import Summary
    from lockstep.operate import Run
    from lockstep.quarantine import Entry, Retry
    from lockstep.warehouse import Row

console = Console(highlight=False, soft_wrap=True)
if not console.is_terminal:
    console.width = 200  # a pipe has no width; rich would fold every table to 80 columns


def json(value: Any) -> None:
    """Print as indented JSON; times in ISO format, UTC."""
    print(json_module.dumps(value, indent=2, default=_plain))


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, (datetime, date)) else str(value)


def _seconds(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}" if at else "-"


def _minutes(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M}" if at else "-"


def run(result: Run) -> None:
    for failure in result.failures:
        console.print(Text(f"FAILED  {failure}", style="red"))
    if result.receipts:
        receipts(result.receipts)
    done = "Planned and ran" if result.planned else "Ran"
    if result.agrees:
        console.print(f"{done} in {result.seconds:.1f} s: all paths agree.")
    else:
        console.print(f"{done} in {result.seconds:.1f} s: not all is well. `lockstep explain` says why.")


def receipts(rows: list[Row]) -> None:
    if not rows:
        console.print("No receipts.")
        return
    table = Table("domain", "cut", "reconciled at", box=None, pad_edge=False)
    for name in ("position", "cells compared", "differing"):
        table.add_column(name, justify="right")
    table.add_column("rebuild = increments")
    table.add_column("verdict")
    for r in rows:
        equal = r["rebuild_fingerprint"] == r["increments_fingerprint"]
        divergence = ", ".join(f"{measure} {by}" for measure, by in r["divergence"].items() if by)
        proof = f"{_short(r['rebuild_fingerprint'])} = {_short(r['increments_fingerprint'])}" if equal else divergence
        table.add_row(
            r["domain"],
            _minutes(r["cut"]),
            _seconds(r["reconciled_at"]),
            f"{r['position'] or 0:,}",
            f"{r['cells_compared']:,}",
            f"{r['cells_differing']:,}",
            proof,
            Text(r["verdict"], style="green" if r["verdict"] == "passed" else "red"),
        )
    console.print(table)


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
        + "".join(f"; {t} held from {_minutes(h)}" for t, h in result["holds"].items()),
    }
    grid = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        grid.add_row(name, fact)
    console.print(grid)
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


def explanation(e: Explanation) -> None:
    from lockstep.explain import MEANING

    if e.is_clean:
        console.print(f"{e.domain}: nothing to explain, the paths agree at the cut {_minutes(e.cut)}.")
        return
    console.print(f"[bold]{e.domain}[/bold] at the cut {_minutes(e.cut)}")
    for cell in e.cells:
        console.print(f"  {cell['class']:9} {_cell(cell)}")
    for kind in dict.fromkeys(f.kind for f in e.findings):
        console.print(Text(f"{kind.upper()}: {MEANING[kind]}", style="red"))
        for finding in (f for f in e.findings if f.kind == kind):
            console.print(f"  {finding.where}")
            for event in finding.events:
                console.print(f"    {event['position']} {_seconds(event['logged_at'])} {event['op']}  {_images(event)}")


def _cell(cell: Row) -> str:
    """A cell of `reconcile`: its grain, and the measures in which the paths differ."""
    measures = [name.removeprefix("rebuild_") for name in cell if name.startswith("rebuild_")]
    sides = {f"{side}_{m}" for m in measures for side in ("rebuild", "increments")}
    grain = ", ".join(f"{n} {_plain(v)}" for n, v in cell.items() if n not in sides | {"cut", "class"})
    apart = [m for m in measures if cell[f"rebuild_{m}"] != cell[f"increments_{m}"]]
    return f"{grain}: " + ", ".join(
        f"{m} {cell[f'rebuild_{m}']:,} rebuilt, {cell[f'increments_{m}']:,} added up" for m in apart
    )


def _images(event: Row) -> str:
    """The columns in which the two images differ, or the one image there is."""
    before, after = event["before"], event["after"]
    if before and after:
        changed = [n for n in after if before[n] != after[n]]
        return ", ".join(f"{n} {_plain(before[n])} -> {_plain(after[n])}" for n in changed) or "no column changed"
    image = after or before or {}
    return ", ".join(f"{n} {_plain(v)}" for n, v in image.items() if v is not None)


def progress(records: int, bytes_read: int) -> None:
    """A line on standard error that replaces itself; none if that is no terminal."""
    if sys.stderr.isatty():
        print(f"\r{records:,} records, {bytes_read / 1e6:,.0f} MB", end="\r", file=sys.stderr, flush=True)


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
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def status_line(text: str) -> None:
    """A line on standard error that replaces itself; none if that is no terminal."""
    if sys.stderr.isatty():
        print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)


def simulation(result: Row) -> None:
    print(
        f"Simulated {result['changes']:,} changes in {result['transactions']:,} transactions, up to "
        f"{_seconds(result['logged_at'])} UTC, in {result['seconds']:.1f} s. "
        f"The log ends at position {result['position']:,}."
    )


def captured(s: Captured) -> None:
    snapshot = f"Snapshot: {s.snapshot:,} changes. " if s.snapshot else ""
    print(
        f"{snapshot}Captured {s.changes:,} changes in {s.batches:,} batches, {s.quarantined:,} events to quarantine, "
        f"{s.reconnects:,} reconnects. Position {s.position:,}, continues from {s.lsn}."
    )
