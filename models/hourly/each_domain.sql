/* Increments: the sum of the signed images of each hour of the log, at the domain's grain. A sealed hour never changes, so
   it is computed once and needs no lookback; a correction of an old order lands in the hour in which it was made. */
MODEL (
  name hourly.@{domain},
  kind CUSTOM (
    materialization 'atomic_by_time_range',
    batch_size 8784,
    materialization_properties (time_column = log_hour, code = @materializations())
  ),
  cron '@hourly',
  start @log_start(),
  owner @owner,
  grain @hourly_grain,
  depends_on (hourly.log, changes.watermark),
  signals (
    hour_is_sealed(sources := @sources)
  ),
  audits (
    hour_is_sealed(tables := @sources)
  ),
  blueprints @each_domain('single')
);

SELECT
  DATE_TRUNC('HOUR', logged_at)::TIMESTAMP AS log_hour, /* Hour of logged_at in which the changes lie */
  @EACH(@grain, g -> g AS g),
  @merged(@measures)
FROM diffs.@{domain}
WHERE
  logged_at BETWEEN @start_ts::TIMESTAMP AND @end_ts::TIMESTAMP
GROUP BY
  DATE_TRUNC('HOUR', logged_at),
  @EACH(@grain, g -> g)
