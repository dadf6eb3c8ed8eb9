/* Every ping up to the cut, timely or late: what each could contribute to its driver's last position. */
MODEL (
  name rebuild.latest_vehicle_positions,
  kind VIEW,
  owner 'fleet-operations',
  grain ping_id
);

WITH pings AS (
  SELECT
    position,
    committed_at,
    STRUCT_EXTRACT(after, 'ping_id') AS ping_id,
    STRUCT_EXTRACT(after, 'driver_id') AS driver_id,
    STRUCT_EXTRACT(after, 'latitude') AS latitude,
    STRUCT_EXTRACT(after, 'longitude') AS longitude,
    STRUCT_EXTRACT(after, 'speed_kmh') AS speed_kmh,
    STRUCT_EXTRACT(after, 'recorded_at') AS recorded_at
  FROM changes.gps_pings
  WHERE
    NOT after IS NULL AND logged_at < @cut_of('vehicle_positions')
)
SELECT
  ping_id::BIGINT AS ping_id, /* Key of the ping */
  driver_id::BIGINT AS driver_id, /* Driver whose device sent it */
  LEAST(recorded_at, committed_at)::TIMESTAMP AS latest_at, /* Time of the position: nothing is recorded after its commit */
  position::BIGINT AS latest_position, /* Of equal times the later change counts */
  latitude::DOUBLE AS latitude, /* Latitude in degrees */
  longitude::DOUBLE AS longitude, /* Longitude in degrees */
  speed_kmh::DOUBLE AS speed_kmh, /* Speed in km/h */
  recorded_at::TIMESTAMP AS recorded_at /* Device clock */
FROM pings
