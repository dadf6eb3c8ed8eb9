/* What `lockstep verify-source` found: one row per source table and verification, none ever rewritten. Where the receipts of
   domains prove that two computations over the change log agree, these prove that the log is the source, at one point of both. */
MODEL (
  name reconcile.source_receipts,
  kind VIEW,
  grain (source_table, verified_at)
);

SELECT
  source::TEXT AS source, /* The source database */
  source_table::TEXT AS source_table, /* Table compared */
  lsn::TEXT AS lsn, /* Point of the source's log at which it was compared */
  position::BIGINT AS position, /* Position of the change log that stands for the same moment */
  verified_at::TIMESTAMP AS verified_at, /* When it was compared */
  rows_compared::BIGINT AS rows_compared, /* Keys that either side has */
  source_rows::BIGINT AS source_rows, /* Rows of the source */
  log_rows::BIGINT AS log_rows, /* Keys that are live in the log */
  differing::BIGINT AS differing, /* Keys that differ: the sum of the next four */
  missing_in_the_log::BIGINT AS missing_in_the_log, /* Keys that only the source has */
  only_in_the_log::BIGINT AS only_in_the_log, /* Keys that only the log has */
  modified::BIGINT AS modified, /* Keys whose latest image in the log is not the source's row */
  unbalanced::BIGINT AS unbalanced, /* Keys whose latest image is right, but whose changes do not add up to it */
  differing_in_quarantine::BIGINT AS differing_in_quarantine, /* Differing keys that have an event in quarantine */
  events_open::BIGINT AS events_open, /* Events of the table that wait in quarantine */
  events_discarded::BIGINT AS events_discarded, /* Events of the table that were given up, by a user or by its on_bad_event */
  source_fingerprint::TEXT AS source_fingerprint, /* Order-free fingerprint of the source's rows */
  log_fingerprint::TEXT AS log_fingerprint, /* The same of the log's latest images */
  columns_not_compared::TEXT[] AS columns_not_compared, /* Columns that only the log has: the source has dropped them */
  verdict::TEXT AS verdict, /* passed, incomplete (no key differs but those of events in quarantine) or failed */
  keys::TEXT AS keys /* The first 20 differing keys and how they differ, as JSON */
FROM READ_JSON(
  'source_receipts.jsonl',
  format = 'newline_delimited',
  columns = {'source': 'TEXT', 'source_table': 'TEXT', 'lsn': 'TEXT', 'position': 'BIGINT', 'verified_at': 'TIMESTAMP', 'rows_compared': 'BIGINT', 'source_rows': 'BIGINT', 'log_rows': 'BIGINT', 'differing': 'BIGINT', 'missing_in_the_log': 'BIGINT', 'only_in_the_log': 'BIGINT', 'modified': 'BIGINT', 'unbalanced': 'BIGINT', 'differing_in_quarantine': 'BIGINT', 'events_open': 'BIGINT', 'events_discarded': 'BIGINT', 'source_fingerprint': 'TEXT', 'log_fingerprint': 'TEXT', 'columns_not_compared': 'TEXT[]', 'verdict': 'TEXT', 'keys': 'JSON'}
)
