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
    @EACH(@state, m -> m),
    1 AS rebuilt
  FROM rebuild.@{domain}
  UNION ALL
  SELECT
    @EACH(@grain, g -> g),
    @EACH(@state, m -> m),
    0 AS rebuilt
  FROM reconcile.@{domain}_added_up
), cells AS (
  SELECT
    @EACH(@grain, g -> g),
    @merged_where(@measures, rebuild_, rebuilt = 1),
    @merged_where(@measures, increments_, rebuilt = 0),
    SUM(rebuilt) AS copies,
    SUM(1 - rebuilt) AS added_up
  FROM sides
  GROUP BY
    @EACH(@grain, g -> g)
)
SELECT
  @cut_of(@domain_name)::TIMESTAMP AS cut, /* Cut at which the two paths are compared */
  @EACH(@grain, g -> g),
  CASE
    WHEN @is_nonunique(@measures)
    THEN 'nonunique'
    WHEN @are_identical(@measures, rebuild_, increments_)
    THEN 'identical'
    WHEN @are_within_tolerance(@measures, rebuild_, increments_)
    THEN 'tolerated'
    WHEN copies = 0
    THEN 'added'
    WHEN NOT (
      @is_there(@measures, increments_)
    )
    THEN 'removed'
    ELSE 'modified'
  END::TEXT AS class, /* identical; tolerated: as near as the contract allows; modified; added: only the increments have it; removed: only the rebuild; nonunique */
  @EACH(@measure_names, m -> rebuild_@m),
  @EACH(@measure_names, m -> increments_@m)
FROM cells
WHERE
  copies > 0 OR @is_there(@measures, increments_)
