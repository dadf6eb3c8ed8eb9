"""Today in figures, as fresh as the change log: `marimo run examples/notebook/today.py` (needs lockstep[notebook])."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Today")


@app.cell
def _():
    import os
    from pathlib import Path

    import altair as alt
    import duckdb
    import marimo as mo

    published = Path(os.environ.get("LOCKSTEP_HOME") or "data") / "analytics.duckdb"
    return alt, duckdb, mo, published


@app.cell
def _(mo):
    refresh = mo.ui.refresh(options=["5s", "30s", "5m"], default_interval="5s")
    refresh
    return (refresh,)


@app.cell
def _(duckdb, published, refresh):
    refresh.value  # asked anew at every tick
    # Opened anew as well, so that the newest publication is read; in one transaction, so that all figures are of one
    # moment. A day is that of the log, also where a log of the past is replayed.
    with duckdb.connect(str(published), read_only=True) as connection:
        connection.execute("BEGIN")
        by_hour = connection.execute("""
            SELECT ordered_hour, SUM(orders) AS orders, SUM(revenue_cents) / 100 AS revenue
            FROM mart.orders_hourly
            WHERE ordered_hour >= DATE_TRUNC('day', as_of) AND ordered_hour <= as_of
            GROUP BY ordered_hour ORDER BY ordered_hour
        """).df()
        late = connection.execute("""
            SELECT window_hour, SUM(delivered) - SUM(late) AS in_time, SUM(late) AS late
            FROM mart.delivery_hourly
            WHERE window_hour >= DATE_TRUNC('day', as_of) AND window_hour <= as_of
            GROUP BY window_hour ORDER BY window_hour
        """).df()
        vehicles = connection.execute("""
            SELECT driver_id, latitude, longitude, speed_kmh, recorded_at
            FROM mart.vehicle_positions
            WHERE recorded_at >= DATE_TRUNC('day', as_of)
            ORDER BY driver_id
        """).df()
        served = connection.execute("""
            SELECT domain, served_from, as_of, reason FROM ops.serving ORDER BY domain
        """).df()
        connection.execute("COMMIT")
    return by_hour, late, served, vehicles


@app.cell
def _(by_hour, late, mo, served, vehicles):
    mo.hstack(
        [
            mo.stat(f"{by_hour['orders'].sum():,.0f}", label="orders today"),
            mo.stat(f"{by_hour['revenue'].sum():,.2f}", label="revenue today"),
            mo.stat(f"{late['late'].sum():,.0f}", label="late deliveries today"),
            mo.stat(f"{len(vehicles):,}", label="vehicles on the road today"),
            mo.stat(f"{served['as_of'].max():%H:%M:%S}", label="as of (UTC)"),
        ]
    )
    return


@app.cell
def _(alt, by_hour, mo):
    hour = alt.X("hours(ordered_hour):O", title="hour of the order (UTC)")
    orders_chart = alt.Chart(by_hour, title="Orders by hour").mark_bar().encode(hour, alt.Y("orders:Q"))
    revenue_chart = alt.Chart(by_hour, title="Revenue by hour").mark_line(point=True).encode(hour, alt.Y("revenue:Q"))
    mo.hstack([orders_chart, revenue_chart])
    return orders_chart, revenue_chart


@app.cell
def _(alt, late, mo, vehicles):
    late_chart = (
        alt.Chart(late, title="Deliveries by promised hour")
        .transform_fold(["in_time", "late"], as_=["delivered", "shipments"])
        .mark_bar()
        .encode(
            alt.X("hours(window_hour):O", title="hour in which the window begins (UTC)"),
            alt.Y("shipments:Q"),
            alt.Color("delivered:N"),
        )
    )
    vehicles_chart = (
        alt.Chart(vehicles, title="Vehicles, last known position")
        .mark_circle(size=60)
        .encode(
            alt.X("longitude:Q", scale=alt.Scale(zero=False)),
            alt.Y("latitude:Q", scale=alt.Scale(zero=False)),
            alt.Color("speed_kmh:Q"),
            tooltip=["driver_id", "speed_kmh", "recorded_at"],
        )
    )
    mo.hstack([late_chart, vehicles_chart])
    return late_chart, vehicles_chart


@app.cell
def _(served):
    served
    return


if __name__ == "__main__":
    app.run()
