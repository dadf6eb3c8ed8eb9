"""Row-level rules that both paths speak. They see one row and return one value; they never aggregate."""

from __future__ import annotations

from sqlglot import exp, parse_one
from sqlmesh import macro

_ON_TIME_GRACE = "INTERVAL '15' MINUTE"


@macro()
def is_high_value(evaluator, amount_cents: exp.Expression):
    """An order over 1 000.00: `@is_high_value(amount_cents)`."""
    return exp.GT(this=amount_cents, expression=exp.Literal.number(100_000))


@macro()
def is_alert_value(evaluator, amount_cents: exp.Expression):
    """An order that somebody is told of as it lands, over 10 000.00: `@is_alert_value(amount_cents)`."""
    return exp.GT(this=amount_cents, expression=exp.Literal.number(1_000_000))


@macro()
def is_called_off(evaluator, status: exp.Expression):
    """A status by the rules that ends an order without a sale: `@is_called_off(status)`."""
    return exp.In(this=status, expressions=[exp.Literal.string(s) for s in ("cancelled", "failed", "returned")])


@macro()
def five_minutes(evaluator, at: exp.Expression):
    """The beginning of the five minutes that a time lies in: `@five_minutes(ordered_at) AS ordered_bucket`."""
    at = at.sql("duckdb")
    return f"DATE_TRUNC('HOUR', {at}) + INTERVAL '5' MINUTE * (EXTRACT(MINUTE FROM {at}) // 5)"


@macro()
def is_timely(evaluator, recorded_at: exp.Expression, committed_at: exp.Expression):
    """A ping whose device clock is at most three minutes off the commit: `@is_timely(recorded_at, committed_at)`.

    The bound of the live path; the rebuild takes every ping.
    """
    recorded_at, committed_at = recorded_at.sql("duckdb"), committed_at.sql("duckdb")
    bound = "INTERVAL '3' MINUTE"
    return parse_one(f"{recorded_at} BETWEEN {committed_at} - {bound} AND {committed_at} + {bound}", dialect="duckdb")


@macro()
def on_time_grace(evaluator):
    """How long after its planned arrival a stop still counts as on time: `planned_arrival_at + @on_time_grace()`."""
    return _ON_TIME_GRACE


@macro()
def is_on_time(evaluator, completed_at: exp.Expression, planned_arrival_at: exp.Expression):
    """A stop completed within the grace after its planned arrival: `@is_on_time(completed_at, planned_arrival_at)`."""
    return f"{completed_at.sql('duckdb')} <= {planned_arrival_at.sql('duckdb')} + {_ON_TIME_GRACE}"


@macro()
def distance_m(evaluator, latitude, longitude, to_latitude, to_longitude):
    """Metres between two points in degrees, as the crow flies: `@distance_m(latitude, longitude, to_lat, to_lon)`.

    The haversine formula on a sphere of 6 371 km, within 0.6 % of the ellipsoid. NULL where a coordinate is.
    """
    a, b, c, d = (f"RADIANS({x.sql('duckdb')})" for x in (latitude, longitude, to_latitude, to_longitude))
    chord = f"POWER(SIN(({c} - {a}) / 2), 2) + COS({a}) * COS({c}) * POWER(SIN(({d} - {b}) / 2), 2)"
    # not ASIN: at opposite points rounding may leave its domain
    return f"2 * 6371000 * ATAN2(SQRT({chord}), SQRT(ABS(1 - ({chord}))))"


@macro()
def travel_time(evaluator, distance_m: exp.Expression):
    """How long a van takes for so many metres in a city, at 25 km/h: `recorded_at + @travel_time(distance_m)`."""
    return f"INTERVAL '1' SECOND * (({distance_m.sql('duckdb')}) / (25000.0 / 3600))"


@macro()
def dimension_key(evaluator, dimension: exp.Expression, natural_key: exp.Expression):
    """The key of a dimension's member: `@dimension_key('product', product_id) AS product_key`.

    A hash of the natural key alone, the same in every fact, in every run and on every engine: a fact has its key
    before the dimension knows the member, so facts never wait for dimensions. NULL for no member.
    """
    return f"MD5('{dimension.name}:' || CAST({natural_key.sql('duckdb')} AS TEXT))"
