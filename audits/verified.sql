AUDIT (
  name live_equals_rebuild_at_its_cut
);

/* What live figures stood on until now, the generation before plus the increments since, must be the new generation at its cut.
   Without this the live figures could have been wrong all day and be put right at night without anybody knowing. A generation
   that other models computed does not carry live figures, and may differ. */
WITH cuts AS (
  SELECT
    MAX(cut) AS cut,
    MAX(CASE WHEN recency = 2 AND is_of_the_same_models THEN cut END) AS previous_cut
  FROM (
    SELECT
      cut,
      DENSE_RANK() OVER (ORDER BY cut DESC) AS recency,
      evidence_digest IS NOT DISTINCT FROM FIRST_VALUE(evidence_digest) OVER (ORDER BY cut DESC) AS is_of_the_same_models
    FROM @this_model
  ) AS generations
), parts AS (
  SELECT
    @EACH(@cell, g -> g),
    @EACH(@state_columns, m -> m),
    0 AS rebuilt
  FROM @this_model
  WHERE
    cut = (
      SELECT
        previous_cut
      FROM cuts
    )
  UNION ALL
  SELECT
    @EACH(@cell, g -> g),
    @EACH(@state_columns, m -> m),
    0 AS rebuilt
  FROM @increments
  WHERE
    log_hour >= (
      SELECT
        previous_cut
      FROM cuts
    )
    AND log_hour < (
      SELECT
        cut
      FROM cuts
    )
  UNION ALL
  SELECT
    @EACH(@cell, g -> g),
    @EACH(@state_columns, m -> m),
    1 AS rebuilt
  FROM @this_model
  WHERE
    cut = (
      SELECT
        cut
      FROM cuts
    )
    AND NOT (
      SELECT
        previous_cut
      FROM cuts
    ) IS NULL
), cells AS (
  SELECT
    @EACH(@cell, g -> g),
    @merged_where(@merges, rebuild_, rebuilt = 1),
    @merged_where(@merges, live_, rebuilt = 0)
  FROM parts
  GROUP BY
    @EACH(@cell, g -> g)
)
SELECT
  *
FROM (
  SELECT
    *,
    @are_within_tolerance(@merges, rebuild_, live_) AS is_within_tolerance
  FROM cells
) AS compared
WHERE
  NOT is_within_tolerance
