"""A ledger whose schema moves under load: every DDL, kills, a hole, a failover; equal to the source in the end."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lockstep.changelog import ChangeLog
from lockstep.logfiles import NO_HOUR
from postgres import Cluster, lagging_standby, promote, wait_until
from stranger import Stranger, server_with

SCHEMA = """
CREATE TABLE account (account_id integer PRIMARY KEY, name varchar(10) NOT NULL);
CREATE TABLE payment (
  payment_id integer PRIMARY KEY, account_id integer NOT NULL, amount numeric(6,2) NOT NULL, method text NOT NULL,
  note text);
INSERT INTO account SELECT n, 'name ' || n FROM generate_series(1, 50) AS n;
INSERT INTO payment SELECT n, n % 50 + 1, n / 100.0, (ARRAY['card', 'cash', 'bank'])[n % 3 + 1], 'note ' || n
  FROM generate_series(1, 300) AS n;
"""
WORK = """
INSERT INTO payment (payment_id, account_id, amount, method)
  VALUES ({n} + 1000, {n} % 50 + 1, {n} % 97 / 7.0, (ARRAY['card', 'cash', 'bank'])[{n} % 3 + 1]);
UPDATE payment SET amount = amount + 0.01, method = (ARRAY['cash', 'bank', 'card'])[{n} % 3 + 1]
  WHERE payment_id % 37 = {n} % 37;
DELETE FROM payment WHERE payment_id % 101 = {n} % 101 AND payment_id < {n} + 900;
UPDATE account SET name = 'n ' || {n} WHERE account_id = {n} % 50 + 1;
"""
LATEST = """/* Every payment that lives at the cut. */
MODEL (name rebuild.latest_payments, kind VIEW, grain payment_id);
SELECT
  payment_id::BIGINT AS payment_id, method::TEXT AS method, 1::BIGINT AS payments, amount::DECIMAL(38, 2) AS amount
FROM source.payment
"""
REBUILD = """/* Payments by method at the cut. */
MODEL (
  name rebuild.payments, kind FULL, cron '@daily', start @log_eve(), grain method,
  depends_on (rebuild.cut, chain.payment)
);
SELECT method::TEXT AS method, COUNT(*)::BIGINT AS payments, SUM(amount)::DECIMAL(38, 2) AS amount
FROM rebuild.latest_payments GROUP BY ALL
"""
LATEST_OF_NAMES = """/* Every payment that lives at the cut, with the name that its account has by now. */
MODEL (name rebuild.latest_payers, kind VIEW, grain payment_id);
SELECT
  payment.payment_id::BIGINT AS payment_id, account.name::TEXT AS name, 1::BIGINT AS payments,
  payment.amount::DECIMAL(38, 2) AS amount
FROM source.payment AS payment JOIN source.account AS account ON account.account_id = payment.account_id
"""
REBUILD_OF_NAMES = """/* Payments by the name of the account at the cut. */
MODEL (
  name rebuild.payers, kind FULL, cron '@daily', start @log_eve(), grain name,
  depends_on (rebuild.cut, chain.payment, chain.account)
);
SELECT name::TEXT AS name, COUNT(*)::BIGINT AS payments, SUM(amount)::DECIMAL(38, 2) AS amount
FROM rebuild.latest_payers GROUP BY ALL
"""
FACTS = {
    "models/rebuild/latest_payments.sql": LATEST,
    "models/rebuild/payments.sql": REBUILD,
    "models/rebuild/latest_payers.sql": LATEST_OF_NAMES,
    "models/rebuild/payers.sql": REBUILD_OF_NAMES,
    "seeds/contracts.csv": "payments,sales,batch,60,60\npayers,sales,batch,60,60\n",
}
FIGURES = {
    "payments": ("method", "SELECT method, count(*), sum(amount) FROM payment GROUP BY 1 ORDER BY 1"),
    "payers": (
        "name",
        'SELECT name COLLATE "C", count(*), sum(amount) FROM payment JOIN account USING (account_id) '
        "GROUP BY 1 ORDER BY 1",
    ),
}


class Load:
    """Works in a database until the block ends, and goes on from where the last one ended."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    @contextmanager
    def on(self, server: Cluster) -> Iterator[None]:
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(0.02):
                server.execute(WORK.format(n=next(self._numbers)))

        with ThreadPoolExecutor(1) as thread:
            working = thread.submit(work)
            try:
                yield
            finally:
                stop.set()
                working.result()


@pytest.fixture
def ledger() -> Iterator[Cluster]:
    with server_with(SCHEMA) as server:
        yield server


def test_every_ddl_under_load_a_hole_and_a_failover(ledger: Cluster, tmp_path: Path) -> None:
    stranger, load = Stranger(ledger, tmp_path), Load()
    stranger.init()
    stranger.write(FACTS)
    log = ChangeLog(stranger.home)

    def held() -> bool:
        return "payment" in log.watermark().holds

    def has_taken_up_the_column() -> bool:
        landed = pq.read_schema(log.root / "payment" / NO_HOUR / "0-0.parquet")
        columns = {field.name for field in landed.field("after").type}
        return "channel" in columns and "adopting" not in log.watermark().resume

    def declare(old: str, new: str) -> None:
        path = stranger.project / "source_schema.sql"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    # A column with a default that fills old rows without an event, and wider types: what does not fit is quarantined.
    with stranger.capturing(), load.on(ledger):
        stranger.command("run")
        ledger.execute("ALTER TABLE payment ADD COLUMN channel text DEFAULT 'web'")
        ledger.execute("ALTER TABLE payment ALTER amount TYPE numeric(12,2), ALTER payment_id TYPE bigint")
        ledger.execute("ALTER TABLE account ALTER name TYPE text")
        ledger.execute("INSERT INTO payment VALUES (5000000000, 1, 9999999.99, 'cash', NULL, 'shop')")
        wait_until(held)
    declare("amount numeric(6,2)", "amount numeric(12,2)")
    declare("payment_id integer", "channel text,\n  payment_id bigint")

    # The declaration has followed; then a hole by publication, and a column that is dropped.
    with load.on(ledger), stranger.capturing():
        wait_until(has_taken_up_the_column)
        stranger.command("quarantine", "retry", "--all")
        assert not held()
        ledger.execute("ALTER PUBLICATION lockstep DROP TABLE payment")
        ledger.execute("UPDATE payment SET amount = amount + 1 WHERE payment_id % 5 = 0")
        ledger.execute("ALTER PUBLICATION lockstep ADD TABLE payment")
        wait_until(held)
        stranger.command("capture", ledger.dsn(), "--resync", "payment")
        wait_until(lambda: not held())
        stranger.plan()
        ledger.execute("ALTER TABLE payment DROP COLUMN note")
        wait_until(held)
    declare("note text,\n", "")
    # A standby stays behind, the server dies, and the standby takes its place.
    with lagging_standby(ledger) as standby:
        with stranger.capturing(), load.on(ledger):
            stranger.command("quarantine", "retry", "--all")
            assert not held()
            stranger.wait_for(log.watermark().position + 100)
        ledger.stop("immediate")
        promote(standby)
        moved = Stranger(standby, tmp_path)
        with load.on(standby):
            before = log.watermark().position
            said = moved.command("capture", standby.dsn(), "--until-caught-up", code=1)
            assert "promoted from a standby" in said and "--new-snapshot" in said
            assert log.watermark().position == before
            moved.command("capture", standby.dsn(), "--until-caught-up", "--new-snapshot")
        with moved.capturing():
            with load.on(standby):
                moved.wait_for(log.watermark().position + 100)
            for table in ("account", "payment"):
                assert table in moved.verify()
        expected = {fact: standby.execute(query) for fact, (_, query) in FIGURES.items()}

    moved.plan()
    midnight = moved.run_next_night()
    for fact, (grain, _) in FIGURES.items():
        newest = f"SELECT verdict, cut FROM reconcile.{fact}_receipts ORDER BY cut DESC LIMIT 1"
        assert moved.rows(newest) == [("passed", midnight)]
        figures = f"SELECT {grain}, payments, amount FROM {{}}.{fact} WHERE payments <> 0 ORDER BY 1"
        assert moved.rows(figures.format("rebuild")) == expected[fact]
        assert moved.rows(figures.format("live")) == expected[fact]
        folded = f"SELECT {grain}, SUM(payments), SUM(amount) FROM hourly.{fact} GROUP BY 1 HAVING SUM(payments) <> 0"
        assert moved.rows(f"{folded} ORDER BY 1") == expected[fact]
