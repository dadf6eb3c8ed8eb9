/* What the increments come to at the cut where they are compared with the rebuild: the cells of each hour before it, to be added
   up. Those of a domain with a finish are in a model of their own. */
MODEL (
  name reconcile.@{domain}_added_up,
  kind VIEW,
  owner @owner,
  grain @hourly_grain,
  blueprints @each_domain('merged')
);

SELECT
  log_hour::TIMESTAMP AS log_hour, /* Hour of logged_at in which the changes lie */
  @EACH(@grain, g -> g),
  @EACH(@state, m -> m)
FROM hourly.@{domain}
WHERE
  log_hour < @cut_of(@domain_name)
