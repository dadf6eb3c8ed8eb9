/* The cut of each domain's rebuild: the midnight that began the day of execution, or the end of the last sealed hour of its tables
   if that is earlier, as where the log has not come that far or a quarantined event holds a table. Domains that share a table have
   the same cut, because `source` has each table at one (decision 19). */
MODEL (
  name rebuild.cut,
  kind FULL,
  cron '@daily',
  start @log_eve(),
  grain domain,
  depends_on (hourly.log, changes.all_positions),
  audits (NUMBER_OF_ROWS(threshold := 0), log_is_complete),
  blueprints @needs_of_rebuilds()
);

SELECT
  needs.domain::TEXT AS domain, /* Domain */
  LEAST(@execution_ds::DATE::TIMESTAMP, MIN(watermark.sealed_until))::TIMESTAMP AS cut, /* First instant of logged_at that is not in its rebuild */
  MAX(watermark.position)::BIGINT AS position, /* Last position that had landed when the cut was made, by the watermark */
  CURRENT_TIMESTAMP::TIMESTAMP AS rebuilt_at /* When the rebuilds at these cuts began */
FROM (
  @as_query(@needs)
) AS needs
JOIN changes.watermark AS watermark
  ON watermark.source_table = needs.source_table
GROUP BY
  needs.domain
