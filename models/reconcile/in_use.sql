/* What the receipts of all domains compare while this plan is in use. */
MODEL (
  name reconcile.in_use,
  kind VIEW,
  grain domain
);

SELECT
  domain::TEXT AS domain, /* Domain */
  compared::TEXT[] AS compared, /* Physical tables behind the comparison, the rebuild and the increments */
  evidence_digest::TEXT AS evidence_digest /* Changes with any query, macro, seed or materialization upstream */
FROM (
  @union_of_domains('reconcile.{domain}_in_use')
) AS in_use
