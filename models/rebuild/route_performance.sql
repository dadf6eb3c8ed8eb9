/* Every route, stop and parcel that lives at the cut, with all columns that they are joined by: so the sums of cells are the tables
   themselves as of any moment, and the deep join of mart.routes needs no history. A column that a part does not have is NULL. The
   increments and the live figures are derived from this query. */
MODEL (
  name rebuild.route_performance,
  kind FULL,
  cron '@daily',
  start @log_eve(),
  owner 'fleet-operations',
  grain (
    route_id,
    part,
    stop_number,
    shipment_id,
    driver_id,
    service_date,
    planned_arrival_at,
    latitude,
    longitude,
    window_from_at,
    window_to_at
  ),
  depends_on (rebuild.cut, chain.routes, chain.route_stops, chain.shipments),
  audits (
    UNIQUE_COMBINATION_OF_COLUMNS(
      columns := (
        route_id,
        part,
        stop_number,
        shipment_id,
        driver_id,
        service_date,
        planned_arrival_at,
        latitude,
        longitude,
        window_from_at,
        window_to_at
      )
    ),
    NOT_NULL(columns := (route_id, part))
  )
);

WITH parts AS (
  SELECT
    route_id,
    'route' AS part,
    NULL::INT AS stop_number,
    NULL::BIGINT AS shipment_id,
    driver_id,
    service_date,
    NULL::TIMESTAMP AS planned_arrival_at,
    NULL::DOUBLE AS latitude,
    NULL::DOUBLE AS longitude,
    NULL::TIMESTAMP AS window_from_at,
    NULL::TIMESTAMP AS window_to_at,
    1 AS routes,
    0 AS stops_planned,
    0 AS stops_done,
    0 AS stops_on_time,
    0 AS parcels,
    0 AS parcels_on_board
  FROM source.routes
  UNION ALL
  SELECT
    route_id,
    'stop' AS part,
    stop_number,
    shipment_id,
    NULL::BIGINT AS driver_id,
    NULL::DATE AS service_date,
    planned_arrival_at,
    latitude,
    longitude,
    NULL::TIMESTAMP AS window_from_at,
    NULL::TIMESTAMP AS window_to_at,
    0 AS routes,
    1 AS stops_planned,
    CASE WHEN NOT completed_at IS NULL THEN 1 ELSE 0 END AS stops_done,
    CASE WHEN @is_on_time(completed_at, planned_arrival_at) THEN 1 ELSE 0 END AS stops_on_time,
    0 AS parcels,
    0 AS parcels_on_board
  FROM source.route_stops
  UNION ALL
  SELECT
    route_id,
    'parcel' AS part,
    NULL::INT AS stop_number,
    shipment_id,
    NULL::BIGINT AS driver_id,
    NULL::DATE AS service_date,
    NULL::TIMESTAMP AS planned_arrival_at,
    NULL::DOUBLE AS latitude,
    NULL::DOUBLE AS longitude,
    window_from_at,
    window_to_at,
    0 AS routes,
    0 AS stops_planned,
    0 AS stops_done,
    0 AS stops_on_time,
    1 AS parcels,
    CASE WHEN status = 'out_for_delivery' THEN 1 ELSE 0 END AS parcels_on_board
  FROM source.shipments
  WHERE
    NOT route_id IS NULL
)
SELECT
  route_id::BIGINT AS route_id, /* Route */
  part::TEXT AS part, /* What of the route: route, stop or parcel */
  stop_number::INT AS stop_number, /* Stop */
  shipment_id::BIGINT AS shipment_id, /* Shipment of a stop or parcel */
  driver_id::BIGINT AS driver_id, /* Driver of the route */
  service_date::DATE AS service_date, /* Day of the route */
  planned_arrival_at::TIMESTAMP AS planned_arrival_at, /* Planned arrival at a stop */
  latitude::DOUBLE AS latitude, /* Latitude of a stop */
  longitude::DOUBLE AS longitude, /* Longitude of a stop */
  window_from_at::TIMESTAMP AS window_from_at, /* Begin of a parcel's promised window */
  window_to_at::TIMESTAMP AS window_to_at, /* End of it */
  SUM(routes)::BIGINT AS routes, /* The route itself */
  SUM(stops_planned)::BIGINT AS stops_planned, /* Stops */
  SUM(stops_done)::BIGINT AS stops_done, /* Completed stops */
  SUM(stops_on_time)::BIGINT AS stops_on_time, /* Stops completed in time */
  SUM(parcels)::BIGINT AS parcels, /* Shipments on the route */
  SUM(parcels_on_board)::BIGINT AS parcels_on_board /* Shipments out for delivery */
FROM parts
GROUP BY
  1,
  2,
  3,
  4,
  5,
  6,
  7,
  8,
  9,
  10,
  11
