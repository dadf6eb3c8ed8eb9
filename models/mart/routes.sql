/* How each route stands: its stops, its load, and whether the next stop can be reached in time from the driver's last known position.
   Routes, positions and drivers are of the same moment: the routes as mart.route_performance serves them, and the positions live, or
   of the same verified cut, as ops.serving says for the domain and all it reads. */
MODEL (
  name mart.routes,
  kind VIEW,
  owner 'fleet-operations',
  grain route_id
);

WITH serving AS (
  SELECT
    served_from,
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
), joined AS (
  SELECT
    routes.*,
    routes.stops_planned > routes.stops_done OR routes.parcels_on_board > 0 AS is_open,
    drivers.capacity_parcels,
    positions.latitude,
    positions.longitude,
    positions.recorded_at,
    @distance_m(positions.latitude, positions.longitude, routes.stop_latitude, routes.stop_longitude) AS distance_m
  FROM mart.route_performance AS routes
  LEFT JOIN positions
    ON positions.driver_id = routes.driver_id
  LEFT JOIN dims.drivers AS drivers
    ON drivers.driver_id = routes.driver_id
    AND drivers.valid_from_at <= routes.as_of
    AND routes.as_of < drivers.valid_to_at
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
    is_open
    AND (
      COALESCE(due_at < COALESCE(expected_arrival_at, as_of), FALSE)
      OR COALESCE(parcels_on_board > capacity_parcels, FALSE)
    )
  )::BOOLEAN AS is_at_risk, /* Cannot reach its next stop in time, is past it wherever it is, or is loaded over capacity */
  served_from::TEXT AS served_from, /* live or rebuild */
  as_of::TIMESTAMP AS as_of /* The figures include all changes logged up to then */
FROM expected
