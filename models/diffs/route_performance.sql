/* Signed images of what a route is made of: itself, its stops and its parcels. The cells of this domain are these parts with all that
   somebody joins them by, so that the sums of cells are the tables themselves as of any moment, and the deep join of
   mart.routes needs no history. A column that a part does not have is NULL. */
MODEL (
  name diffs.route_performance,
  kind VIEW,
  owner 'fleet-operations',
  grain (position, diff)
);

WITH parts AS (
  SELECT
    __position,
    __logged_at,
    __weight,
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
    __weight AS routes,
    0 AS stops_planned,
    0 AS stops_done,
    0 AS stops_on_time,
    0 AS parcels,
    0 AS parcels_on_board
  FROM signed.routes
  UNION ALL
  SELECT
    __position,
    __logged_at,
    __weight,
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
    __weight AS stops_planned,
    CASE WHEN NOT completed_at IS NULL THEN __weight ELSE 0 END AS stops_done,
    CASE WHEN @is_on_time(completed_at, planned_arrival_at) THEN __weight ELSE 0 END AS stops_on_time,
    0 AS parcels,
    0 AS parcels_on_board
  FROM signed.route_stops
  UNION ALL
  SELECT
    __position,
    __logged_at,
    __weight,
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
    __weight AS parcels,
    CASE WHEN status = 'out_for_delivery' THEN __weight ELSE 0 END AS parcels_on_board
  FROM signed.shipments
  WHERE
    NOT route_id IS NULL
)
SELECT
  __position::BIGINT AS position, /* Position of the change in the log */
  __logged_at::TIMESTAMP AS logged_at, /* logged_at of the change */
  __weight::INT AS diff, /* -1 for the image before the change, +1 for the one after */
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
  routes::BIGINT AS routes, /* The route itself, signed */
  stops_planned::BIGINT AS stops_planned, /* Stops, signed */
  stops_done::BIGINT AS stops_done, /* Completed stops, signed */
  stops_on_time::BIGINT AS stops_on_time, /* Stops completed in time, signed */
  parcels::BIGINT AS parcels, /* Shipments on the route, signed */
  parcels_on_board::BIGINT AS parcels_on_board /* Shipments out for delivery, signed */
FROM parts
