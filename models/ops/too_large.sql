/* Sums of the folded hours that are too large to be figures. A fact that has one is not served live: ops.serving names it. Only measures
   that may have such sums are looked at: those of more than 27 digits, those that may not be computable, and counts of what may be
   more than an INTEGER. */
MODEL (
  name ops.too_large,
  kind VIEW,
  grain (domain, figure),
  blueprints @sums_to_check()
);

SELECT
  found.domain::TEXT AS domain, /* Domain */
  found.figure::TEXT AS figure /* Measure and cell of a sum that is too large */
FROM (
  @as_query(@sums)
) AS found
