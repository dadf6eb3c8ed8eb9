/* The rebuild and the sum of all increments up to its cut, side by side, one row per cell that either path knows. The sum runs
   from the log's start and not from the last verified generation: so it covers everything that was served since, and a fault
   in an old increment cannot hide behind a base that was right when it was taken. */
MODEL (
  name reconcile.@{domain}_cells,
  kind VIEW,
  owner @owner,
  grain @grain,
  blueprints @each_domain()
);

WITH sides AS (
  SELECT
    @EACH(@grain, g -> g),
    @EACH(@sums, m -> m),
    1 AS rebuilt,
    0 AS added_up
  FROM rebuild.@{domain}
  UNION ALL
  SELECT
    @EACH(@grain, g -> g),
    @EACH(@sums, m -> m),
    0 AS rebuilt,
    1 AS added_up
  FROM hourly.@{domain}
  WHERE
    log_hour < (
      SELECT
        cut
      FROM rebuild.cut
    )
), cells AS (
  SELECT
    @EACH(@grain, g -> g),
    @EACH(@sums, m -> SUM(m * rebuilt)::BIGINT AS rebuild_@m),
    @EACH(@sums, m -> SUM(m * added_up)::BIGINT AS increments_@m),
    SUM(rebuilt) AS copies
  FROM sides
  GROUP BY
    @EACH(@grain, g -> g)
)
SELECT
  (
    SELECT
      cut
    FROM rebuild.cut
  )::TIMESTAMP AS cut, /* Cut at which the two paths are compared */
  @EACH(@grain, g -> g),
  CASE
    WHEN copies > 1
    THEN 'nonunique'
    WHEN @AND(@EACH(@sums, m -> rebuild_@m = increments_@m))
    THEN 'identical'
    WHEN copies = 0
    THEN 'added'
    WHEN @AND(@EACH(@sums, m -> increments_@m = 0))
    THEN 'removed'
    ELSE 'modified'
  END::TEXT AS class, /* identical; modified; added: only the increments have it; removed: only the rebuild; nonunique */
  @EACH(@sums, m -> rebuild_@m),
  @EACH(@sums, m -> increments_@m)
FROM cells
WHERE
  copies > 0 OR @OR(@EACH(@sums, m -> increments_@m <> 0))
