/* The figures of this second of a domain with a finish: its finish over its cells. */
MODEL (
  name live.@{domain},
  kind VIEW,
  owner @owner,
  grain @grain,
  blueprints @each_domain('finished')
);

SELECT
  @EACH(@grain, g -> figures.g),
  @EACH(@state, m -> figures.m)
FROM (
  @finished(@finish, @sets, cells.@{domain})
) AS figures
