/* The last generations of rebuilds, of a domain with a finish or one that is recomputed, whose receipt passed: what is served as
   batch. Its live figures do not stand on these. */
MODEL (
  name verified.@{domain},
  kind CUSTOM (
    materialization 'atomic_by_value',
    materialization_properties (key_column = cut, keep = 7, code = @materializations())
  ),
  cron '@daily',
  start @log_eve(),
  owner @owner,
  grain @cut_grain,
  blueprints @each_domain('queried')
);

SELECT
  rebuild_cut.cut::TIMESTAMP AS cut, /* Cut of this generation */
  @EACH(@grain, g -> rebuilt.g),
  @state_of(@measures, rebuilt),
  in_use.evidence_digest::TEXT AS evidence_digest /* What it was computed from, as its receipt says */
FROM rebuild.@{domain} AS rebuilt
CROSS JOIN rebuild.cut AS rebuild_cut
CROSS JOIN reconcile.@{domain}_in_use AS in_use
WHERE
  rebuild_cut.domain = @domain_name
  AND (
    SELECT
      ARG_MAX(
        receipts.verdict = 'passed'
        AND receipts.evidence_digest IS NOT DISTINCT FROM in_use.evidence_digest,
        receipts.sequence
      )
    FROM reconcile.@{domain}_receipts AS receipts
    WHERE
      receipts.cut = rebuild_cut.cut
  )
