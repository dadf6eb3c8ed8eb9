"""A PostgreSQL server as a source: connections, what must be true of it, its slot and its snapshot."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg2
import pyarrow as pa
import pyarrow.csv
from psycopg2 import errors, sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import parse_dsn
from psycopg2.extras import LogicalReplicationConnection

from lockstep.errors import LockstepError
from lockstep.names import POSTGRESQL
from lockstep.partitions import Partition
from lockstep.pgvalues import SESSION, Layout, SourceColumn
from lockstep.schema import TABLES, TEXT, Table, quoted

MINIMUM_VERSION = 150000
WITH_GENERATED = 180000  # the first version that can publish generated columns, those that are stored

# Kinds of relations (pg_class.relkind): those that are captured; others, with what to do instead.
_PARTITIONED = "p"
KINDS = ("r", _PARTITIONED)
OTHER_KINDS = {
    "v": ("a view", "capture the tables that it reads"),
    "m": ("a materialized view", "capture the tables that it reads"),
    "f": ("a foreign table", "its rows are in another server, so capture them there"),
}

# How long the server may take to notice that a reader of a slot, killed perhaps, is gone.
LEFTOVER_SECONDS = 5.0

# A role's own limits are for its queries by hand: ours may last, and a wait for a transaction may last longer.
_UNLIMITED = {"statement_timeout": "0", "lock_timeout": "0", "idle_in_transaction_session_timeout": "0"}

# A cut network must not leave us waiting for ever: the kernel asks the other side, and gives up after half a minute.
_NETWORK = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


# Not by to_regclass, which fails where the schema may not be used.
_RELATIONS = """
FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY AS t (schema, name, place)
JOIN pg_namespace AS n ON n.nspname = t.schema
JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = t.name
"""


@dataclass(frozen=True)
class Problem:
    """What keeps a source from being captured, and the statement that mends it.

    `is_fatal` is false for what breaks rows rather than the stream: a capture that is under way goes on, its broken
    rows go to quarantine. `hinders_reading` is false for what concerns changes alone: the rows that there are can be
    read all the same.
    """

    text: str
    statement: str
    is_fatal: bool = True
    hinders_reading: bool = True


@dataclass(frozen=True)
class Identity:
    """What tells one server and database from another, also when both have the same name.

    `timeline` is the branch of the server's log: a standby that is promoted begins a new one.
    """

    system_identifier: str
    database: str
    timeline: int

    @property
    def source(self) -> str:
        """The name of the source in the change log; Debezium's events of the same database give the same."""
        return f"postgresql:{self.database}"


@dataclass(frozen=True)
class Slot:
    """A replication slot. `confirmed_lsn` is what it was last told has landed."""

    plugin: str
    database: str
    active_pid: int | None
    is_lost: bool
    confirmed_lsn: int


@dataclass(frozen=True)
class Snapshot:
    """A view of the whole database, tied to the point of its log at which a new slot begins."""

    lsn: int
    name: str


@dataclass(frozen=True)
class Source:
    """A database to capture, by libpq connection string, and the names of what capturing makes in it.

    `schema` is that of the tables whose declaration names none.

    Every method raises LockstepError where the user can act on what went wrong, psycopg2.Error where a connection was
    lost that worked before.
    """

    dsn: str
    slot: str = "lockstep"
    publication: str = "lockstep"
    schema: str = "public"
    application: str = "lockstep capture"  # as the server's list of sessions names us

    def connect(self) -> Connection:
        """An ordinary connection in autocommit whose text output is what `pgvalues` reads."""
        connection: Connection = psycopg2.connect(**self._arguments())
        connection.autocommit = True
        return connection

    def connect_replication(self) -> LogicalReplicationConnection:
        connection: LogicalReplicationConnection = psycopg2.connect(
            **self._arguments(), connection_factory=LogicalReplicationConnection
        )
        return connection

    def _arguments(self, without: str = "") -> dict[str, Any]:
        given = parse_dsn(self.dsn)
        wanted = {name: value for name, value in {**SESSION, **_UNLIMITED}.items() if name != without}
        settings = "".join(f" -c {name}={value}" for name, value in wanted.items())
        ours = {
            "application_name": self.application,
            "client_encoding": "UTF8",
            "options": given.get("options", "") + settings,
        }
        return {**_NETWORK, **given, **ours}

    def first_connection(self) -> Connection:
        """An ordinary connection, with whatever hinders it said plainly."""
        scheme = self.dsn.partition("://")[0] if "://" in self.dsn else "postgresql"
        if scheme not in ("postgresql", "postgres"):
            raise LockstepError(
                f"{scheme}:// is not an address of PostgreSQL, the one database that is read directly: write "
                "postgresql://USER@HOST/DATABASE. Others are read through Debezium: `lockstep ingest debezium:FILE`, "
                "with the connector's settings in FILE."
            )
        try:
            return self.connect()
        except psycopg2.ProgrammingError as e:
            raise LockstepError(f"The connection string cannot be read: {_first_line(e)}.") from None
        except psycopg2.OperationalError as e:
            raise LockstepError(f"PostgreSQL cannot be reached: {_first_line(e)}.") from None

    @contextmanager
    def first_connections(self) -> Iterator[tuple[Connection, LogicalReplicationConnection]]:
        """An ordinary and a replication connection, with whatever hinders either said plainly."""
        connection = self.first_connection()
        try:
            replication = self._first_replication(connection)
            try:
                yield connection, replication
            finally:
                replication.close()
        finally:
            connection.close()

    def _first_replication(self, connection: Connection) -> LogicalReplicationConnection:
        try:
            return self.connect_replication()
        except psycopg2.OperationalError as e:
            problem = self._no_replication(connection, str(e))
        raise LockstepError(f"{problem.text}\n    {problem.statement}")

    def replication_problem(self, connection: Connection) -> Problem | None:
        """What keeps a replication connection from being opened, found by opening one."""
        try:
            self.connect_replication().close()
        except psycopg2.OperationalError as e:
            return self._no_replication(connection, str(e))
        return None

    def _no_replication(self, connection: Connection, text: str) -> Problem:
        [[user]] = query(connection, "SELECT quote_ident(current_user)")
        if "replication" in text.lower() and ("role" in text or "permission" in text):
            why, statement = "it needs the REPLICATION privilege", f"ALTER ROLE {user} REPLICATION;"
        elif "max_wal_senders" in text or "too many clients" in text:
            why = "no connection for replication is free"
            statement = "ALTER SYSTEM SET max_wal_senders = 20;  -- then restart the server"
        else:
            why, statement = "the server does not let it in", "-- pg_hba.conf must let this user into this database"
        return Problem(f"{user} cannot open a replication connection, {why}: {' '.join(text.split())}", statement)

    def identity(self, replication: LogicalReplicationConnection) -> Identity:
        with replication.cursor() as cursor:
            cursor.execute("IDENTIFY_SYSTEM")
            row = cursor.fetchone()
        assert row is not None
        return Identity(row[0], row[3], row[1])

    def timeline_left_at(self, replication: LogicalReplicationConnection, timeline: int) -> int | None:
        """Where the server's log left an earlier timeline: None if it is still on it, 0 if it never was."""
        current = self.identity(replication).timeline
        if timeline == current:
            return None
        with replication.cursor() as cursor:
            cursor.execute(f"TIMELINE_HISTORY {current}")
            row = cursor.fetchone()
        assert row is not None
        lines = (line.split("\t") for line in row[1].splitlines() if line[:1].isdigit())
        return next((parse_lsn(line[1]) for line in lines if int(line[0]) == timeline), 0)

    def slot_state(self, connection: Connection) -> Slot | None:
        rows = query(
            connection,
            "SELECT plugin, database, active_pid, wal_status = 'lost', confirmed_flush_lsn "
            "FROM pg_replication_slots WHERE slot_name = %s",
            (self.slot,),
        )
        if not rows:
            return None
        plugin, database, active_pid, is_lost, confirmed = rows[0]
        return Slot(plugin, database, active_pid, bool(is_lost), parse_lsn(confirmed) if confirmed else 0)

    def drop_slot(self, connection: Connection) -> None:
        """Drop the slot if there is one. If somebody reads it, LEFTOVER_SECONDS are left for them to be gone."""
        given_up = time.monotonic() + LEFTOVER_SECONDS
        while self.slot_state(connection):
            try:
                query(connection, "SELECT pg_drop_replication_slot(%s)", (self.slot,))
            except errors.ObjectInUse:
                if time.monotonic() > given_up:
                    raise LockstepError(self.in_use(connection)) from None
                time.sleep(0.1)

    def in_use(self, connection: Connection) -> str:
        """Who is reading the slot, in words."""
        rows = query(
            connection,
            "SELECT s.active_pid, a.application_name, a.client_addr, a.backend_start FROM pg_replication_slots AS s "
            "LEFT JOIN pg_stat_activity AS a ON a.pid = s.active_pid WHERE s.slot_name = %s",
            (self.slot,),
        )
        if not rows or rows[0][0] is None:
            return f"Replication slot {self.slot} is in use. Try again."
        pid, application, address, since = rows[0]
        who = (
            f"server process {pid} ({application or 'unknown'}, from {address or 'this machine'}, since {since:%F %T})"
        )
        return (
            f"Replication slot {self.slot} is being read by {who}: another capture is running. Stop that one, or "
            f"capture into a data home of its own with `--slot NAME`. Should it be a leftover: "
            f"SELECT pg_terminate_backend({pid});"
        )

    def create_publication(self, connection: Connection) -> bool:
        """Make the publication of the source tables if there is none; whether one was made."""
        if query(connection, "SELECT 1 FROM pg_publication WHERE pubname = %s", (self.publication,)):
            return False
        tables = list(TABLES.values())
        query(connection, self._publication_statement(connection, tables, self._relations(connection, tables)))
        return True

    def drop_publication(self, connection: Connection) -> None:
        query(connection, sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(self.publication)))

    def _publication_statement(
        self, connection: Connection, tables: Iterable[Table], found: Mapping[str, _Relation]
    ) -> str:
        names = [
            f"{'ONLY ' if t.name in found and found[t.name].has_heirs else ''}{self._name(connection, t)}"
            for t in tables
        ]
        publication = sql.Identifier(self.publication).as_string(connection)
        via_root = any(r.kind == _PARTITIONED for r in found.values())
        options = ["publish_via_partition_root = true"] if via_root else []
        if connection.server_version >= WITH_GENERATED:
            # Else the server refuses every update of a table with a generated column and REPLICA IDENTITY FULL.
            options.append("publish_generated_columns = stored")
        clause = f" WITH ({', '.join(options)})" if options else ""
        return f"CREATE PUBLICATION {publication} FOR TABLE {', '.join(names)}{clause}"

    def create_slot(
        self,
        replication: LogicalReplicationConnection,
        *,
        is_temporary: bool = False,
        while_waiting: Callable[[float], bool] = lambda seconds: True,
    ) -> Snapshot:
        """Make the slot. Its snapshot can be read until the next command on `replication`, or its end.

        The server first waits for every transaction that is running now. Until it is done `while_waiting` is called
        several times a second with the seconds that have passed; False gives up, which raises QueryCanceled. What it
        raises is raised.

        A temporary slot is gone with `replication`, whatever ends it.
        """
        name = sql.Identifier(self.slot).as_string(replication)
        kind = "TEMPORARY LOGICAL" if is_temporary else "LOGICAL"

        def create() -> Any:
            with replication.cursor() as cursor:
                cursor.execute(f"CREATE_REPLICATION_SLOT {name} {kind} pgoutput EXPORT_SNAPSHOT")
                return cursor.fetchone()

        started = time.monotonic()
        with ThreadPoolExecutor(1, "slot") as thread:  # the call lasts, and a signal does not end it
            making = thread.submit(create)
            try:
                while not wait([making], timeout=0.2).done:
                    if not while_waiting(time.monotonic() - started):
                        replication.cancel()
            except BaseException:
                replication.cancel()
                raise
            row = making.result()
        assert row is not None
        return Snapshot(parse_lsn(row[1]), row[2])

    def unfinished(self, connection: Connection) -> list[str]:
        """The transactions that a new slot waits for, oldest first, each with how to end it."""
        prepared = query(connection, "SELECT gid, database, prepared FROM pg_prepared_xacts ORDER BY prepared")
        running = query(
            connection,
            "SELECT pid, datname, application_name, xact_start FROM pg_stat_activity "
            "WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start",
        )
        return [
            f"prepared transaction {gid!r} of database {database}, since {since:%F %T}: COMMIT PREPARED '{gid}'; or "
            f"ROLLBACK PREPARED '{gid}';"
            for gid, database, since in prepared
        ] + [
            f"server process {pid} ({application or 'unknown'}) of database {database}, in a transaction since "
            f"{since:%F %T}: end it there, or SELECT pg_terminate_backend({pid});"
            for pid, database, application, since in running
        ]

    def published(self, connection: Connection) -> dict[str, Any]:
        """What tells that the publication and each table's place in it are still the same, to be compared.

        A table that leaves the publication and comes back, or is dropped and made again, or swapped by renaming, has
        other numbers; so has a publication whose kinds of changes were altered.
        """
        publication = query(
            connection, "SELECT oid::text, xmin::text FROM pg_publication WHERE pubname = %s", (self.publication,)
        )
        tables = query(
            connection,
            """
            SELECT t.schemaname, c.relname, c.oid::text, COALESCE(r.oid::text, '')
            FROM pg_publication_tables AS t
            JOIN pg_namespace AS n ON n.nspname = t.schemaname
            JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = t.tablename
            LEFT JOIN (pg_publication_rel AS r JOIN pg_publication AS p ON p.oid = r.prpubid AND p.pubname = %s)
              ON r.prrelid = c.oid
            WHERE t.pubname = %s
            """,
            (self.publication, self.publication),
        )
        ours = {table.in_postgresql(self.schema): name for name, table in TABLES.items()}
        return {
            "publication": [list(row) for row in publication],
            "tables": {
                ours[schema, name]: [oid, membership]
                for schema, name, oid, membership in sorted(tables)
                if (schema, name) in ours
            },
        }

    @contextmanager
    def reading(self, snapshot: Snapshot) -> Iterator[tuple[Connection, int, datetime]]:
        """A connection that sees the snapshot, with the snapshot's transaction id and time (UTC)."""
        connection = self.connect()
        try:
            # Without this a row-level security policy would quietly hide rows; with it reading them fails.
            query(connection, "SET row_security = off")
            query(connection, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            query(connection, "SET TRANSACTION SNAPSHOT %s", (snapshot.name,))
            [[xid, at]] = query(
                connection, "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint & 4294967295, now()"
            )
            yield connection, xid, at.astimezone(UTC).replace(tzinfo=None)
        finally:
            connection.close()

    def hold(self, connection: Connection, tables: Iterable[Table]) -> list[str]:
        """Keep the tables from being truncated or rewritten until the connection's transaction ends.

        Returns the names of those that were since its snapshot: reading them would not give the snapshot's rows.
        """
        tables = list(tables)
        names = [self._name(connection, table) for table in tables]
        query(connection, f"LOCK TABLE {', '.join(names)} IN ACCESS SHARE MODE")
        # The catalog's row is read by the snapshot, the function tells what is now.
        statement = """
        SELECT DISTINCT n.nspname, t.relname
        FROM pg_class AS t JOIN pg_namespace AS n ON n.oid = t.relnamespace, pg_class AS c
        WHERE t.oid = ANY(%s::regclass[]) AND c.relfilenode <> pg_relation_filenode(c.oid)
          AND (c.oid = t.oid OR c.oid IN (SELECT relid FROM pg_partition_tree(t.oid)))
        """
        ours = {table.in_postgresql(self.schema): table.name for table in tables}
        return [ours[schema, name] for schema, name in query(connection, statement, (names,))]

    def partitions(self, connection: Connection) -> dict[str, dict[str, Partition]]:
        """The partitions of each source table that is partitioned, by their OIDs.

        One can be captured as it is if it has REPLICA IDENTITY FULL, where the table needs that.
        """
        tables = list(TABLES.values())
        rows = query(
            connection,
            f"""
            WITH RECURSIVE root AS (
              SELECT t.place - 1 AS place, c.oid {_RELATIONS} AND c.relkind = 'p'
            ), tree AS ( /* pg_partition_tree locks all partitions; see _relations */
              SELECT r.place, i.inhrelid, i.xmin FROM root AS r JOIN pg_inherits AS i ON i.inhparent = r.oid
              UNION ALL
              SELECT t.place, i.inhrelid, i.xmin FROM tree AS t JOIN pg_inherits AS i ON i.inhparent = t.inhrelid
            )
            SELECT r.place, c.oid::text, n.nspname, c.relname, t.xmin::text, y.xmin::text, c.relfilenode::text,
              c.xmin::text, c.relreplident
            FROM root AS r
            LEFT JOIN (
              tree AS t
              JOIN pg_class AS c ON c.oid = t.inhrelid
              JOIN pg_namespace AS n ON n.oid = c.relnamespace
              JOIN pg_type AS y ON y.oid = c.reltype
            ) ON t.place = r.place
            ORDER BY r.place, n.nspname, c.relname
            """,
            self._names(tables),
        )
        found: dict[str, dict[str, Partition]] = {}
        for place, oid, schema, name, attached, created, storage, changed, identity in rows:
            partitions = found.setdefault(tables[place].name, {})
            if oid is not None:
                is_whole = identity == "f" or tables[place].is_append_only
                label = sql.Identifier(schema, name).as_string(connection)
                partitions[oid] = Partition(label, attached, created, storage, changed, is_whole)
        return found

    def filled(self, connection: Connection, oids: Iterable[str]) -> list[str] | None:
        """Those of the tables with these OIDs that have rows; None if DDL under way keeps us from knowing.

        This waits for a lock, for a second at most, and keeps none.
        """
        try:
            query(connection, "SET lock_timeout = '1s'")
            rows = query(
                connection,
                "SELECT oid::text FROM pg_class WHERE oid = ANY(%s::oid[]) AND pg_relation_size(oid) > 0",
                (list(oids),),
            )
        except errors.LockNotAvailable:
            return None
        finally:
            query(connection, "RESET lock_timeout")
        return [oid for (oid,) in rows]

    def layout(self, connection: Connection, table: Table) -> Layout:
        """The columns that the table has now and the stream sends: a generated one if the publication has those."""
        return self.layouts(connection, [table])[table.name]

    def layouts(self, connection: Connection, tables: Iterable[Table]) -> dict[str, Layout]:
        """`layout` of many tables by name, in one query."""
        tables = list(tables)
        sent = "'', 's'" if self._publishes_generated(connection) else "''"
        rows = query(
            connection,
            f"""
            SELECT t.place - 1, a.attname, a.atttypid {_RELATIONS}
            JOIN pg_attribute AS a ON a.attrelid = c.oid
            WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated IN ({sent}) ORDER BY a.attnum
            """,
            self._names(tables),
        )
        columns: list[list[SourceColumn]] = [[] for _ in tables]
        for place, column, type_oid in rows:
            columns[place].append(SourceColumn(column, type_oid))
        return {t.name: Layout(t, tuple(found)) for t, found in zip(tables, columns, strict=True)}

    def _publishes_generated(self, connection: Connection) -> bool:
        """Whether the publication, or the one that `create_publication` would make, has stored generated columns."""
        if connection.server_version < WITH_GENERATED:
            return False
        rows = query(connection, "SELECT pubgencols = 's' FROM pg_publication WHERE pubname = %s", (self.publication,))
        return bool(not rows or rows[0][0])

    def copy(
        self,
        connection: Connection,
        layout: Layout,
        take: Callable[[list[pa.Array]], None],
        max_rows: int,
        max_bytes: int,
    ) -> None:
        """Hand the table's rows to `take` in chunks: the text of each of the layout's columns.

        A partitioned table has the rows of its partitions. One that others inherit from has its own only: theirs are
        changes of theirs in the stream.
        """
        found = self._relations(connection, [layout.table])
        is_partitioned = found[layout.table.name].kind == _PARTITIONED
        statement = sql.SQL("COPY (SELECT {} FROM {}{}) TO STDOUT (FORMAT csv, FORCE_QUOTE *)").format(
            sql.SQL(", ").join(sql.Identifier(c.name) for c in layout.columns),
            sql.SQL("" if is_partitioned else "ONLY "),
            self._qualified(layout.table),
        )
        chunks: Any = _Chunks([c.name for c in layout.columns], take, max_rows, max_bytes)
        with connection.cursor() as cursor:
            cursor.copy_expert(statement, chunks)
        chunks.flush()

    def _qualified(self, table: Table) -> sql.Identifier:
        return sql.Identifier(*table.in_postgresql(self.schema))

    def _name(self, connection: Connection, table: Table) -> str:
        """The table's qualified name, quoted for SQL."""
        return self._qualified(table).as_string(connection)

    def _names(self, tables: Sequence[Table]) -> tuple[list[str], list[str]]:
        """What `_RELATIONS` takes: the tables' schemas and names."""
        places = [table.in_postgresql(self.schema) for table in tables]
        return [schema for schema, _ in places], [name for _, name in places]

    def check(self, connection: Connection, tables: Iterable[Table] | None = None) -> list[Problem]:
        """Everything that keeps these tables (by default all) from being captured, to be mended all at once.

        It asks a fixed number of queries, however many tables there are.
        """
        if connection.server_version < MINIMUM_VERSION:  # its catalog lacks what is asked for below
            return [
                Problem(
                    f"this is PostgreSQL {connection.server_version // 10000}, capturing needs 15 or later",
                    "-- upgrade the server, or capture with Debezium and `lockstep ingest`",
                )
            ]
        tables = list(TABLES.values() if tables is None else tables)
        layouts = self.layouts(connection, tables)
        found = self._relations(connection, tables)
        problems = self._check_server(connection)
        places: dict[tuple[str, str], Table] = {}
        for table in tables:
            other = places.setdefault(table.in_postgresql(self.schema), table)
            if other is not table:
                text = f"{other.name} and {table.name} are both declared as {self._name(connection, table)}"
                problems.append(Problem(text, "-- leave one of them out of source_schema.sql"))
            problems += self._check_table(connection, layouts[table.name], found.get(table.name))
        if any(column.kind.name == "money" for table in tables for column in table.columns):
            problems += self._check_money()
        return problems + self._check_publication(connection, layouts, found)

    def _check_money(self) -> list[Problem]:
        """Money is a whole number that the database's own locale divides: we read it by a locale that means cents."""
        with closing(psycopg2.connect(**self._arguments(without="lc_monetary"))) as connection:
            [[digits, locale]] = query(connection, "SELECT scale('0'::money::numeric), current_setting('lc_monetary')")
        if digits == 2:
            return []
        return [
            Problem(
                f"money has {digits} digits after the point here (lc_monetary is {locale}), and two in the change log",
                f"-- make its columns numeric(19, {digits}), or leave them out of source_schema.sql",
            )
        ]

    def _check_server(self, connection: Connection) -> list[Problem]:
        problems = []
        [[is_standby]] = query(connection, "SELECT pg_is_in_recovery()")
        if is_standby:
            problems.append(
                Problem(
                    "this server is a standby: publication and slot are made on the primary, whose changes it repeats",
                    "-- give the primary's address; here, SHOW primary_conninfo; names it",
                )
            )
        [[wal_level, encoding, slots, free]] = query(
            connection,
            "SELECT current_setting('wal_level'), current_setting('server_encoding'), "
            "current_setting('max_replication_slots')::int, "
            "current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots)",
        )
        if wal_level != "logical":
            problems.append(
                Problem(
                    f"wal_level is {wal_level}, capturing needs logical",
                    "ALTER SYSTEM SET wal_level = logical;  -- then restart the server",
                )
            )
        if encoding == "SQL_ASCII":
            problems.append(
                Problem(
                    "the database has the encoding SQL_ASCII: nobody knows what its text means",
                    "-- dump it and restore it into a database with ENCODING 'UTF8'",
                )
            )
        if free <= 0 and not self.slot_state(connection):
            problems.append(
                Problem(
                    f"all {slots} replication slots are taken",
                    f"ALTER SYSTEM SET max_replication_slots = {slots + 5};  -- then restart the server",
                )
            )
        return problems

    def _relations(self, connection: Connection, tables: Sequence[Table]) -> dict[str, _Relation]:
        """What the catalog says of the tables that there are, by name."""
        rows = query(
            connection,
            f"""
            SELECT t.place - 1, c.relkind, c.relpersistence, c.relreplident,
              has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(c.relnamespace, 'USAGE'),
              pg_has_role(c.relowner, 'USAGE'),
              EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhparent = c.oid AND c.relkind = 'r'),
              (
                /* pg_partition_tree locks all partitions, and deadlocks with DDL that adds one and drops another. */
                WITH RECURSIVE tree AS (
                  SELECT i.inhrelid FROM pg_inherits AS i WHERE i.inhparent = c.oid AND c.relkind = 'p'
                  UNION
                  SELECT i.inhrelid FROM tree JOIN pg_inherits AS i ON i.inhparent = tree.inhrelid
                )
                SELECT COALESCE(json_agg(json_build_array(pn.nspname, p.relname, p.relpersistence, p.relreplident)
                  ORDER BY pn.nspname, p.relname), '[]')
                FROM tree
                JOIN pg_class AS p ON p.oid = tree.inhrelid
                JOIN pg_namespace AS pn ON pn.oid = p.relnamespace
              ),
              ARRAY(
                SELECT a.attname::text FROM pg_index AS i
                CROSS JOIN unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, place)
                JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = k.attnum
                WHERE i.indrelid = c.oid AND i.indisprimary ORDER BY k.place
              ),
              ARRAY(
                SELECT a.attgenerated::text FROM pg_attribute AS a
                WHERE a.attrelid = c.oid AND a.attgenerated <> '' AND NOT a.attisdropped
              )
            {_RELATIONS}
            """,
            self._names(tables),
        )
        return {tables[place].name: _Relation(*facts) for place, *facts in rows}

    def _check_table(self, connection: Connection, layout: Layout, found: _Relation | None) -> list[Problem]:
        table = layout.table
        name = self._name(connection, table)
        if found is None:
            statement = "-- create it as in the source schema, or use --schema NAME"
            if table.schema:
                statement = f"-- create it, or declare the table in the schema it is in: it is {table.schema} now"
            return [Problem(f"table {name} is missing", statement, is_fatal=False)]
        problems = []
        if found.kind not in KINDS:
            what, way_out = OTHER_KINDS.get(found.kind, ("no table", "leave it out of the source schema"))
            problems.append(Problem(f"{name} is {what}", f"-- {way_out}, and leave it out of the source schema"))
            return problems
        stored = [(name, found.persistence, found.identity)]
        for schema, partition, persistence, identity in found.partitions:
            stored.append((sql.Identifier(schema, partition).as_string(connection), persistence, identity))
        problems += [
            Problem(
                f"{part} is unlogged: the server's log, from which changes are captured, has none of its changes",
                f"ALTER TABLE {part} SET LOGGED;",
                hinders_reading=False,
            )
            for part, persistence, _ in stored
            if persistence == "u"
        ]
        if not found.is_readable:
            user = query(connection, "SELECT quote_ident(current_user)")[0][0]
            schema = sql.Identifier(table.in_postgresql(self.schema)[0]).as_string(connection)
            problems.append(
                Problem(
                    f"{user} may not read {name}",
                    f"GRANT USAGE ON SCHEMA {schema} TO {user}; GRANT SELECT ON {name} TO {user};",
                    is_fatal=False,
                )
            )
        key = table.key_at(POSTGRESQL)
        wanted = ", ".join(map(quoted, key))
        if not found.key and table.key:
            statement = f"ALTER TABLE {name} ADD PRIMARY KEY ({wanted});"
            problem = Problem(f"{name} has no primary key", statement, is_fatal=False, hinders_reading=False)
            problems.append(problem)
        elif table.key and sorted(found.key) != sorted(key):
            problems.append(
                Problem(
                    f"the primary key of {name} is ({', '.join(found.key)}), it must be ({wanted})",
                    f"-- change it: the change log knows a row of {table.name} by ({wanted})",
                    is_fatal=False,
                    hinders_reading=False,
                )
            )
        problems += [
            Problem(
                f"{part} does not have REPLICA IDENTITY FULL: its updates would come without the row before",
                f"ALTER TABLE {part} REPLICA IDENTITY FULL;",
                is_fatal=False,
                hinders_reading=False,
            )
            for part, _, identity in stored
            if identity != "f" and not table.is_append_only
        ]
        if "v" in found.generated and not table.is_append_only:
            problems.append(
                Problem(
                    f"{name} has a virtual generated column: the server refuses every update and delete of it "
                    "once it is published with REPLICA IDENTITY FULL",
                    f"-- make the column STORED, or leave {name} out of the source schema",
                    hinders_reading=False,
                )
            )
        if layout.problem:
            statement = " ".join(layout.mend(name))
            problems.append(Problem(f"{name}: {layout.problem}", statement, is_fatal=False))
        return problems

    def _check_publication(
        self, connection: Connection, layouts: Mapping[str, Layout], found: Mapping[str, _Relation]
    ) -> list[Problem]:
        name = sql.Identifier(self.publication).as_string(connection)
        tables = {n: layout.table for n, layout in layouts.items()}
        rows = query(
            connection,
            "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot FROM pg_publication "
            "WHERE pubname = %s",
            (self.publication,),
        )
        if not rows:
            return self._check_right_to_publish(connection, tables.values(), found)
        problems = []
        if not rows[0][0]:
            statement = f"ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate');"
            text = f"publication {name} leaves out some kinds of changes"
            problems.append(Problem(text, statement, hinders_reading=False))
        generated = [n for n, t in tables.items() if n in found and "s" in found[n].generated and not t.is_append_only]
        if generated and connection.server_version >= WITH_GENERATED and not self._publishes_generated(connection):
            statement = f"ALTER PUBLICATION {name} SET (publish_generated_columns = stored);"
            text = (
                f"publication {name} leaves out generated columns: the server refuses every update and delete of "
                f"{', '.join(generated)}"
            )
            problems.append(Problem(text, statement, hinders_reading=False))
        partitioned = [n for n in tables if n in found and found[n].kind == _PARTITIONED]
        if partitioned and not rows[0][1]:
            statement = f"ALTER PUBLICATION {name} SET (publish_via_partition_root = true);"
            text = f"publication {name} sends changes of the partitions of {', '.join(partitioned)}, not of the table"
            problems.append(Problem(text, statement, hinders_reading=False))
            tables = {n: table for n, table in tables.items() if n not in partitioned}
        published = {
            (schema, table): (row_filter, set(columns))
            for schema, table, row_filter, columns in query(
                connection,
                "SELECT schemaname, tablename, rowfilter, attnames::text[] FROM pg_publication_tables "
                "WHERE pubname = %s",
                (self.publication,),
            )
        }
        places = {n: published.get(table.in_postgresql(self.schema)) for n, table in tables.items()}
        lacking = [n for n, place in places.items() if place is None]
        if lacking:
            statement = (
                f"ALTER PUBLICATION {name} ADD TABLE {', '.join(self._name(connection, tables[n]) for n in lacking)};"
            )
            text = f"publication {name} lacks {', '.join(lacking)}"
            problems.append(Problem(text, statement, is_fatal=False, hinders_reading=False))
        for table_name, place in places.items():
            row_filter, columns = place or (None, None)
            left_out = columns is not None and {c.name for c in layouts[table_name].columns} - columns
            if row_filter or left_out:
                what = f"rows outside {row_filter}" if row_filter else f"columns {', '.join(sorted(left_out or ()))}"
                qualified = self._name(connection, tables[table_name])
                statement = (
                    f"ALTER PUBLICATION {name} DROP TABLE {qualified}; ALTER PUBLICATION {name} ADD TABLE {qualified};"
                )
                text = f"publication {name} leaves out {what} of {table_name}"
                problems.append(Problem(text, statement, hinders_reading=False))
        return problems

    def _check_right_to_publish(
        self, connection: Connection, tables: Iterable[Table], found: Mapping[str, _Relation]
    ) -> list[Problem]:
        [[user, may_create]] = query(
            connection, "SELECT quote_ident(current_user), has_database_privilege(current_database(), 'CREATE')"
        )
        others = [t for t in tables if t.name in found and not found[t.name].is_owned]
        if may_create and not others:
            return []
        why = "does not own all tables" if others else "may not create anything in this database"
        return [
            Problem(
                f"{user} {why}, so it cannot make the publication; an owner of the tables or a superuser can",
                f"{self._publication_statement(connection, tables, found)};",
                hinders_reading=False,
            )
        ]


@dataclass(frozen=True)
class _Relation:
    """A table as the catalog has it. `is_owned` if the user may do what its owner may.

    `has_heirs` if other tables inherit from it. `partitions` are (schema, name, persistence, replica identity).
    `generated` has the kind of each generated column: `s` for stored, `v` for virtual.
    """

    kind: str
    persistence: str
    identity: str
    is_readable: bool
    is_owned: bool
    has_heirs: bool
    partitions: Sequence[tuple[str, str, str, str]]
    key: Sequence[str]
    generated: Sequence[str]


def query(connection: Connection, statement: str | sql.Composable, parameters: tuple[Any, ...] = ()) -> list[Any]:
    """Run a statement; its rows, if it has any."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []


def parse_lsn(text: str) -> int:
    """A position in PostgreSQL's log, from its usual spelling (16/B374D848)."""
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def format_lsn(lsn: int) -> str:
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def is_out_of_reach(error: psycopg2.Error) -> bool:
    """Whether trying again can help: the connection is gone, or the server is starting or stopping."""
    return error.pgcode is None or error.pgcode[:2] in ("08", "57", "53")


def close_quietly(*connections: Connection | None) -> None:
    for connection in connections:
        if connection is not None:
            with suppress(psycopg2.Error):
                connection.close()


def _first_line(error: psycopg2.Error) -> str:
    return (str(error).strip().splitlines() or ["unknown error"])[0]


class _Chunks:
    """Takes COPY's output, one row a call, and hands it on in chunks of Arrow columns."""

    def __init__(
        self, columns: list[str], take: Callable[[list[pa.Array]], None], max_rows: int, max_bytes: int
    ) -> None:
        self._columns = columns
        self._take = take
        self._max_rows, self._max_bytes = max_rows, max_bytes
        self._rows: list[bytes] = []
        self._size = 0

    def write(self, row: bytes) -> int:
        self._rows.append(row)
        self._size += len(row)
        if len(self._rows) >= self._max_rows or self._size >= self._max_bytes:
            self.flush()
        return len(row)

    def flush(self) -> None:
        if not self._rows:
            return
        text = b"".join(self._rows)
        self._rows, self._size = [], 0
        table = pyarrow.csv.read_csv(
            pa.BufferReader(text),
            # With threads the reader copies the text once more: 60 MB, where rows are wide.
            read_options=pyarrow.csv.ReadOptions(
                column_names=self._columns, block_size=len(text) + 1, use_threads=False
            ),
            # A row of one column that is NULL is an empty line.
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
            # NULL is nothing at all, an empty text is quoted.
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(self._columns, TEXT),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        columns = [pa.concat_arrays(column.chunks) for column in table.columns]
        del text, table  # they are as large as what is made of the columns
        self._take(columns)
