/* Versions of the drivers, from the same log, by the time at which the source changed them, without personal data. A driver's first
   known version holds for all time before it. Facts join it as of event time, at the end. */
MODEL (
  name dims.drivers,
  kind VIEW,
  owner 'fleet-operations',
  grain (driver_id, valid_from_at)
);

WITH images AS (
  SELECT
    STRUCT_EXTRACT(after, 'driver_id') AS driver_id,
    STRUCT_EXTRACT(after, 'depot_region') AS depot_region,
    STRUCT_EXTRACT(after, 'capacity_parcels') AS capacity_parcels,
    STRUCT_EXTRACT(after, 'updated_at') AS updated_at,
    position
  FROM changes.drivers
  WHERE
    NOT after IS NULL
), last_of_each_moment AS (
  SELECT
    *,
    ROW_NUMBER() OVER (PARTITION BY driver_id, updated_at ORDER BY position DESC) AS recency
  FROM images
)
SELECT
  @dimension_key('driver', driver_id)::TEXT AS driver_key, /* Hash of the natural key: any fact can compute it */
  driver_id::BIGINT AS driver_id, /* Natural key */
  depot_region::TEXT AS depot_region, /* Region of the depot in this version */
  capacity_parcels::INT AS capacity_parcels, /* Parcels that fit into the van */
  CASE
    WHEN LAG(updated_at) OVER (PARTITION BY driver_id ORDER BY updated_at) IS NULL
    THEN '0001-01-01'::TIMESTAMP
    ELSE updated_at
  END::TIMESTAMP AS valid_from_at, /* First instant of the version */
  COALESCE(
    LEAD(updated_at) OVER (PARTITION BY driver_id ORDER BY updated_at),
    '9999-12-31'::TIMESTAMP
  )::TIMESTAMP AS valid_to_at /* First instant of the next one */
FROM last_of_each_moment
WHERE
  recency = 1
