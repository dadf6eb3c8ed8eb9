/* The authority: the last position of each driver at the cut, out of all pings, late ones too. Nothing is recorded after its commit:
   a clock that leads counts as of that, so that it cannot hold the place of the next pings. Of equal times the later change
   counts. The increments and the live figures are derived from this query, of the pings that the contract's live_where takes: one
   whose clock is too far off the commit is late, and the tolerance covers the difference. The pings of a snapshot have no commit
   of their own and are all taken. */
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

SELECT
  driver_id::BIGINT AS driver_id, /* Driver */
  LEAST(recorded_at, _committed_at)::TIMESTAMP AS latest_at, /* Time of the position */
  _position::BIGINT AS latest_position, /* Position of the ping in the log */
  latitude::DOUBLE AS latitude, /* Latitude in degrees */
  longitude::DOUBLE AS longitude, /* Longitude in degrees */
  speed_kmh::DOUBLE AS speed_kmh, /* Speed in km/h */
  recorded_at::TIMESTAMP AS recorded_at /* Device clock */
FROM source.gps_pings
QUALIFY
  ROW_NUMBER() OVER (PARTITION BY driver_id ORDER BY latest_at DESC, latest_position DESC) = 1
