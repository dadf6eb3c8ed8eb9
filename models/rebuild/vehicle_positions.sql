/* The authority: the last position of each driver at the cut, out of all pings, late ones too. */
MODEL (
  name rebuild.vehicle_positions,
  kind FULL,
  cron '@daily',
  start @log_eve(),
  owner 'fleet-operations',
  grain driver_id,
  depends_on (rebuild.cut, chain.gps_pings, changes.gps_pings),
  audits (
    UNIQUE_VALUES(columns := (
      driver_id
    )),
    NOT_NULL(columns := (driver_id, latest_at, latitude, longitude, recorded_at)),
    source_is_append_only(domain := 'vehicle_positions', source_table := changes.gps_pings)
  )
);

WITH pings AS (
  SELECT
    *,
    ROW_NUMBER() OVER (PARTITION BY driver_id ORDER BY latest_at DESC, latest_position DESC) AS recency
  FROM rebuild.latest_vehicle_positions
)
SELECT
  driver_id::BIGINT AS driver_id, /* Driver */
  latest_at::TIMESTAMP AS latest_at, /* Time of the position */
  latest_position::BIGINT AS latest_position, /* Position of the ping in the log */
  latitude::DOUBLE AS latitude, /* Latitude in degrees */
  longitude::DOUBLE AS longitude, /* Longitude in degrees */
  speed_kmh::DOUBLE AS speed_kmh, /* Speed in km/h */
  recorded_at::TIMESTAMP AS recorded_at /* Device clock */
FROM pings
WHERE
  recency = 1
