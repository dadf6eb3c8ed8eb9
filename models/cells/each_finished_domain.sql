/* The cells of a domain with a finish as of this second: the sums of all hours, and the signed rows of the log since the last
   folded one. live.<domain> is the finish over them. */
MODEL (
  name cells.@{domain},
  kind VIEW,
  owner @owner,
  grain @grain,
  blueprints @each_domain('cells')
);

WITH folded AS (
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
  FROM hourly.@{domain}
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
