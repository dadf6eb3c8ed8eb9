/* How far each route is: its stops and its parcels, and the first stop that is not completed, with the promised window of its shipment.
   Of completed stops only counts are kept. Drivers and their positions move all the time and join on reading, in mart.routes. */
MODEL (
  name rebuild.route_performance,
  kind FULL,
  cron '@daily',
  start @log_eve(),
  owner 'fleet-operations',
  grain route_id,
  depends_on (rebuild.cut, chain.routes, chain.route_stops, chain.shipments),
  audits (UNIQUE_VALUES(columns := (
      route_id
    )), NOT_NULL(columns := (
      route_id
  )))
);

WITH parts AS (
  SELECT
    route_id,
    driver_id,
    service_date,
    NULL::INT AS open_stop_number,
    NULL::TIMESTAMP AS planned_arrival_at,
    NULL::TIMESTAMP AS window_to_at,
    NULL::DOUBLE AS latitude,
    NULL::DOUBLE AS longitude,
    0 AS stops_planned,
    0 AS stops_done,
    0 AS stops_on_time,
    0 AS parcels,
    0 AS parcels_on_board
  FROM source.routes
  UNION ALL
  SELECT
    stops.route_id,
    NULL::BIGINT AS driver_id,
    NULL::DATE AS service_date,
    CASE WHEN stops.completed_at IS NULL THEN stops.stop_number END AS open_stop_number,
    CASE WHEN stops.completed_at IS NULL THEN stops.planned_arrival_at END AS planned_arrival_at,
    CASE
      WHEN stops.completed_at IS NULL AND NOT shipments.route_id IS NULL
      THEN shipments.window_to_at
    END AS window_to_at,
    CASE WHEN stops.completed_at IS NULL THEN stops.latitude END AS latitude,
    CASE WHEN stops.completed_at IS NULL THEN stops.longitude END AS longitude,
    1 AS stops_planned,
    CASE WHEN NOT stops.completed_at IS NULL THEN 1 ELSE 0 END AS stops_done,
    CASE
      WHEN @is_on_time(stops.completed_at, stops.planned_arrival_at)
      THEN 1
      ELSE 0
    END AS stops_on_time,
    0 AS parcels,
    0 AS parcels_on_board
  FROM source.route_stops AS stops
  LEFT JOIN source.shipments AS shipments
    ON shipments.shipment_id = stops.shipment_id
  UNION ALL
  SELECT
    route_id,
    NULL::BIGINT AS driver_id,
    NULL::DATE AS service_date,
    NULL::INT AS open_stop_number,
    NULL::TIMESTAMP AS planned_arrival_at,
    NULL::TIMESTAMP AS window_to_at,
    NULL::DOUBLE AS latitude,
    NULL::DOUBLE AS longitude,
    0 AS stops_planned,
    0 AS stops_done,
    0 AS stops_on_time,
    1 AS parcels,
    CASE WHEN status = 'out_for_delivery' THEN 1 ELSE 0 END AS parcels_on_board
  FROM source.shipments
  WHERE
    NOT route_id IS NULL
), stops AS (
  SELECT
    route_id,
    driver_id,
    service_date,
    open_stop_number,
    planned_arrival_at,
    window_to_at,
    latitude,
    longitude,
    MIN(open_stop_number) OVER (PARTITION BY route_id) AS next_stop_number,
    SUM(stops_planned) AS stops_planned,
    SUM(stops_done) AS stops_done,
    SUM(stops_on_time) AS stops_on_time,
    SUM(parcels) AS parcels,
    SUM(parcels_on_board) AS parcels_on_board
  FROM parts
  GROUP BY
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8
)
SELECT
  route_id::BIGINT AS route_id, /* Route */
  MAX(driver_id)::BIGINT AS driver_id, /* Driver; NULL while only its stops are known */
  MAX(service_date)::TIMESTAMP AS service_date, /* Day of the route, at midnight; NULL while only its stops are known */
  SUM(stops_planned)::BIGINT AS stops_planned, /* Stops */
  SUM(stops_done)::BIGINT AS stops_done, /* Completed stops */
  SUM(stops_on_time)::BIGINT AS stops_on_time, /* Stops completed within 15 minutes of their planned arrival */
  SUM(parcels)::BIGINT AS parcels, /* Shipments on the route */
  SUM(parcels_on_board)::BIGINT AS parcels_on_board, /* Shipments out for delivery */
  MIN(open_stop_number)::BIGINT AS next_stop_number, /* First stop that is not completed; NULL when all are */
  MAX(planned_arrival_at) FILTER(WHERE
    open_stop_number = next_stop_number)::TIMESTAMP AS planned_arrival_at, /* Planned arrival there */
  MAX(window_to_at) FILTER(WHERE
    open_stop_number = next_stop_number)::TIMESTAMP AS window_to_at, /* End of its promised window; NULL if the shipment is on no route */
  MAX(latitude) FILTER(WHERE
    open_stop_number = next_stop_number)::DOUBLE AS stop_latitude, /* Where it is, degrees */
  MAX(longitude) FILTER(WHERE
    open_stop_number = next_stop_number)::DOUBLE AS stop_longitude /* Where it is, degrees */
FROM stops
GROUP BY
  1
