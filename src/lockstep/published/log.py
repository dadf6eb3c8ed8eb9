"""The change log as a published file has it: the landing that a reader sees, the tail, and what is sealed."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from lockstep.changelog import REMEMBERED, SETTLING, Watermark
from lockstep.logfiles import TAIL
from lockstep.names import GENERATED
from lockstep.published import sql
from lockstep.published.cuts import Cuts
from lockstep.published.file import NEVER, File, Shared, Stored, time
from lockstep.published.models import Models
from lockstep.published.needs import needs
from lockstep.published.sql import Reading, Tree
from lockstep.schema import TABLES, quoted
from lockstep.warehouse import text

_VISIBLE = "changes.visible"
ALL_POSITIONS = f"{(1 << 63) - 1}"
# What reads the log of itself, and is asked for the tail alone. What it reads is not followed.
NOT_FOLLOWED = ("live.", "diffs.", "tail.", "signed.", "changes.", "ops.")


@dataclass
class Log:
    file: File
    models: Models
    cuts: Cuts
    tables: list[str]
    watermark: Watermark
    home: Path
    readers: dict[str, list[Reading]] = field(default_factory=dict)  # by table, who reads all of it
    _needed: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """What is grown out of one log is of no use for another."""
        return f"{self.watermark.source} from {self.watermark.started_at}"

    # -- The landing that is visible

    def create_views(self) -> None:
        self._visible()
        shared = Shared()
        watermarks = self.watermarks(shared)
        self.file.view("changes.watermark", shared.around(sql.parse(f"FROM {watermarks}")))

    def _visible(self) -> None:
        """`changes.visible`: the one landing that a transaction sees.

        It depends on nothing but when the transaction began, so each of a query's readings of it, early or late, finds
        the same. Files are listed after that, and a landing's are there before its stamp: none that counts is missed.
        Which landings are newer is told by their order: the time of one says only whether it has settled, for the
        machine's clock may have been set back in between.
        """
        w = self.watermark
        kind = "MAP(VARCHAR, STRUCT(position BIGINT, logged_at TIMESTAMP, events BIGINT))"
        holds = ", ".join(
            f"{text(table)}: {{'position': {h.position}, 'logged_at': {time(h.logged_at)}, 'events': {h.events}}}"
            for table, h in w.holds.items()
        )
        published = (
            f"{{'landed_at': {time(NEVER)}, 'position': {w.position}::BIGINT, 'logged_at': {time(w.logged_at)}, "
            f"'holds': MAP {{{holds}}}::{kind}}}"
        )
        landing = f"STRUCT(landed_at TIMESTAMP, position BIGINT, logged_at TIMESTAMP, holds {kind})"
        columns = (
            "{'landed_at': 'TIMESTAMP', 'position': 'BIGINT', 'logged_at': 'TIMESTAMP', "
            f"'holds': '{kind}', 'recent': '{landing}[]'}}"
        )
        settled = f"make_timestamp(epoch_us(now())) - INTERVAL {int(SETTLING / timedelta(milliseconds=1))} MILLISECOND"
        outlived = (
            "This transaction began too long ago: which changes had landed then is remembered for "
            f"{int(REMEMBERED / timedelta(minutes=1))} minutes. End it (COMMIT) and ask again."
        )
        self.file.run(f"""
            CREATE VIEW changes.visible AS
            WITH file AS (
              SELECT
                list_concat(
                  COALESCE(recent, []),
                  [{{'landed_at': landed_at, 'position': position, 'logged_at': logged_at, 'holds': holds}}]
                ) AS landings
              FROM read_json({text(self.home / "changelog" / "watermark.json")}, columns = {columns})
            ), published AS (
              SELECT
                landings,
                COALESCE(list_position(
                  list_transform(landings, lambda l: {{'position': l.position, 'landed_at': l.landed_at}}),
                  {{'position': {w.position}::BIGINT, 'landed_at': {time(w.landed_at)}}}
                ), 0) AS place
              FROM file
            ), settled AS (
              SELECT
                place = 0 AS is_superseded,
                list_filter(landings[place + 1 :], lambda l: l.landed_at <= {settled}) AS landings
              FROM published
            ), seen AS (
              SELECT
                CASE
                  WHEN len(landings) > 0 THEN landings[-1]
                  WHEN is_superseded THEN error({text(outlived)})
                  ELSE {published}
                END AS landing
              FROM settled
            )
            SELECT
              landing.position AS position,
              landing.logged_at AS logged_at,
              {time(w.started_at)} AS started_at,
              landing.holds AS holds
            FROM seen
        """)

    def _landing(self, shared: Shared) -> str:
        """The query for `changes.visible`, which takes a millisecond or two to ask: it remembers many landings."""
        return shared.name(_VISIBLE, sql.parse(f"SELECT * FROM {_VISIBLE}"))

    def watermarks(self, shared: Shared) -> str:
        """The query for `changes.watermark`."""
        self._landing(shared)
        return shared.name("changes.watermark", self._watermarks)

    @functools.cached_property
    def _watermarks(self) -> Tree:
        landing = sql.item(quoted(_VISIBLE))
        model = self.models["changes.watermark"]

        def change(node: Tree) -> Tree | None:
            is_file = node.get("type") == "TABLE_FUNCTION"
            return sql.in_place_of(node | {"table_name": ""}, landing) if is_file else None

        watermarks: Tree = sql.mapped(self.models.tree(model), change)
        return watermarks

    def readable(self, bound: str, tables: Iterable[str], shared: Shared) -> str:
        """Up to where live figures may include changes of all these tables: `readable_position` or `readable_until`."""
        names = ", ".join(map(text, tables))
        return f"(SELECT MIN({bound}) FROM {self.watermarks(shared)} WHERE source_table IN ({names}))"

    def held(self, tables: Iterable[str], shared: Shared) -> str:
        """As `held` of `ops.serving`, at this moment."""
        names = ", ".join(map(text, tables))
        return (
            "(SELECT 'held since ' || MIN(held_since)::TEXT || ' by ' || ARG_MIN(held_by, readable_position) "
            f"FROM {self.watermarks(shared)} WHERE source_table IN ({names}))"
        )

    def ended(self, moment: str) -> Tree:
        """The query for `changes.watermark` at a cut: all that was logged before it can be read."""
        tables = ", ".join(text(table) for table in self.tables)
        until = f"{moment} - INTERVAL 1 MICROSECOND AS readable_until, {ALL_POSITIONS} AS readable_position"
        return sql.item(f"(SELECT UNNEST([{tables}]) AS source_table, {until})")

    # -- Its changes

    def tail(self, table: str, shared: Shared) -> Tree:
        """The query of the table's changes in the hours that are not folded yet, up to what is visible."""
        return self.changes(table, self.cuts.of_table[table], None, self._landing(shared))

    def changes(self, table: str, since: datetime | None, until: datetime | None, visible: str = _VISIBLE) -> Tree:
        """The query of `changes.<table>` over some hours of the log, or, without an end, of its tail."""
        files = text(self.home / "changelog" / ("" if until else TAIL) / table / "hour=*" / "*.parquet")
        bounds = [
            f"hour >= '{since or self.cuts.first_hour:%Y-%m-%dT%H}'",
            *([f"hour < '{until:%Y-%m-%dT%H}'"] if until else []),
        ]
        read = sql.item(
            f"(SELECT * FROM read_parquet({files}, hive_partitioning = TRUE, hive_types = {{'hour': VARCHAR}}) "
            f"WHERE {' AND '.join(bounds)})"
        )
        landing = sql.item(visible)

        def change(node: Tree) -> Tree | None:
            if node.get("type") == "TABLE_FUNCTION":
                return sql.in_place_of(node | {"table_name": ""}, read)
            return sql.in_place_of(node, landing) if node.get("type") == "BASE_TABLE" else None

        query: Tree = sql.mapped(self.models.tree(self.models[f"changes.{table}"]), change)
        return query

    def sealed(self, table: str) -> str:
        """`changes.__<table>_sealed`: what is sealed of a table of the log, for models that need all of it.

        It holds no more columns of the images, and no more rows, than those models look at.
        """
        name = f"changes.{GENERATED}{table}_sealed"
        spelled = f"changes.{quoted(f'{GENERATED}{table}_sealed')}"
        if name in self.file.stored:
            return spelled
        cut = self.cuts.of_table[table]
        columns, condition = self._needs(table)
        definition = f"{self.identity}: {columns} {condition}"
        since = self.file.until(name, definition)
        since = since if since and since <= cut else None
        of_log = sql.fill(
            f"SELECT {columns} FROM log AS changes WHERE {condition}", log=self.changes(table, since, cut)
        )
        log = sql.text(of_log)
        self.file.run(f"INSERT INTO {spelled} {log}" if since else f"CREATE OR REPLACE TABLE {spelled} AS {log}")
        self.file.stored[name] = Stored(definition, {cut: None})
        return spelled

    def _needs(self, table: str) -> tuple[str, str]:
        if table not in self._needed:
            self._needed[table] = needs(TABLES[table], self.readers.get(table, []))
        return self._needed[table]

    def whole(self, table: str, shared: Shared) -> Tree:
        """The query for `changes.<table>`, with the columns that its readers look at."""
        columns, _ = self._needs(table)
        both = f"SELECT * FROM {self.sealed(table)} UNION ALL SELECT {columns} FROM tail AS changes"
        return sql.subquery(sql.fill(both, tail=self.tail(table, shared)))

    def find_readers(self, marts: Iterable[str]) -> None:
        """Find for each table of the log who reads all of it, not by way of live figures."""
        waiting = list(marts)
        seen = set(waiting)
        while waiting:
            model = self.models[waiting.pop()]
            for reading in self.models.readings(model) if model.is_view else []:
                if reading.function:
                    continue
                name = self.models.name(model, reading)
                schema, _, short = name.partition(".")
                if schema == "changes" and short in self.tables:
                    self.readers.setdefault(short, []).append(reading)
                elif name not in seen and not name.startswith(NOT_FOLLOWED):
                    seen.add(name)
                    waiting.append(name)
