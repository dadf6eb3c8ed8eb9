/* The measures of each domain: how they merge, and how far the incremental path may lie from the rebuild. */
MODEL (
  name ops.contract_measures,
  kind VIEW,
  grain (domain, measure)
);

SELECT
  domain::TEXT AS domain, /* Domain */
  measure::TEXT AS measure, /* Column in the domain's models */
  merge::TEXT AS merge, /* sum, latest, max, min, or batch: only the daily rebuild has it */
  unit::TEXT AS unit, /* Unit */
  tolerance_absolute::DOUBLE AS tolerance_absolute, /* Allowed distance, in the unit (seconds for a timestamp) */
  tolerance_relative::DOUBLE AS tolerance_relative, /* Allowed distance as a share of the rebuild's value */
  description::TEXT AS description /* What it measures */
FROM seeds.contract_measures
