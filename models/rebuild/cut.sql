/* The cut of the day's rebuilds, the same for all domains: the midnight that began the day of execution, or the end of the last
   sealed hour if the log has not come that far. One row. */
MODEL (
  name rebuild.cut,
  kind FULL,
  cron '@daily',
  start @log_eve(),
  grain cut,
  depends_on (hourly.log, changes.all_positions),
  audits (NUMBER_OF_ROWS(threshold := 0), log_is_complete)
);

SELECT
  LEAST(@execution_ds::DATE::TIMESTAMP, MIN(sealed_until))::TIMESTAMP AS cut, /* First instant of logged_at that is not in the rebuilds */
  MAX(position)::BIGINT AS position, /* Last position that had landed when the cut was made, by the watermark */
  CURRENT_TIMESTAMP::TIMESTAMP AS rebuilt_at /* When the rebuilds at this cut began */
FROM changes.watermark
WHERE
  source_table IN (@contract_sources())
