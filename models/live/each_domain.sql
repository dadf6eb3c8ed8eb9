/* The figures of this second: the last verified rebuild, plus the increments since its cut, plus the signed images of the
   log since the last folded hour. The three parts meet at cuts, so no change is counted twice or left out; without a
   verified rebuild the increments since the log's start take its place. */
MODEL (
  name live.@{domain},
  kind VIEW,
  owner @owner,
  grain @grain,
  blueprints @each_domain('merged')
);

WITH base AS (
  SELECT
    COALESCE(MAX(cut), '0001-01-01'::TIMESTAMP) AS cut
  FROM verified.@{domain}
), folded AS (
  SELECT
    COALESCE(MAX(log_hour) + INTERVAL '1' HOUR, '0001-01-01'::TIMESTAMP) AS folded_until
  FROM hourly.@{domain}
), readable AS (
  SELECT
    MIN(readable_position) AS readable_position
  FROM changes.watermark
  WHERE
    source_table IN @sources
), parts AS (
  SELECT
    @EACH(@grain, g -> g),
    @EACH(@state, m -> m)
  FROM verified.@{domain}
  WHERE
    cut = (
      SELECT
        cut
      FROM base
    )
  UNION ALL
  SELECT
    @EACH(@grain, g -> g),
    @EACH(@state, m -> m)
  FROM hourly.@{domain}
  WHERE
    log_hour >= (
      SELECT
        cut
      FROM base
    )
  UNION ALL
  SELECT
    @EACH(@grain, g -> g),
    @EACH(@state, m -> m)
  FROM @{tail}.@{domain}
  WHERE
    logged_at >= (
      SELECT
        folded_until
      FROM folded
    )
    AND position <= (
      SELECT
        readable_position
      FROM readable
    )
), cells AS (
  SELECT
    @EACH(@grain, g -> g),
    @merged(@measures)
  FROM parts
  GROUP BY
    @EACH(@grain, g -> g)
)
SELECT
  @EACH(@grain, g -> g),
  @EACH(@state, m -> m)
FROM cells
WHERE
  @is_there(@measures)
