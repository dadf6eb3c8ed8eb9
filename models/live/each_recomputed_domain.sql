/* The figures of this second of a domain that is recomputed: its query as written, over the rows of this second. */
MODEL (
  name live.@{domain},
  kind VIEW,
  owner @owner,
  grain @grain,
  blueprints @each_domain('recomputed')
);

SELECT
  @EACH(@grain, g -> figures.g),
  @EACH(@state, m -> figures.m)
FROM (
  @as_query(@query)
) AS figures
