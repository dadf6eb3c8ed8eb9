/* The measures of each domain: how they merge, and how far the incremental path may lie from the rebuild. */
MODEL (
  name ops.contract_measures,
  kind VIEW,
  grain (domain, measure),
  blueprints @measure_rows()
);

SELECT
  domain::TEXT AS domain, /* Domain */
  measure::TEXT AS measure, /* Column in the domain's models */
  merge::TEXT AS merge, /* sum, latest, max, min, or batch: only the daily rebuild has it */
  unit::TEXT AS unit, /* Unit */
  tolerance_absolute::DOUBLE AS tolerance_absolute, /* Allowed distance, in the unit (seconds for a timestamp) */
  tolerance_relative::DOUBLE AS tolerance_relative, /* Allowed distance as a share of the rebuild's value */
  tolerance_median::DOUBLE AS tolerance_median, /* Allowed distance at the median of the cells that differ, in the unit; NULL: as far as the worst may */
  tolerance_cells::DOUBLE AS tolerance_cells, /* Share of the cells that may differ at all; one always may */
  description::TEXT AS description /* What it measures */
FROM (
  @as_query(@rows)
) AS measures
