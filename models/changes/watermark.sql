/* The point up to which each table of the change log has landed, one row per table. It is read from the log's own
   watermark file whenever it is queried, so every model sees a batch of changes wholly or not at all. An hour is sealed
   once it ends at or before `sealed_until`; an unresolved quarantined event keeps its table from sealing past it. */
MODEL (
  name changes.watermark,
  kind VIEW,
  grain source_table,
  audits (
    NOT_NULL(columns := (source_table, position))
  )
);

WITH watermark AS (
  SELECT
    position,
    logged_at,
    started_at,
    holds
  FROM READ_JSON(
    'changelog/watermark.json',
    columns = {'position': 'BIGINT', 'logged_at': 'TIMESTAMP', 'started_at': 'TIMESTAMP', 'holds': 'MAP(VARCHAR, TIMESTAMP)'}
  )
), source_tables AS (
  SELECT
    UNNEST(@source_tables()) AS source_table
)
SELECT
  source_table::TEXT AS source_table, /* Table of the source database */
  position::BIGINT AS position, /* Last visible position of the log, the same for all tables */
  logged_at::TIMESTAMP AS logged_at, /* logged_at at that position */
  started_at::TIMESTAMP AS started_at, /* logged_at of the log's first change */
  DATE_TRUNC('HOUR', logged_at)::TIMESTAMP AS clock_until, /* End of the log's last hour that the clock has closed */
  DATE_TRUNC('HOUR', LEAST(logged_at, holds[source_table], holds['*']))::TIMESTAMP AS sealed_until, /* End of the table's last sealed hour */
  LEAST(logged_at, LEAST(holds[source_table], holds['*']) - INTERVAL '1' MICROSECOND)::TIMESTAMP AS readable_until /* Last logged_at that live figures may include: nothing is computed over a hole */
FROM watermark
CROSS JOIN source_tables
