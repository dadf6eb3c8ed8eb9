"""Capture under fire: killed at random again and again, under load, the server crashing too.

Nothing may be lost or doubled. What really happened is known independently of everything that is tested: triggers in
the source write down each row change with its transaction. The test prints its kills, losses and doubles.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from lockstep.changelog import ChangeLog
from postgres import Cluster, assert_log_is_source, cluster, landed, shop

__all__ = ["cluster", "shop"]  # fixtures

LOCKSTEP = str(Path(sys.executable).with_name("lockstep"))
KILLS_IN_SNAPSHOT, KILLS_IN_STREAM, CRASH_AFTER = 3, 10, (3, 7)
TABLES = {"orders": "order_id", "products": "product_id", "shipments": "shipment_id"}

WITNESS = """
CREATE TABLE witness (tx_id bigint, name text, op text, key bigint);
CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  old_key bigint := CASE WHEN TG_OP <> 'INSERT' THEN (to_jsonb(OLD) ->> TG_ARGV[0])::bigint END;
  new_key bigint := CASE WHEN TG_OP <> 'DELETE' THEN (to_jsonb(NEW) ->> TG_ARGV[0])::bigint END;
  tx_id bigint := txid_current() & 4294967295;
BEGIN
  IF TG_OP = 'UPDATE' AND old_key = new_key THEN
    INSERT INTO witness VALUES (tx_id, TG_TABLE_NAME, 'u', new_key);
  ELSE
    IF TG_OP <> 'INSERT' THEN INSERT INTO witness VALUES (tx_id, TG_TABLE_NAME, 'd', old_key); END IF;
    IF TG_OP <> 'DELETE' THEN INSERT INTO witness VALUES (tx_id, TG_TABLE_NAME, 'c', new_key); END IF;
  END IF;
  RETURN NULL;
END $$;
"""

ORDER = "INSERT INTO orders SELECT g, 1, 1, 'north', 1, g, 'new', now(), now() FROM generate_series({0}, {1}) AS g"
PRODUCT = "INSERT INTO products SELECT g, 'p', 'tea', g, now() FROM generate_series({0}, {1}) AS g"
SHIPMENT = (
    "INSERT INTO shipments SELECT g, g, NULL, 'north', 'created', NULL, now(), now(), NULL, now() "
    "FROM generate_series({0}, {1}) AS g"
)


class Load(threading.Thread):
    """Random transactions, one after the other, on keys of its own; goes on when the server crashes."""

    def __init__(self, shop: Cluster, number: int, seed: int) -> None:
        super().__init__(daemon=True)
        self._shop = shop
        self._random = random.Random(seed)
        self._next = number * 100_000_000
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                with closing(psycopg2.connect(self._shop.dsn())) as connection:
                    while not self.stop.is_set():
                        with connection, connection.cursor() as cursor:
                            for _ in range(self._random.randint(1, 4)):
                                cursor.execute(self._statement())
                            if self._random.random() < 0.1:
                                connection.rollback()
                        time.sleep(self._random.random() * 0.005)
            except psycopg2.Error:
                time.sleep(0.1)

    def _statement(self) -> str:
        number = 3_000 if self._random.random() < 0.005 else self._random.randint(1, 5)
        first, last = self._next, self._next + number - 1
        some = f"BETWEEN {first - self._random.randint(1, 200)} AND {first - 1 - self._random.randint(0, 100)}"
        kind = self._random.randrange(6)
        if kind < 3:
            self._next += 2 * number
            return (ORDER, PRODUCT, SHIPMENT)[kind].format(first, last)
        if kind == 3:
            return f"UPDATE orders SET status = 's' || {first}, amount_cents = amount_cents + 1 WHERE order_id {some}"
        if kind == 4:
            return f"DELETE FROM shipments WHERE shipment_id {some}"
        # A key update, to a key that is never used otherwise: `_next` left room for it.
        return f"UPDATE products SET product_id = -product_id WHERE product_id {some}"


def start(shop: Cluster, home: Path) -> subprocess.Popen[bytes]:
    command = [LOCKSTEP, "capture", shop.dsn(), "--trigger", "50ms"]
    environment = {**os.environ, "LOCKSTEP_HOME": str(home)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_after(process: subprocess.Popen[bytes], seconds: float) -> None:
    time.sleep(seconds)
    assert process.poll() is None, "capture ended by itself"
    process.kill()
    process.wait()


@pytest.mark.tries(KILLS_IN_SNAPSHOT + KILLS_IN_STREAM + len(CRASH_AFTER))
def test_nothing_is_lost_or_doubled_by_kills(shop: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    shop.execute(ORDER.format(900_000_001, 900_240_000) + ";" + PRODUCT.format(900_000_001, 900_120_000))
    log = ChangeLog(tmp_path)

    kills = 0
    while kills < KILLS_IN_SNAPSHOT:
        begun_before = log.watermark().landed_at if log.exists() else None
        process = start(shop, tmp_path)
        while not log.exists() or log.watermark().landed_at == begun_before or not log.watermark().resume:
            time.sleep(0.005)
        kill_after(process, chance.random() * 0.25)
        assert log.watermark().resume["snapshot"] == "incomplete", "killed too late: make the snapshot larger"
        kills += 1
    in_snapshot = kills

    process = start(shop, tmp_path)
    while not log.exists() or log.watermark().resume.get("snapshot") != "complete":
        time.sleep(0.05)
    shop.execute(WITNESS)
    for name, key in TABLES.items():
        shop.execute(
            f"CREATE TRIGGER witness AFTER INSERT OR UPDATE OR DELETE ON {name} "
            f"FOR EACH ROW EXECUTE FUNCTION witness('{key}')"
        )
    loads = [Load(shop, number, seed + number) for number in (1, 2)]
    for load in loads:
        load.start()
    while kills < KILLS_IN_SNAPSHOT + KILLS_IN_STREAM:
        kill_after(process, 0.4 + chance.random() * 1.2)
        kills += 1
        if kills - in_snapshot in CRASH_AFTER:
            shop.restart("immediate")
        process = start(shop, tmp_path)
    landed_before = log.watermark().landed_at
    while log.watermark().landed_at == landed_before:  # it follows the stream: before that, no server is an error
        time.sleep(0.05)
    shop.restart("immediate")  # this time the capture lives on
    time.sleep(2)
    for load in loads:
        load.stop.set()
    for load in loads:
        load.join()
    kill_after(process, 0)
    kills += 1
    final = subprocess.run(
        [LOCKSTEP, "capture", shop.dsn(), "--until-caught-up"],
        env={**os.environ, "LOCKSTEP_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert final.returncode == 0, final.stderr

    happened = Counter(shop.execute("SELECT tx_id, name, op, key FROM witness"))
    in_log = Counter(
        (c["tx_id"], name, c["op"], (c["after"] or c["before"])[key])
        for name, key in TABLES.items()
        for c in landed(tmp_path, name)
        if c["op"] != "r"
    )
    lost, doubled = (happened - in_log).total(), (in_log - happened).total()
    with capsys.disabled():
        print(
            f"\ncapture: {kills} kills ({in_snapshot} in the snapshot), {len(CRASH_AFTER) + 1} server crashes, "
            f"{happened.total():,} changes: {lost} lost, {doubled} doubled (seed {seed})"
        )
    assert (lost, doubled) == (0, 0)
    assert happened.total() > 5_000
    assert_log_is_source(shop, tmp_path)
