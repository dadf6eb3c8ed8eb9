/* Increments of a domain that joins changing tables: the sum of the signed rows of each hour of the log, at the domain's grain. The
   changes of a batch are joined with each other and with the tables as they were before it. These are read from the newest checkpoint
   before the batch, so that an hour costs the same whenever it is computed. A pair of changes counts in the hour of the later one,
   so that one batch can have many hours. A key that changes all the time makes many pairs in a long batch: one takes a week at most. */
MODEL (
  name hourly.@{domain},
  kind CUSTOM (
    materialization 'atomic_by_time_range',
    batch_size 168,
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
  blueprints @each_domain('joined')
);

SELECT
  DATE_TRUNC('HOUR', logged_at)::TIMESTAMP AS log_hour, /* Hour of logged_at in which the changes lie */
  @EACH(@grain, g -> g AS g),
  @merged(@measures)
FROM (
  @new_rows(@rows, @checkpointed, @start_ts, @end_ts)
) AS pairs
GROUP BY
  DATE_TRUNC('HOUR', logged_at),
  @EACH(@grain, g -> g)
