"""The simulated company, as SQL: what happens to every row of the eight tables, as a pure function of time.

Nothing is replayed to know a state. Each row has one *life*: its constants and the times of everything that will ever
happen to it, drawn from (seed, key, what is drawn). An image is a function of a life and a time, so the before image
of a change is the same function at the row's previous step, and the chain of images of a key cannot break. Any slice
of time can be computed by itself, which bounds the memory and lets a killed simulation continue.

Conventions of the SQL:
- Times are BIGINT microseconds since 1970, their names end in `_at`. Lives are drawn in business time, a day without
  nights; then `clock` maps all of a query's `_at` columns to the wall, where nothing happens from 00:00 to 04:00, in
  whole milliseconds. A millisecond is one transaction; the microseconds within it order several changes of one row.
- `today()` is the day whose new rows are asked for, counted from the first; day -1 asks for the company as founded.

Draws come from DuckDB's `hash`: the same log needs the same minor version of DuckDB, which pyproject.toml pins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Entity:
    """How the rows of one table live.

    `lives` selects one row a life and `steps` names the times at which its row changes. `image` gives the source's
    columns as of `{t}`; `identity` names the columns that tell lives apart. Every life has `inserted_at`, and where
    they are not null `deleted_at` and `reinserted_at`: what would happen in between does not.
    """

    lives: str
    steps: str
    image: str
    identity: str


LANES = 16  # the city is served in lanes, a busy region has several; a power of two, since orders shuffle over them
MAX_STOPS = 30

MACROS = """
CREATE MACRO draw(id, what) AS (hash(hash(id, what, seed())) >> 11) / 9007199254740992.0;
CREATE MACRO chance(share, id, what) AS draw(id, what) < share;
CREATE MACRO pick(options, id, what) AS options[1 + CAST(floor(draw(id, what) * len(options)) AS BIGINT)];
CREATE MACRO later(a, b) AS CASE WHEN a > b THEN a ELSE b END;

CREATE MACRO minutes(n) AS CAST((n) * CAST(60000000 AS BIGINT) AS BIGINT);
CREATE MACRO midnight(day) AS CAST(first_day() + (day) AS BIGINT) * minutes(1440);
CREATE MACRO busy(share) AS minutes(1440 * ((share) + 0.12 * sin(2 * pi() * (share))));
CREATE MACRO clock(t) AS (t - t % minutes(1440) + minutes(240) + t % minutes(1440) // 6 * 5) // 1000 * 1000;
CREATE MACRO ten_minutes_to_ten_days(share) AS minutes(10 * exp(7.27 * share));
CREATE MACRO sometime(share, since_at) AS
  later(since_at, snapshot_at()) + CAST((share) * (until_at() - later(since_at, snapshot_at())) AS BIGINT);
CREATE MACRO updated(t) AS make_timestamp(((t) // 1000 - CAST(hash((t) // 1000) % 200 AS BIGINT)) * 1000);

CREATE MACRO once(n) AS CASE WHEN today() < 0 THEN n ELSE 0 END;
CREATE MACRO each_day(n) AS CASE WHEN today() < 0 THEN 0 ELSE n END;
CREATE MACRO first_customer(day) AS CASE WHEN day < 0 THEN 1 ELSE 1 + founding_customers() + day * new_customers() END;

CREATE MACRO categories() AS ['grocery', 'bakery', 'household', 'electronics', 'pharmacy', 'toys', 'fashion'];
CREATE MACRO product_price(id) AS CAST(round(300 * exp(6.2 * draw(id, 'price') ** 2.6)) AS BIGINT);
CREATE MACRO first_names() AS
  ['Ada', 'Bo', 'Chidi', 'Dana', 'Elif', 'Femi', 'Grace', 'Hana', 'Ivo', 'Jun', 'Kofi', 'Lea'];
CREATE MACRO last_names() AS
  ['Amsel', 'Berg', 'Costa', 'Diaz', 'Engel', 'Fox', 'Gupta', 'Haas', 'Ito', 'Jansen', 'Kim'];
CREATE MACRO first_name(id) AS pick(first_names(), id, 'first name');
CREATE MACRO last_name(id) AS pick(last_names(), id, 'last name');

CREATE MACRO regions() AS ['north', 'centre', 'south', 'east', 'west', 'harbour', 'hills', 'airport'];
CREATE MACRO lane_region(lane) AS regions()[[1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8][lane + 1]];
CREATE MACRO latitude(region, id) AS 52.40 + 0.03 * list_position(regions(), region) + 0.02 * draw(id, 'latitude');
CREATE MACRO longitude(region, id) AS 13.20 + 0.04 * list_position(regions(), region) + 0.03 * draw(id, 'longitude');

-- A route serves one lane for one block of the day's orders: it is planned once the block is over.
CREATE MACRO route_region(route) AS lane_region((route - 1) % lanes());
CREATE MACRO route_block(route) AS (route - 1) % routes_a_day() // lanes();
CREATE MACRO route_planned(route) AS
  midnight((route - 1) // routes_a_day())
  + busy(least(1, (route_block(route) + 1) * lanes() * stops_a_route() / orders_a_day()))
  + minutes(20 + 25 * draw(route, 'planned'));
CREATE MACRO route_left(route) AS route_planned(route) + minutes(20 + 20 * draw(route, 'left'));
"""

CUSTOMERS = Entity(
    lives="""
        WITH born AS (
          SELECT
            range AS customer_id,
            CASE WHEN today() < 0
              THEN midnight(-700 * draw(range, 'inserted') // 1)
              ELSE midnight(today())
            END + busy(draw(range, 'hour')) AS inserted_at
          FROM range(first_customer(today()), first_customer(today() + 1))
        ), lived AS (
          SELECT
            *,
            CASE WHEN chance(0.004 * days(), customer_id, 'moves')
              THEN sometime(draw(customer_id, 'moved'), inserted_at) END AS moved_at,
            CASE WHEN chance(0.003 * days(), customer_id, 'has a new address')
              THEN sometime(draw(customer_id, 'new address'), inserted_at) END AS readdressed_at,
            CASE WHEN chance(0.0005 * days(), customer_id, 'leaves')
              THEN sometime(0.5 + 0.5 * draw(customer_id, 'left'), inserted_at) END AS deleted_at
          FROM born
        )
        SELECT COLUMNS(lambda c: c NOT LIKE '%_at'), clock(COLUMNS('.*_at')), NULL::BIGINT AS reinserted_at FROM lived
    """,
    steps="inserted_at, moved_at, readdressed_at, deleted_at",
    image="""
        customer_id := customer_id,
        full_name := first_name(customer_id) || ' ' || last_name(customer_id),
        email := lower(first_name(customer_id)) || customer_id
          || CASE WHEN {t} >= readdressed_at THEN '@example.net' ELSE '@example.com' END,
        region := CASE WHEN {t} >= moved_at THEN pick(regions(), customer_id, 'new region')
          ELSE pick(regions(), customer_id, 'region') END,
        created_at := make_timestamp(inserted_at),
        updated_at := updated({t})
    """,
    identity="customer_id",
)

PRODUCTS = Entity(
    lives="""
        WITH lived AS (
          SELECT
            range + 1 AS product_id,
            midnight(-900 * draw(range + 1, 'inserted') // 1) AS inserted_at,
            CASE WHEN chance(0.03 * days(), range + 1, 'recategorised')
              THEN sometime(draw(range + 1, 'new category'), 0) END AS recategorised_at,
            CASE WHEN chance(0.1 * days(), range + 1, 'repriced')
              THEN sometime(0.6 * draw(range + 1, 'new price'), 0) END AS repriced_at,
            CASE WHEN chance(0.03 * days(), range + 1, 'repriced again')
              THEN sometime(0.6 + 0.4 * draw(range + 1, 'newer price'), 0) END AS repriced_again_at,
            NULL::BIGINT AS deleted_at
          FROM range(once(products()))
        )
        SELECT COLUMNS(lambda c: c NOT LIKE '%_at'), clock(COLUMNS('.*_at')), NULL::BIGINT AS reinserted_at FROM lived
    """,
    steps="inserted_at, recategorised_at, repriced_at, repriced_again_at",
    image="""
        product_id := product_id,
        name := 'Product ' || product_id,
        category := CASE WHEN {t} >= recategorised_at THEN pick(categories(), product_id, 'new category')
          ELSE pick(categories(), product_id, 'category') END,
        price_cents := CASE WHEN {t} >= repriced_again_at THEN product_price(product_id) * 21 // 20
          WHEN {t} >= repriced_at THEN product_price(product_id) * 9 // 10
          ELSE product_price(product_id) END,
        updated_at := updated({t})
    """,
    identity="product_id",
)

DRIVERS = Entity(
    lives="""
        WITH lived AS (
          SELECT
            range + 1 AS driver_id,
            midnight(-900 * draw(range + 1, 'inserted') // 1) AS inserted_at,
            CASE WHEN chance(0.01 * days(), range + 1, 'moves')
              THEN sometime(draw(range + 1, 'moved'), 0) END AS moved_at,
            CASE WHEN chance(0.02 * days(), range + 1, 'has a new van')
              THEN sometime(draw(range + 1, 'new van'), 0) END AS revanned_at,
            NULL::BIGINT AS deleted_at
          FROM range(once(drivers()))
        )
        SELECT COLUMNS(lambda c: c NOT LIKE '%_at'), clock(COLUMNS('.*_at')), NULL::BIGINT AS reinserted_at FROM lived
    """,
    steps="inserted_at, moved_at, revanned_at",
    image="""
        driver_id := driver_id,
        full_name := first_name(-driver_id) || ' ' || last_name(-driver_id),
        depot_region := CASE WHEN {t} >= moved_at THEN pick(regions(), driver_id, 'new depot')
          ELSE pick(regions(), driver_id, 'depot') END,
        capacity_parcels := CAST(
          CASE WHEN {t} >= revanned_at THEN 80 ELSE pick([40, 50, 60], driver_id, 'van') END AS INTEGER),
        updated_at := updated({t})
    """,
    identity="driver_id",
)

ORDERS = Entity(
    lives="""
        WITH born AS (
          SELECT
            100001 + today() * orders_a_day() + range AS number,
            xor(range % lanes(), CAST(hash(range // lanes(), today(), seed()) % lanes() AS BIGINT)) AS lane,
            range // lanes() % stops_a_route() + 1 AS stop_number,
            today() * routes_a_day() + range // (lanes() * stops_a_route()) * lanes() + lane + 1 AS first_route_id,
            first_route_id + routes_a_day() AS second_route_id,
            midnight(today()) + busy((range + draw(number, 'inserted')) / orders_a_day()) AS inserted_at
          FROM range(each_day(orders_a_day()))
        ), intended AS (
          SELECT
            *,
            CASE WHEN chance(0.97, number, 'pays')
              THEN inserted_at + minutes(0.3 - 8 * ln(1 - draw(number, 'paid'))) END AS would_pay,
            CASE WHEN chance(0.08, number, 'regrets')
              THEN inserted_at + minutes(2 + 120 * draw(number, 'regretted')) END AS would_regret
          FROM born
        ), paid AS (
          SELECT
            *,
            CASE WHEN would_regret IS NULL OR would_pay < would_regret THEN would_pay END AS paid_at,
            later(route_planned(first_route_id), paid_at + minutes(15)) AS would_plan,
            CASE WHEN would_plan IS NULL OR would_regret < would_plan THEN would_regret END AS regretted_at,
            CASE WHEN regretted_at IS NULL THEN would_plan END AS planned_at
          FROM intended
        ), first_attempt AS (
          SELECT
            *,
            later(route_left(first_route_id), planned_at + minutes(5)) AS left_at,
            left_at + minutes(4 * stop_number + 3 * draw(number, 'served')) AS served_at,
            CASE WHEN chance(0.06, number, 'is not at home') THEN served_at END AS failed_at
          FROM paid
        ), second_attempt AS (
          SELECT
            *,
            later(route_planned(second_route_id), failed_at + minutes(30)) AS replanned_at,
            later(route_left(second_route_id), replanned_at + minutes(5)) AS left_again_at,
            left_again_at + minutes(4 * stop_number + 3 * draw(number, 'served again')) AS served_again_at,
            CASE WHEN chance(0.15, number, 'is never at home') THEN served_again_at END AS returned_at
          FROM first_attempt
        ), closed AS (
          SELECT
            *,
            CASE WHEN failed_at IS NULL THEN served_at WHEN returned_at IS NULL THEN served_again_at END
              AS delivered_at,
            coalesce(regretted_at, returned_at) AS cancelled_at
          FROM second_attempt
        ), lived AS (
          SELECT
            * EXCLUDE (would_pay, would_regret, would_plan),
            CASE WHEN chance(0.025, number, 'amount is wrong') THEN inserted_at
              + ten_minutes_to_ten_days(draw(number, 'amount fixed')) END AS amount_fixed_at,
            CASE WHEN chance(0.01, number, 'region is wrong') THEN inserted_at
              + ten_minutes_to_ten_days(draw(number, 'region fixed')) END AS region_fixed_at,
            CASE WHEN chance(0.01, number, 'product is wrong') THEN inserted_at
              + ten_minutes_to_ten_days(draw(number, 'product fixed')) END AS product_fixed_at,
            CASE WHEN chance(0.02, number, 'time is wrong') THEN inserted_at
              + ten_minutes_to_ten_days(draw(number, 'time fixed')) END AS time_fixed_at,
            CASE WHEN chance(0.0006, number, 'number is wrong') THEN inserted_at
              + ten_minutes_to_ten_days(draw(number, 'number fixed')) END AS renumbered_at,
            /* A depot was late: on the next morning one transaction gives a discount to all its orders. */
            CASE WHEN served_at IS NOT NULL AND lane_region(lane) = pick(regions(), today(), 'late depot')
              THEN midnight(today() + 1) + minutes(630) END AS refunded_at,
            CASE WHEN chance(CASE WHEN paid_at IS NULL THEN 0.2 ELSE 0.006 END, number, 'is deleted')
              THEN coalesce(delivered_at, cancelled_at, inserted_at)
              + ten_minutes_to_ten_days(0.8 * draw(number, 'deleted')) END AS deleted_at,
            CASE WHEN chance(0.4, number, 'is restored')
              THEN deleted_at + minutes(1 + 600 * draw(number, 'restored') ** 3) END AS restored_at
          FROM closed
        ), clocked AS (
          SELECT COLUMNS(lambda c: c NOT LIKE '%_at'), clock(COLUMNS('.*_at')) FROM lived
        )
        SELECT
          * EXCLUDE (restored_at),
          CASE WHEN restored_at IS NOT NULL AND chance(0.5, number, 'is restored at once') THEN deleted_at + 1
            ELSE restored_at END AS reinserted_at,
          /* Regular customers order more often than others. */
          CAST(1 + floor(draw(number, 'customer') ** 1.5 * (first_customer(today()) - 1)) AS BIGINT) AS customer_id,
          CAST(1 + floor(draw(number, 'product') ** 1.3 * products()) AS BIGINT) AS product_id,
          CASE WHEN chance(0.02, number, 'is bulk') THEN 10 + CAST(floor(30 * draw(number, 'bulk')) AS BIGINT)
            ELSE 1 + CAST(floor(4 * draw(number, 'quantity') ** 2) AS BIGINT) END AS quantity,
          CASE WHEN chance(0.15, number, 'has a voucher') THEN 5 + CAST(floor(15 * draw(number, 'voucher')) AS BIGINT)
            ELSE 0 END AS percent_off,
          /* Orders taken offline arrive late: by hours, or by days. */
          inserted_at - CASE
            WHEN chance(0.005, number, 'days late') THEN minutes(1440 + 2880 * draw(number, 'late'))
            WHEN chance(0.04, number, 'hours late') THEN minutes(60 + 540 * draw(number, 'late'))
            ELSE CAST(2000 * draw(number, 'late') AS BIGINT) * 1000 END AS ordered
        FROM clocked
    """,
    steps="""inserted_at, paid_at, left_at, delivered_at, cancelled_at, amount_fixed_at, region_fixed_at,
        product_fixed_at, time_fixed_at, renumbered_at, refunded_at, deleted_at, reinserted_at""",
    image="""
        order_id := CASE WHEN {t} >= renumbered_at THEN number + 1000000000 ELSE number END,
        customer_id := customer_id,
        product_id := CASE WHEN {t} >= product_fixed_at THEN product_id % products() + 1 ELSE product_id END,
        region := CASE WHEN {t} >= region_fixed_at THEN pick(regions(), number, 'fixed region')
          ELSE lane_region(lane) END,
        quantity := CAST(quantity + CASE WHEN {t} >= amount_fixed_at AND number % 2 = 0 THEN 1 ELSE 0 END AS INTEGER),
        amount_cents := product_price(product_id)
          * (quantity + CASE WHEN {t} >= amount_fixed_at AND number % 2 = 0 THEN 1 ELSE 0 END)
          * (100 - percent_off - CASE WHEN {t} >= refunded_at THEN 5 ELSE 0 END
            - CASE WHEN {t} >= amount_fixed_at AND number % 2 = 1 THEN 12 ELSE 0 END) // 100,
        status := CASE WHEN {t} >= delivered_at
            THEN pick(['complete', 'complete', 'complete', 'Completed', 'Done', 'COMPLETE'], number, 'complete')
          WHEN {t} >= cancelled_at
            THEN pick(['cancelled', 'cancelled', 'cancel', 'Canceled', 'Cancelled '], number, 'cancelled')
          WHEN {t} >= left_at THEN pick(['shipped', 'shipped', 'Shipped', ' Shipped'], number, 'shipped')
          WHEN {t} >= paid_at THEN pick(['paid', 'paid', 'paid', 'Paid', 'PAID'], number, 'status paid')
          ELSE pick(['created', 'created', 'new'], number, 'created') END,
        ordered_at := make_timestamp(ordered - CASE WHEN {t} < time_fixed_at OR time_fixed_at IS NULL THEN 0
          WHEN chance(0.25, number, 'time is too early') THEN minutes(-9)
          ELSE minutes(30 + 4000 * draw(number, 'fixed time') ** 3) END),
        updated_at := updated({t})
    """,
    identity="number",
)

ROUTES = Entity(
    lives="""
        WITH lived AS (
          SELECT
            today() * routes_a_day() + range + 1 AS route_id,
            route_planned(route_id) AS inserted_at,
            route_left(route_id) AS left_at,
            CASE WHEN chance(0.05, route_id, 'driver is ill')
              THEN inserted_at + (left_at - inserted_at) // 2 END AS reassigned_at,
            NULL::BIGINT AS deleted_at
          FROM range(each_day(routes_a_day()))
        )
        SELECT COLUMNS(lambda c: c NOT LIKE '%_at'), clock(COLUMNS('.*_at')), NULL::BIGINT AS reinserted_at FROM lived
    """,
    steps="inserted_at, reassigned_at",
    image="""
        route_id := route_id,
        driver_id := CAST(1 + (route_id * 7 + CASE WHEN {t} >= reassigned_at THEN 3 ELSE 0 END) % drivers() AS BIGINT),
        service_date := CAST(make_timestamp(left_at) AS DATE),
        planned_departure_at := make_timestamp(left_at // minutes(1) * minutes(1)
          + CASE WHEN {t} >= reassigned_at THEN minutes(15) ELSE 0 END),
        planned_distance_m := CAST(6000 + floor(40000 * draw(route_id, 'distance')) AS BIGINT),
        updated_at := updated({t})
    """,
    identity="route_id",
)

SHIPMENTS = Entity(
    lives="""
        SELECT
          * EXCLUDE (steps, inserted_at, deleted_at, reinserted_at),
          ordered // minutes(60) * minutes(60) + minutes(180) AS window_start,
          paid_at AS inserted_at,
          /* It goes with an order that is cancelled before it is planned, or deleted for good. */
          coalesce(regretted_at, CASE WHEN reinserted_at IS NULL THEN deleted_at END) AS deleted_at,
          NULL::BIGINT AS reinserted_at
        FROM new_orders
        WHERE paid_at IS NOT NULL
    """,
    steps="""inserted_at, planned_at, left_at, failed_at, replanned_at, left_again_at, returned_at, delivered_at,
        renumbered_at, deleted_at""",
    image="""
        shipment_id := number + 500000000,
        order_id := CASE WHEN {t} >= renumbered_at THEN number + 1000000000 ELSE number END,
        route_id := CASE WHEN {t} >= replanned_at THEN second_route_id WHEN {t} >= planned_at THEN first_route_id END,
        region := lane_region(lane),
        status := CASE WHEN {t} >= delivered_at THEN 'delivered'
          WHEN {t} >= returned_at THEN 'returned'
          WHEN {t} >= left_again_at THEN 'out_for_delivery'
          WHEN {t} >= failed_at THEN 'failed'
          WHEN {t} >= left_at THEN 'out_for_delivery'
          ELSE 'created' END,
        exception_code := CASE WHEN {t} >= failed_at
          THEN pick(['NOT_HOME', 'NOT_HOME', 'WRONG_ADDRESS', 'DAMAGED', 'REFUSED'], number, 'exception')
          END,
        window_from_at := make_timestamp(window_start + CASE WHEN {t} >= replanned_at THEN minutes(1440) ELSE 0 END),
        window_to_at := make_timestamp(
          window_start + CASE WHEN {t} >= replanned_at THEN minutes(1440) ELSE 0 END + minutes(120)),
        delivered_at := CASE WHEN {t} >= delivered_at THEN make_timestamp(delivered_at - 1000 * (number % 30000)) END,
        updated_at := updated({t})
    """,
    identity="number",
)

ROUTE_STOPS = Entity(
    lives="""
        WITH attempt AS (
          SELECT
            first_route_id AS route_id, stop_number, number, lane,
            planned_at AS inserted_at, left_at, served_at AS completed_at
          FROM new_orders WHERE planned_at IS NOT NULL
          UNION ALL
          SELECT
            second_route_id, stop_number + stops_a_route(), number, lane,
            replanned_at, left_again_at, served_again_at
          FROM new_orders WHERE replanned_at IS NOT NULL
        )
        SELECT
          *,
          CASE WHEN chance(0.2, route_id, 'leaves late') THEN left_at END AS delayed_at,
          NULL::BIGINT AS deleted_at,
          NULL::BIGINT AS reinserted_at
        FROM attempt
    """,
    steps="inserted_at, delayed_at, completed_at",
    image="""
        route_id := route_id,
        stop_number := CAST(stop_number AS INTEGER),
        shipment_id := number + 500000000,
        planned_arrival_at := make_timestamp(left_at + minutes(4 * stop_number)
          + CASE WHEN {t} >= delayed_at THEN minutes(6) ELSE 0 END),
        latitude := latitude(lane_region(lane), number),
        longitude := longitude(lane_region(lane), number),
        completed_at := CASE WHEN {t} >= completed_at THEN make_timestamp(completed_at) END
    """,
    identity="route_id, stop_number",
)

GPS_PINGS = Entity(
    lives="""
        WITH lived AS (
          SELECT
            route_id,
            route_id * 100 + range AS ping_id,
            route_left(route_id) + minutes(2 * range + draw(ping_id, 'sent')) AS sent_at,
            /* A device without a network buffers its pings and sends all of them when it is back. */
            CASE WHEN chance(0.03, route_id, 'is offline') THEN route_left(route_id) + minutes(4 * stops_a_route())
              ELSE sent_at END AS inserted_at
          FROM new_routes, range(2 * stops_a_route())
        ), clocked AS (
          SELECT COLUMNS(lambda c: c NOT LIKE '%_at'), clock(COLUMNS('.*_at')) FROM lived
        )
        SELECT
          *,
          sent_at - CASE
            WHEN chance(0.05, ping_id, 'clock leads') THEN minutes(-1.5 * draw(ping_id, 'lag'))
            WHEN chance(0.1, ping_id, 'clock lags') THEN minutes(5 * draw(ping_id, 'lag'))
            ELSE minutes(0.1 * draw(ping_id, 'lag')) END AS recorded,
          NULL::BIGINT AS deleted_at,
          NULL::BIGINT AS reinserted_at
        FROM clocked
    """,
    steps="inserted_at",
    image="""
        ping_id := ping_id,
        driver_id := CAST(1 + route_id * 7 % drivers() AS BIGINT),
        latitude := latitude(route_region(route_id), ping_id),
        longitude := longitude(route_region(route_id), ping_id),
        speed_kmh := CAST(60 * draw(ping_id, 'speed') AS FLOAT),
        recorded_at := make_timestamp(recorded)
    """,
    identity="ping_id",
)

# In the order in which a transaction writes them, which is also the order in which a day's lives derive from others.
ENTITIES: Mapping[str, Entity] = {
    "customers": CUSTOMERS,
    "products": PRODUCTS,
    "drivers": DRIVERS,
    "orders": ORDERS,
    "routes": ROUTES,
    "shipments": SHIPMENTS,
    "route_stops": ROUTE_STOPS,
    "gps_pings": GPS_PINGS,
}
