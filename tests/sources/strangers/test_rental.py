"""A rental shop: two schemas, keys of any type, partitioned payments, types of every kind, killed under load."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lockstep.changelog import ChangeLog
from postgres import Cluster
from stranger import Stranger, server_with

SCHEMA = """
CREATE SCHEMA staff;
CREATE TYPE rating AS ENUM ('G', 'PG', 'R');
CREATE DOMAIN release_year AS integer CHECK (VALUE >= 1901);
CREATE TABLE film (
  film_id serial PRIMARY KEY, title varchar(80) NOT NULL, rating rating DEFAULT 'G', rate numeric(4,2) NOT NULL,
  features text[], details jsonb, code uuid DEFAULT gen_random_uuid(), year release_year, length interval, "Order" int,
  cover bytea, is_new boolean, seen timestamp DEFAULT now(), opens time,
  title_length integer GENERATED ALWAYS AS (length(title)) STORED);
CREATE TABLE film_actor (
  actor_id smallint, film_id integer REFERENCES film, noted_at timestamptz DEFAULT now(),
  PRIMARY KEY (actor_id, film_id));
CREATE TABLE payment (
  payment_id uuid, paid_on date, film_id integer, amount numeric(10,2), PRIMARY KEY (paid_on, payment_id))
  PARTITION BY RANGE (paid_on);
CREATE TABLE payment_2025 PARTITION OF payment FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE payment_rest PARTITION OF payment DEFAULT;
CREATE TABLE staff.clerk (clerk_id bigint PRIMARY KEY, name char(20), salary money);
CREATE TABLE staff.visit (noted_at timestamptz, ip inet);
CREATE VIEW cheap AS SELECT * FROM film WHERE rate < 1;
INSERT INTO film (title, rate, features, details, length, cover)
  SELECT 'Film ' || n, n / 100.0, ARRAY['a', NULL, 'b,"c"'],
  jsonb_build_object('n', n, 'nested', ARRAY[1, 2]), n * interval '1 minute', decode(md5(n::text), 'hex')
  FROM generate_series(1, 500) AS n;
INSERT INTO film_actor SELECT n % 20, n FROM generate_series(1, 500) AS n;
INSERT INTO payment SELECT md5(n::text)::uuid, '2025-06-01'::date + n, n, n / 10.0 FROM generate_series(1, 500) AS n;
INSERT INTO staff.clerk SELECT n, 'Clerk ' || n, n * 100 FROM generate_series(1, 50) AS n;
INSERT INTO staff.visit SELECT now(), '10.0.0.1' FROM generate_series(1, 50);
"""
SNAPSHOT = 500 * 3 + 50 * 2
DAY = """
UPDATE film SET rate = rate + 0.01, features = features || ARRAY['x'], details = details || '{{"seen": {n}}}',
  rating = (ARRAY['G', 'PG', 'R'])[{n} % 3 + 1]::rating
  WHERE film_id = {n};
DELETE FROM film_actor WHERE film_id = {n};
INSERT INTO film_actor VALUES (21, {n}), (22, {n});
UPDATE payment SET paid_on = paid_on + 300, amount = amount * 2 WHERE film_id = {n};
UPDATE staff.clerk SET clerk_id = clerk_id + 1000 WHERE clerk_id = {n};
INSERT INTO staff.visit VALUES ('2026-01-01', '::1'), ('2026-01-01', '::1');
"""
DAYS = 60
_FILM = [
    *("film_id", "title", "rating", "rate", "details", "code", "year", '"Order"', "is_new", "seen", "opens", "length"),
]
FACT = {
    "models/rebuild/takings.sql": """/* What was paid for the films of each rating, at the cut. */
MODEL (
  name rebuild.takings, kind FULL, cron '@daily', start @log_eve(), grain rating,
  depends_on (rebuild.cut, chain.payment, chain.film)
);
SELECT film.rating::TEXT AS rating, COUNT(*)::BIGINT AS payments, SUM(payment.amount)::DECIMAL(38, 2) AS amount
FROM source.payment AS payment JOIN source.film AS film ON film.film_id = payment.film_id
GROUP BY film.rating
""",
    "seeds/contracts.csv": "takings,rental,batch,60,60\n",
}
# Of each table what the source shows, and the log's rows beside it.
ROWS = {
    "film": (
        [*_FILM, "array_to_json(features)", "encode(cover, 'hex')"],
        [*_FILM, "features", "lower(hex(cover))"],
    ),
    "film_actor": (["actor_id", "film_id", "noted_at AT TIME ZONE 'UTC'"], ["actor_id", "film_id", "noted_at"]),
    "payment": (["payment_id", "paid_on", "film_id", "amount"],) * 2,
    "staff.clerk": (["clerk_id", "concat(name)", "salary::numeric"], ["clerk_id", "name", "salary"]),
    "staff.visit": (["noted_at AT TIME ZONE 'UTC'", "concat(ip)"], ["noted_at", "ip"]),
}


@pytest.fixture
def rental() -> Iterator[Cluster]:
    with server_with(SCHEMA) as server:
        yield server


def test_a_capture_killed_under_load_is_equal_in_the_end(rental: Cluster, tmp_path: Path) -> None:
    stranger = Stranger(rental, tmp_path)
    stranger.init("--append-only", "staff.visit")
    goes_on = threading.Event()

    def work() -> None:
        for n in range(1, DAYS + 1):
            rental.execute(DAY.format(n=n))
            if n == DAYS // 2:
                goes_on.wait(120)

    with ThreadPoolExecutor(1) as thread:
        with stranger.capturing():
            load = thread.submit(work)
            while not load.done() and ChangeLog(stranger.home).watermark().position < SNAPSHOT + 10:
                time.sleep(0.05)
        goes_on.set()
        load.result()
    with stranger.capturing():
        said = stranger.verify()
        rental.execute("TRUNCATE film_actor, staff.visit")
        rental.execute("INSERT INTO film_actor SELECT n % 7, n FROM generate_series(100, 140) AS n")
        rental.execute("INSERT INTO staff.visit VALUES ('2026-01-02', '10.0.0.2'), ('2026-01-02', '10.0.0.2')")
        again = stranger.verify()
    for table in ("film", "film_actor", "payment", "clerk", "visit"):
        assert table in said and table in again
    stranger.write(FACT)
    stranger.run_next_night()
    takings = rental.execute(
        "SELECT rating::text, count(*), sum(amount) FROM payment JOIN film USING (film_id) GROUP BY 1 ORDER BY 1"
    )
    for model in ("rebuild", "live", "hourly"):
        found = f"SELECT rating, SUM(payments), SUM(amount) FROM {model}.takings GROUP BY rating ORDER BY rating"
        assert stranger.rows(found) == takings, model
    for table, (in_the_source, in_the_log) in ROWS.items():
        columns = ", ".join(f"CAST({value} AS text)" for value in in_the_source)
        expected = rental.execute(f"SELECT {columns} FROM {table} ORDER BY {columns}")
        columns = ", ".join(f"CAST({value} AS text)" for value in in_the_log)
        rows = f"SELECT {columns} FROM source.{table.removeprefix('staff.')} ORDER BY {columns}"
        assert expected and stranger.rows(rows) == expected, table
        if table != "staff.visit":  # of an append-only table the rows are not published
            assert stranger.rows(rows, "analytics.duckdb") == expected, table
