"""The eight source tables: their columns, keys and landing rules.

This module is the one place that knows the source schema. The change log's Parquet schema, the landing checks and
the simulator all derive from it, so that a batch of inserts alone can never infer another type for `before`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

TIMESTAMP = pa.timestamp("us")  # always UTC; naive on disk so that no session time zone can shift an hour


@dataclass(frozen=True)
class Column:
    """A column a model may name. `type` is its Arrow type in the change log; `nullable` as in the source."""

    name: str
    type: pa.DataType
    nullable: bool = False


@dataclass(frozen=True)
class Table:
    """A source table. `key` names its primary key columns in order.

    `on_bad_event` is `hold` (an event that breaks the landing contract keeps the table's hours from sealing until it
    is retried or discarded) or `skip` (it is quarantined, counted and passed over).
    """

    name: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    on_bad_event: str = "hold"
    image: pa.StructType = field(init=False)

    def __post_init__(self) -> None:
        image = pa.struct([*(pa.field(c.name, c.type) for c in self.columns), pa.field("extra", pa.string())])
        object.__setattr__(self, "image", image)


def _table(name: str, key: str, on_bad_event: str = "hold", /, **columns: pa.DataType | tuple[pa.DataType]) -> Table:
    """A one-element tuple marks a nullable column, everything else is NOT NULL."""
    return Table(
        name,
        tuple(key.split()),
        tuple(
            Column(n, t[0] if isinstance(t, tuple) else t, nullable=isinstance(t, tuple)) for n, t in columns.items()
        ),
        on_bad_event,
    )


BIGINT, INT, TEXT, DOUBLE, REAL, DATE = pa.int64(), pa.int32(), pa.string(), pa.float64(), pa.float32(), pa.date32()

TABLES: dict[str, Table] = {
    t.name: t
    for t in (
        _table(
            "customers",
            "customer_id",
            customer_id=BIGINT,
            full_name=TEXT,
            email=TEXT,
            region=TEXT,
            created_at=TIMESTAMP,
            updated_at=TIMESTAMP,
        ),
        _table(
            "products",
            "product_id",
            product_id=BIGINT,
            name=TEXT,
            category=TEXT,
            price_cents=BIGINT,
            updated_at=TIMESTAMP,
        ),
        _table(
            "orders",
            "order_id",
            order_id=BIGINT,
            customer_id=BIGINT,
            product_id=BIGINT,
            region=TEXT,
            quantity=INT,
            amount_cents=BIGINT,
            status=TEXT,
            ordered_at=TIMESTAMP,
            updated_at=TIMESTAMP,
        ),
        _table(
            "drivers",
            "driver_id",
            driver_id=BIGINT,
            full_name=TEXT,
            depot_region=TEXT,
            capacity_parcels=INT,
            updated_at=TIMESTAMP,
        ),
        _table(
            "routes",
            "route_id",
            route_id=BIGINT,
            driver_id=BIGINT,
            service_date=DATE,
            planned_departure_at=TIMESTAMP,
            planned_distance_m=BIGINT,
            updated_at=TIMESTAMP,
        ),
        _table(
            "shipments",
            "shipment_id",
            shipment_id=BIGINT,
            order_id=BIGINT,
            route_id=(BIGINT,),
            region=TEXT,
            status=TEXT,
            exception_code=(TEXT,),
            window_from_at=TIMESTAMP,
            window_to_at=TIMESTAMP,
            delivered_at=(TIMESTAMP,),
            updated_at=TIMESTAMP,
        ),
        _table(
            "route_stops",
            "route_id stop_number",
            route_id=BIGINT,
            stop_number=INT,
            shipment_id=BIGINT,
            planned_arrival_at=TIMESTAMP,
            latitude=DOUBLE,
            longitude=DOUBLE,
            completed_at=(TIMESTAMP,),
        ),
        _table(
            "gps_pings",
            "ping_id",
            "skip",
            ping_id=BIGINT,
            driver_id=BIGINT,
            latitude=DOUBLE,
            longitude=DOUBLE,
            speed_kmh=REAL,
            recorded_at=TIMESTAMP,
        ),
    )
}

DISCARDED = "_discarded"  # the dataset that fills the positions of discarded events, so that the log stays gapless


def batch_schema(table: Table) -> pa.Schema:
    """What a source hands to the writer for one table.

    One row a change. `ordinal` is the change's place in the batch over all tables: unique, and increasing with the
    source's order. `committed_at` is the source's commit time in UTC. `before` is null for `c` and `r` (unless the
    source knows the image that an `r` replaces), `after` is null for `d`. `tx_id` and `lsn` identify the change at
    the source and may be null where a source has none.
    """
    return pa.schema(
        [
            ("ordinal", pa.int64()),
            ("committed_at", TIMESTAMP),
            ("op", pa.string()),
            ("before", table.image),
            ("after", table.image),
            ("tx_id", pa.int64()),
            ("lsn", pa.int64()),
        ]
    )


def log_schema(table: Table) -> pa.Schema:
    """The Parquet schema of one table's change log: a batch's columns, with `ordinal` become `position`."""
    batch = batch_schema(table)
    return pa.schema([("position", pa.int64()), ("logged_at", TIMESTAMP), *((f.name, f.type) for f in list(batch)[1:])])


DISCARDED_SCHEMA = pa.schema([("position", pa.int64()), ("logged_at", TIMESTAMP), ("table", TEXT), ("reason", TEXT)])
