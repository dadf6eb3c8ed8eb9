/* The last generations of rebuilds whose receipt passed: what is served as batch, and the base that live figures stand on. A
   rebuild without a passed receipt never gets here, so a failed night leaves the last good one in its place. */
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
  audits (
    live_equals_rebuild_at_its_cut(
      increments := hourly.@{domain},
      cell := @grain,
      merges := @measures,
      state_columns := @state
    )
  ),
  depends_on (
    hourly.@{domain}
  ),
  blueprints @each_domain('merged')
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
