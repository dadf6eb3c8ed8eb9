/* Every position of the log over all tables, without images: what completeness is counted on. A quarantined event counts
   at the position kept for it until something fills that position, so that resolving it changes no count. */
MODEL (
  name changes.all_positions,
  kind VIEW,
  grain position
);

WITH filled AS (
  @union_of_source_tables()
  UNION ALL
  SELECT
    position,
    logged_at,
    '_discarded' AS source_table
  FROM changes.discarded
)
SELECT
  position::BIGINT AS position, /* Place in the log */
  logged_at::TIMESTAMP AS logged_at, /* logged_at of that position */
  source_table::TEXT AS source_table /* Table of the change */
FROM filled
UNION ALL
SELECT
  position,
  logged_at,
  '_quarantined' AS source_table
FROM changes.quarantined
WHERE
  NOT position IN (
    SELECT
      position
    FROM filled
    WHERE
      position IN (
        SELECT
          position
        FROM changes.quarantined
      )
  )
