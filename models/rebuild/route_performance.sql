/* How far each route is: its stops and its parcels, and the first stop that is not completed, with the promised window of its shipment.
   Drivers and their positions move all the time and join on reading, in mart.routes. */
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
    0 AS stops_planned,
    0 AS stops_done,
    0 AS stops_on_time,
    0 AS parcels,
    0 AS parcels_on_board
  FROM source.routes
  UNION ALL
  SELECT
    route_id,
    NULL::BIGINT AS driver_id,
    NULL::DATE AS service_date,
    1 AS stops_planned,
    CASE WHEN NOT completed_at IS NULL THEN 1 ELSE 0 END AS stops_done,
    CASE WHEN @is_on_time(completed_at, planned_arrival_at) THEN 1 ELSE 0 END AS stops_on_time,
    0 AS parcels,
    0 AS parcels_on_board
  FROM source.route_stops
  UNION ALL
  SELECT
    route_id,
    NULL::BIGINT AS driver_id,
    NULL::DATE AS service_date,
    0 AS stops_planned,
    0 AS stops_done,
    0 AS stops_on_time,
    1 AS parcels,
    CASE WHEN status = 'out_for_delivery' THEN 1 ELSE 0 END AS parcels_on_board
  FROM source.shipments
  WHERE
    NOT route_id IS NULL
), totals AS (
  SELECT
    route_id,
    MAX(driver_id) AS driver_id,
    MAX(service_date) AS service_date,
    SUM(stops_planned) AS stops_planned,
    SUM(stops_done) AS stops_done,
    SUM(stops_on_time) AS stops_on_time,
    SUM(parcels) AS parcels,
    SUM(parcels_on_board) AS parcels_on_board
  FROM parts
  GROUP BY
    1
), next_stops AS (
  SELECT
    stops.route_id,
    stops.stop_number,
    stops.planned_arrival_at,
    stops.latitude,
    stops.longitude,
    CASE WHEN NOT shipments.route_id IS NULL THEN shipments.window_to_at END AS window_to_at
  FROM source.route_stops AS stops
  LEFT JOIN source.shipments AS shipments
    ON shipments.shipment_id = stops.shipment_id
  WHERE
    stops.completed_at IS NULL
  QUALIFY
    ROW_NUMBER() OVER (PARTITION BY stops.route_id ORDER BY stops.stop_number) = 1
)
SELECT
  totals.route_id::BIGINT AS route_id, /* Route */
  totals.driver_id::BIGINT AS driver_id, /* Driver; NULL while only its stops are known */
  totals.service_date::TIMESTAMP AS service_date, /* Day of the route, at midnight; NULL while only its stops are known */
  totals.stops_planned::BIGINT AS stops_planned, /* Stops */
  totals.stops_done::BIGINT AS stops_done, /* Completed stops */
  totals.stops_on_time::BIGINT AS stops_on_time, /* Stops completed within 15 minutes of their planned arrival */
  totals.parcels::BIGINT AS parcels, /* Shipments on the route */
  totals.parcels_on_board::BIGINT AS parcels_on_board, /* Shipments out for delivery */
  next_stops.stop_number::BIGINT AS next_stop_number, /* First stop that is not completed; NULL when all are */
  next_stops.planned_arrival_at::TIMESTAMP AS planned_arrival_at, /* Planned arrival there */
  next_stops.window_to_at::TIMESTAMP AS window_to_at, /* End of its promised window; NULL if the shipment is on no route */
  next_stops.latitude::DOUBLE AS stop_latitude, /* Where it is, degrees */
  next_stops.longitude::DOUBLE AS stop_longitude /* Where it is, degrees */
FROM totals
LEFT JOIN next_stops
  ON next_stops.route_id = totals.route_id
