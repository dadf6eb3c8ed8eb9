/* Every ping up to the cut, timely or late: what each could contribute to its driver's last position. */
MODEL (
  name rebuild.latest_vehicle_positions,
  kind VIEW,
  owner 'fleet-operations',
  grain ping_id
);

SELECT
  ping_id::BIGINT AS ping_id, /* Key of the ping */
  driver_id::BIGINT AS driver_id, /* Driver whose device sent it */
  LEAST(recorded_at, _committed_at)::TIMESTAMP AS latest_at, /* Time of the position: nothing is recorded after its commit */
  _position::BIGINT AS latest_position, /* Of equal times the later change counts */
  latitude::DOUBLE AS latitude, /* Latitude in degrees */
  longitude::DOUBLE AS longitude, /* Longitude in degrees */
  speed_kmh::DOUBLE AS speed_kmh, /* Speed in km/h */
  recorded_at::TIMESTAMP AS recorded_at /* Device clock */
FROM source.gps_pings
