/* What `lockstep reconcile --now` found: one row per domain and comparison, none ever rewritten. Where reconcile.receipts has the
   rebuild at a cut against the increments up to it, these have the query as written, over the rows at one position of the log,
   against what the published file showed at that position. */
MODEL (
  name reconcile.live_receipts,
  kind VIEW,
  grain (domain, sequence)
);

SELECT
  sequence::BIGINT AS sequence, /* The live receipts of a domain in the order in which they were stored, whatever the clock said */
  domain::TEXT AS domain, /* Domain reconciled */
  position::BIGINT AS position, /* Last position of the log that both sides include */
  as_of::TIMESTAMP AS as_of, /* Both sides include all changes logged up to then */
  reconciled_at::TIMESTAMP AS reconciled_at, /* When they were compared */
  figures::TEXT AS figures, /* What was read of the published file: the mart, or live.<domain> while the mart is served from the rebuild */
  cells_compared::BIGINT AS cells_compared, /* Cells that either side knows */
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
  )[] AS measures, /* The evidence by measure */
  rebuild_fingerprint::TEXT AS rebuild_fingerprint, /* Order-free fingerprint of the query as written */
  increments_fingerprint::TEXT AS increments_fingerprint, /* The same of the published figures */
  verdict::TEXT AS verdict, /* passed; failed; empty: there was nothing to compare */
  mode::TEXT AS mode, /* Mode of the domain when they were compared */
  evidence_digest::TEXT AS evidence_digest /* What they were computed from: reconcile.in_use has that of now */
FROM READ_JSON(
  'live_receipts.jsonl',
  format = 'newline_delimited',
  columns = {'sequence': 'BIGINT', 'domain': 'TEXT', 'position': 'BIGINT', 'as_of': 'TIMESTAMP', 'reconciled_at': 'TIMESTAMP', 'figures': 'TEXT', 'cells_compared': 'BIGINT', 'cells_differing': 'BIGINT', 'cells_beyond': 'BIGINT', 'measures': 'STRUCT(measure TEXT, cells BIGINT, cells_differing BIGINT, cells_beyond BIGINT, worst_absolute DOUBLE, worst_relative DOUBLE, is_within_tolerance BOOLEAN)[]', 'rebuild_fingerprint': 'TEXT', 'increments_fingerprint': 'TEXT', 'verdict': 'TEXT', 'mode': 'TEXT', 'evidence_digest': 'TEXT'}
)
