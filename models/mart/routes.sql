/* How each route stands: its stops, its load, and whether the next stop can be reached in time from the driver's last known position.
   A deep join of routes, stops, parcels, positions and drivers, all as of the same moment: the cells as mart.route_performance serves
   them, and the positions live, or of the same verified cut, as ops.serving says for the domain and all it reads. Only an open
   route can be at risk, and which are open is found first, so that a question for those at risk leaves all finished routes alone. */
MODEL (
  name mart.routes,
  kind VIEW,
  owner 'fleet-operations',
  grain route_id
);

WITH serving AS (
  SELECT
    served_from,
    as_of,
    verified_cut
  FROM ops.serving
  WHERE
    domain = 'route_performance'
), positions AS (
  SELECT
    driver_id,
    latitude,
    longitude,
    recorded_at
  FROM live.vehicle_positions
  WHERE
    (
      SELECT
        served_from
      FROM serving
    ) = 'live'
  UNION ALL
  SELECT
    driver_id,
    latitude,
    longitude,
    recorded_at
  FROM verified.vehicle_positions
  WHERE
    (
      SELECT
        served_from
      FROM serving
    ) = 'rebuild'
    AND cut = (
      SELECT
        verified_cut
      FROM serving
    )
), open_parts AS (
  SELECT
    route_id,
    shipment_id
  FROM mart.route_performance
  WHERE
    stops_planned > stops_done OR parcels_on_board > 0
), open_routes AS (
  SELECT DISTINCT
    route_id,
    TRUE AS is_open
  FROM open_parts
), totals AS (
  SELECT
    parts.route_id,
    open_routes.is_open,
    MAX(parts.driver_id) AS driver_id,
    MAX(parts.service_date) AS service_date,
    SUM(parts.stops_planned) AS stops_planned,
    SUM(parts.stops_done) AS stops_done,
    SUM(parts.stops_on_time) AS stops_on_time,
    SUM(parts.parcels) AS parcels,
    SUM(parts.parcels_on_board) AS parcels_on_board,
    ARG_MIN(
      {'stop_number': parts.stop_number, 'shipment_id': parts.shipment_id, 'planned_arrival_at': parts.planned_arrival_at, 'latitude': parts.latitude, 'longitude': parts.longitude},
      parts.stop_number
    ) FILTER(WHERE
      parts.stops_planned > parts.stops_done) AS next_stop
  FROM mart.route_performance AS parts
  LEFT JOIN open_routes
    ON open_routes.route_id = parts.route_id
  GROUP BY
    parts.route_id,
    open_routes.is_open
), windows AS (
  SELECT
    shipment_id,
    MIN(window_to_at) AS window_to_at
  FROM mart.route_performance
  WHERE
    part = 'parcel' AND shipment_id IN (
      SELECT
        shipment_id
      FROM open_parts
    )
  GROUP BY
    shipment_id
), joined AS (
  SELECT
    totals.*,
    drivers.capacity_parcels,
    STRUCT_EXTRACT(next_stop, 'stop_number') AS next_stop_number,
    STRUCT_EXTRACT(next_stop, 'planned_arrival_at') AS planned_arrival_at,
    windows.window_to_at,
    positions.latitude,
    positions.longitude,
    positions.recorded_at,
    @distance_m(
      positions.latitude,
      positions.longitude,
      STRUCT_EXTRACT(next_stop, 'latitude'),
      STRUCT_EXTRACT(next_stop, 'longitude')
    ) AS distance_m,
    serving.served_from,
    serving.as_of
  FROM totals
  CROSS JOIN serving
  LEFT JOIN windows
    ON windows.shipment_id = STRUCT_EXTRACT(next_stop, 'shipment_id')
  LEFT JOIN positions
    ON positions.driver_id = totals.driver_id
  LEFT JOIN dims.drivers AS drivers
    ON drivers.driver_id = totals.driver_id
    AND drivers.valid_from_at <= serving.as_of
    AND serving.as_of < drivers.valid_to_at
), expected AS (
  SELECT
    *,
    CASE
      WHEN NOT distance_m IS NULL
      THEN GREATEST(as_of, recorded_at + @travel_time(distance_m))
    END AS expected_arrival_at,
    LEAST(planned_arrival_at + @on_time_grace(), window_to_at) AS due_at
  FROM joined
)
SELECT
  route_id::BIGINT AS route_id, /* Route */
  service_date::DATE AS service_date, /* Day of the route; NULL while only its stops are known */
  @dimension_key('driver', driver_id)::TEXT AS driver_key, /* Hash of the natural key, as in dims.drivers; NULL where driver_id is */
  driver_id::BIGINT AS driver_id, /* Driver; NULL while only its stops are known */
  stops_planned::BIGINT AS stops_planned, /* Stops */
  stops_done::BIGINT AS stops_done, /* Completed stops */
  stops_on_time::BIGINT AS stops_on_time, /* Stops completed within 15 minutes of their planned arrival */
  parcels::BIGINT AS parcels, /* Shipments on the route */
  parcels_on_board::BIGINT AS parcels_on_board, /* Shipments out for delivery */
  capacity_parcels::INT AS capacity_parcels, /* Parcels that fit into the van as of as_of; NULL if the driver is unknown */
  next_stop_number::INT AS next_stop_number, /* First stop that is not completed; NULL when all are */
  planned_arrival_at::TIMESTAMP AS planned_arrival_at, /* Planned arrival there */
  window_to_at::TIMESTAMP AS window_to_at, /* End of its promised window; NULL if the shipment is on no route */
  latitude::DOUBLE AS latitude, /* Last known position of the driver, degrees */
  longitude::DOUBLE AS longitude, /* Last known position of the driver, degrees */
  recorded_at::TIMESTAMP AS recorded_at, /* When that was */
  distance_m::DOUBLE AS distance_m, /* Metres from there to the next stop, as the crow flies */
  expected_arrival_at::TIMESTAMP AS expected_arrival_at, /* Arrival at the next stop at 25 km/h, not before as_of; NULL while no position is known */
  (
    EPOCH(due_at) - EPOCH(expected_arrival_at)
  )::DOUBLE AS slack_seconds, /* Time left until the stop is late, by plan (plus 15 minutes) or window; negative when it cannot be reached in time */
  (
    COALESCE(is_open, FALSE)
    AND (
      COALESCE(due_at < COALESCE(expected_arrival_at, as_of), FALSE)
      OR COALESCE(parcels_on_board > capacity_parcels, FALSE)
    )
  )::BOOLEAN AS is_at_risk, /* Cannot reach its next stop in time, is past it wherever it is, or is loaded over capacity */
  served_from::TEXT AS served_from, /* live or rebuild */
  as_of::TIMESTAMP AS as_of /* The figures include all changes logged up to then */
FROM expected
