/* The hours of the log itself: which positions each holds. An hour without changes has no row. It is what completeness is
   counted against, and the domains' increments wait for it: nothing is summed over an hour whose positions have a gap. */
MODEL (
  name hourly.log,
  kind CUSTOM (
    materialization 'atomic_by_time_range',
    batch_size 8784,
    materialization_properties (time_column = log_hour, code = @materializations())
  ),
  cron '@hourly',
  start @log_start(),
  grain log_hour,
  depends_on (
    changes.watermark
  ),
  signals (
    hour_is_closed()
  ),
  audits (hour_is_closed, positions_gapless)
);

SELECT
  DATE_TRUNC('HOUR', logged_at)::TIMESTAMP AS log_hour, /* Hour of logged_at */
  MIN(position)::BIGINT AS first_position, /* First position in the hour */
  MAX(position)::BIGINT AS last_position, /* Last position in the hour */
  COUNT(*)::BIGINT AS changes /* Positions in the hour, over all tables */
FROM changes.all_positions
WHERE
  logged_at BETWEEN @start_ts::TIMESTAMP AND @end_ts::TIMESTAMP
GROUP BY
  1
