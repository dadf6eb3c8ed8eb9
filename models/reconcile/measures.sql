/* The receipts by measure: how many cells were compared and differed, and how far the worst of them lay apart. */
MODEL (
  name reconcile.measures,
  kind VIEW,
  grain (domain, sequence, measure)
);

WITH entries AS (
  SELECT
    sequence,
    domain,
    cut,
    reconciled_at,
    UNNEST(measures) AS entry
  FROM reconcile.receipts
)
SELECT
  sequence::BIGINT AS sequence, /* Which receipt of the domain */
  domain::TEXT AS domain, /* Domain reconciled */
  cut::TIMESTAMP AS cut, /* Cut at which the paths were compared */
  reconciled_at::TIMESTAMP AS reconciled_at, /* When they were compared */
  STRUCT_EXTRACT(entry, 'measure')::TEXT AS measure, /* Measure */
  STRUCT_EXTRACT(entry, 'cells')::BIGINT AS cells, /* Cells compared */
  STRUCT_EXTRACT(entry, 'cells_differing')::BIGINT AS cells_differing, /* Cells in which it is not the same */
  STRUCT_EXTRACT(entry, 'cells_beyond')::BIGINT AS cells_beyond, /* Cells in which it differs by more than the contract allows */
  STRUCT_EXTRACT(entry, 'worst_absolute')::DOUBLE AS worst_absolute, /* Largest distance, in its unit (seconds for a timestamp) */
  STRUCT_EXTRACT(entry, 'worst_relative')::DOUBLE AS worst_relative, /* Largest distance as a share of the rebuild's value */
  STRUCT_EXTRACT(entry, 'is_within_tolerance')::BOOLEAN AS is_within_tolerance /* Whether every cell is as near as the contract allows */
FROM entries
