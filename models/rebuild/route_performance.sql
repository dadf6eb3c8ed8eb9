/* The authority: the routes, stops and parcels at the cut, from the latest image of every key. */
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
FROM rebuild.latest_route_performance
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
