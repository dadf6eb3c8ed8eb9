/* Pings of the drivers' devices. The source only ever adds pings, so there is nothing to subtract and `latest` can merge them.
   A ping whose device clock is too far off the commit is late and left out here, because one that leads would hold the
   place of the next ones; the rebuild takes it, and the contract's tolerance covers the difference. The pings of a snapshot
   have no commit of their own and are all taken. */
MODEL (
  name diffs.vehicle_positions,
  kind VIEW,
  owner 'fleet-operations',
  grain position
);

WITH pings AS (
  SELECT
    position,
    logged_at,
    committed_at,
    op,
    STRUCT_EXTRACT(after, 'ping_id') AS ping_id,
    STRUCT_EXTRACT(after, 'driver_id') AS driver_id,
    STRUCT_EXTRACT(after, 'latitude') AS latitude,
    STRUCT_EXTRACT(after, 'longitude') AS longitude,
    STRUCT_EXTRACT(after, 'speed_kmh') AS speed_kmh,
    STRUCT_EXTRACT(after, 'recorded_at') AS recorded_at
  FROM changes.gps_pings
  WHERE
    NOT STRUCT_EXTRACT(after, 'ping_id') IS NULL
)
SELECT
  position::BIGINT AS position, /* Position of the change in the log */
  logged_at::TIMESTAMP AS logged_at, /* logged_at of the change */
  1::INT AS diff, /* Always +1: pings are only added */
  ping_id::BIGINT AS ping_id, /* Key of the ping */
  driver_id::BIGINT AS driver_id, /* Driver whose device sent it */
  LEAST(recorded_at, committed_at)::TIMESTAMP AS latest_at, /* Time of the position: nothing is recorded after its commit */
  position::BIGINT AS latest_position, /* Of equal times the later change counts */
  latitude::DOUBLE AS latitude, /* Latitude in degrees */
  longitude::DOUBLE AS longitude, /* Longitude in degrees */
  speed_kmh::DOUBLE AS speed_kmh, /* Speed in km/h */
  recorded_at::TIMESTAMP AS recorded_at /* Device clock */
FROM pings
WHERE
  op = 'r' OR @is_timely(recorded_at, committed_at)
