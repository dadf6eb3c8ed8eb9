/* The query of a recomputed domain over the rows that the signed rows of the log add up to at the cut: those of the checkpoint before
   it, and the changes since. The rebuild runs the same query over the latest image of each key. */
MODEL (
  name reconcile.@{domain}_added_up,
  kind VIEW,
  owner @owner,
  grain @grain,
  blueprints @each_domain('recomputed')
);

SELECT
  @EACH(@grain, g -> figures.g),
  @EACH(@state, m -> figures.m)
FROM (
  @as_query(@query_at_cut)
) AS figures
