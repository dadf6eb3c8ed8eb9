/* The receipts of all domains. */
MODEL (
  name reconcile.receipts,
  kind VIEW,
  grain (domain, sequence)
);

SELECT
  sequence::BIGINT AS sequence, /* The receipts of a domain in the order in which they were stored, whatever the clock said */
  domain::TEXT AS domain, /* Domain reconciled */
  cut::TIMESTAMP AS cut, /* Cut at which the paths were compared */
  reconciled_at::TIMESTAMP AS reconciled_at, /* When they were compared */
  position::BIGINT AS position, /* Last position of the log before the cut */
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
  verdict::TEXT AS verdict, /* passed; failed; empty: neither path has anything before the cut, which proves nothing */
  mode::TEXT AS mode, /* Mode of the domain when they were compared */
  compared::TEXT[] AS compared, /* Physical tables that were compared */
  evidence_digest::TEXT AS evidence_digest /* What they were computed from: reconcile.in_use has that of now */
FROM (
  @union_of_domains('reconcile.{domain}_receipts')
) AS receipts
