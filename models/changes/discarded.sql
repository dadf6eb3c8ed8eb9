/* Events given up for good: discarded from quarantine by somebody, or skipped by the rule of their table. They have a
   position but no images; without them the log would have gaps that nobody could tell from losses. */
MODEL (
  name changes.discarded,
  kind VIEW,
  grain position
);

SELECT
  position::BIGINT AS position, /* Position kept for the event */
  logged_at::TIMESTAMP AS logged_at, /* logged_at of that position */
  "table"::TEXT AS source_table, /* Table of the event; * if it could not be told */
  reason::TEXT AS reason /* How the event broke the landing contract */
FROM READ_PARQUET('changelog/_discarded/*/*.parquet', hive_partitioning = FALSE)
WHERE
  position <= (
    SELECT
      MAX(position)
    FROM changes.watermark
  )
