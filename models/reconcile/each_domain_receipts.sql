/* One receipt per reconciliation, and none is ever rewritten: the evidence on which the mart decides what to serve. A failed
   one is kept as well, while its audit stops everything downstream of it. None is taken while the chain of a table is broken that the
   contract names. */
MODEL (
  name reconcile.@{domain}_receipts,
  kind CUSTOM (
    materialization 'append_only',
    materialization_properties (number_column = sequence, code = @materializations())
  ),
  cron '@daily',
  start @log_eve(),
  owner @owner,
  grain sequence,
  audits (
    rebuild_equals_increments(cells := reconcile.@{domain}_cells)
  ),
  depends_on @awaited,
  blueprints @each_domain()
);

WITH cells AS (
  SELECT
    *,
    @fingerprint(@grain, @measure_names, 'rebuild_') AS rebuild_fingerprint,
    @fingerprint(@grain, @measure_names, 'increments_') AS increments_fingerprint
  FROM reconcile.@{domain}_cells
), measured AS (
  SELECT
    COUNT(*) AS cells_compared,
    COUNT(CASE WHEN class <> 'identical' THEN 1 END) AS cells_differing,
    COUNT(CASE WHEN NOT class IN ('identical', 'tolerated') THEN 1 END) AS cells_beyond,
    @evidence(@measures) AS measures,
    COALESCE(SUM(CASE WHEN class <> 'added' THEN rebuild_fingerprint END), 0) AS rebuild_fingerprint,
    COALESCE(SUM(CASE WHEN class <> 'removed' THEN increments_fingerprint END), 0) AS increments_fingerprint
  FROM cells
)
SELECT
  0::BIGINT AS sequence, /* The receipts of a domain in the order in which they were stored, whatever the clock said */
  @domain_name::TEXT AS domain, /* Domain reconciled */
  @cut_of(@domain_name)::TIMESTAMP AS cut, /* Cut at which the paths were compared */
  CURRENT_TIMESTAMP::TIMESTAMP AS reconciled_at, /* When they were compared */
  (
    SELECT
      MAX(last_position)
    FROM hourly.log
    WHERE
      log_hour < @cut_of(@domain_name)
  )::BIGINT AS position, /* Last position of the log before the cut */
  cells_compared::BIGINT AS cells_compared, /* Cells that either path knows */
  cells_differing::BIGINT AS cells_differing, /* Cells that are not identical */
  cells_beyond::BIGINT AS cells_beyond, /* Cells that differ by more than the contract allows */
  measures::STRUCT(
    measure TEXT,
    cells BIGINT,
    cells_differing BIGINT,
    cells_beyond BIGINT,
    worst_absolute DOUBLE,
    worst_relative DOUBLE,
    is_within_tolerance BOOLEAN
  )[] AS measures, /* The evidence by measure; reconcile.measures has it as rows */
  rebuild_fingerprint::TEXT AS rebuild_fingerprint, /* Order-free fingerprint of the rebuild */
  increments_fingerprint::TEXT AS increments_fingerprint, /* The same of the summed increments */
  CASE
    WHEN cells_beyond > 0
    THEN 'failed'
    WHEN cells_compared > 0
    OR EXISTS(
      SELECT
        1
      FROM (
        @as_query(@changed)
      ) AS changed
      WHERE
        changed_at < @cut_of(@domain_name)
    )
    THEN 'passed'
    ELSE 'empty'
  END::TEXT AS verdict, /* passed; failed; empty: neither path has anything before the cut, which proves nothing */
  @contract_mode(@domain_name)::TEXT AS mode, /* Mode of the domain when they were compared */
  in_use.compared::TEXT[] AS compared, /* Physical tables that were compared */
  in_use.evidence_digest::TEXT AS evidence_digest /* What they were computed from: reconcile.in_use has that of now */
FROM measured
CROSS JOIN reconcile.@{domain}_in_use AS in_use
