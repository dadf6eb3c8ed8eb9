/* What a receipt of the domain compares while this plan is in use: the physical tables and a digest of everything they are
   computed from. SQLMesh renders a view anew whenever anything upstream of it changes, also where it computes nothing anew, so
   that a receipt taken before a plan can be told from one taken after it. */
MODEL (
  name reconcile.@{domain}_in_use,
  kind VIEW,
  owner @owner,
  grain domain,
  depends_on (reconcile.@{domain}_cells, rebuild.@{domain}, @{increments}.@{domain}),
  blueprints @each_domain()
);

SELECT
  @domain_name::TEXT AS domain, /* Domain */
  @compared(reconcile.@{domain}_cells, rebuild.@{domain}, @{increments}.@{domain})::TEXT[] AS compared, /* Physical tables behind the comparison, the rebuild and the increments */
  @evidence_digest(reconcile.@{domain}_cells, rebuild.@{domain}, @{increments}.@{domain})::TEXT AS evidence_digest /* Changes with any query, macro, seed or materialization upstream */
