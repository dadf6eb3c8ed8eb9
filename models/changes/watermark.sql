/* The point up to which each table of the change log has landed, one row per table. It is read from the log's own
   watermark file whenever it is queried, so every model sees a batch of changes wholly or not at all. An hour is sealed
   once it ends at or before `sealed_until`. An unresolved quarantined event holds its table at the first position of its
   transaction: nothing from there on is read, and the hour of that position does not seal. */
MODEL (
  name changes.watermark,
  kind VIEW,
  cron '@daily',
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
    columns = {'position': 'BIGINT', 'logged_at': 'TIMESTAMP', 'started_at': 'TIMESTAMP', 'holds': 'MAP(VARCHAR, STRUCT(position BIGINT, logged_at TIMESTAMP, events BIGINT))'}
  )
), source_tables AS (
  SELECT
    UNNEST(@source_tables()) AS source_table
), held AS (
  SELECT
    source_tables.source_table,
    watermark.position,
    watermark.logged_at,
    watermark.started_at,
    watermark.holds[source_tables.source_table] AS own,
    watermark.holds['*'] AS unknown
  FROM watermark
  CROSS JOIN source_tables
)
SELECT
  source_table::TEXT AS source_table, /* Table of the source database */
  position::BIGINT AS position, /* Last visible position of the log, the same for all tables */
  logged_at::TIMESTAMP AS logged_at, /* logged_at at that position */
  started_at::TIMESTAMP AS started_at, /* logged_at of the log's first change */
  DATE_TRUNC('HOUR', logged_at)::TIMESTAMP AS clock_until, /* End of the log's last hour that the clock has closed */
  DATE_TRUNC(
    'HOUR',
    LEAST(logged_at, STRUCT_EXTRACT(own, 'logged_at'), STRUCT_EXTRACT(unknown, 'logged_at'))
  )::TIMESTAMP AS sealed_until, /* End of the table's last sealed hour */
  LEAST(
    position,
    LEAST(STRUCT_EXTRACT(own, 'position'), STRUCT_EXTRACT(unknown, 'position')) - 1
  )::BIGINT AS readable_position, /* Last position that live figures may include: nothing is computed over a hole */
  LEAST(
    logged_at,
    LEAST(STRUCT_EXTRACT(own, 'logged_at'), STRUCT_EXTRACT(unknown, 'logged_at')) - INTERVAL '1' MICROSECOND
  )::TIMESTAMP AS readable_until, /* Changes logged up to then are all at or before readable_position */
  LEAST(STRUCT_EXTRACT(own, 'logged_at'), STRUCT_EXTRACT(unknown, 'logged_at'))::TIMESTAMP AS held_since, /* logged_at from which on quarantine holds the table; NULL if it does not */
  CASE
    WHEN own IS NULL AND unknown IS NULL
    THEN NULL
    WHEN own IS NULL
    OR STRUCT_EXTRACT(unknown, 'position') < STRUCT_EXTRACT(own, 'position')
    THEN STRUCT_EXTRACT(unknown, 'events')::TEXT || CASE WHEN STRUCT_EXTRACT(unknown, 'events') = 1 THEN ' event' ELSE ' events' END || ' of an unknown table'
    ELSE STRUCT_EXTRACT(own, 'events')::TEXT || CASE WHEN STRUCT_EXTRACT(own, 'events') = 1 THEN ' event' ELSE ' events' END || ' of ' || source_table
  END::TEXT AS held_by /* How many quarantined events hold it, and of what table */
FROM held
