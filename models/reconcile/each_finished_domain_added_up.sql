/* What the increments come to at the cut where they are compared with the rebuild: the finish over the cells of all hours before
   it. */
MODEL (
  name reconcile.@{domain}_added_up,
  kind VIEW,
  owner @owner,
  grain @grain,
  blueprints @each_domain('finished')
);

SELECT
  @EACH(@grain, g -> figures.g),
  @EACH(@state, m -> figures.m)
FROM (
  @finished(
    @finish,
    @sets,
    (
      SELECT
        @EACH(@cell_grain, g -> g),
        @merged(@cell_measures)
      FROM hourly.@{domain}
      WHERE
        log_hour < @cut_of(@domain_name)
      GROUP BY
        @EACH(@cell_grain, g -> g)
    )
  )
) AS figures
