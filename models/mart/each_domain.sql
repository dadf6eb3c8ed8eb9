/* The domain's cells as its mode and its evidence serve them: live figures or the last verified rebuild, never a mixture. */
MODEL (
  name mart.@{domain},
  kind VIEW,
  owner @owner,
  grain @grain,
  blueprints @each_domain()
);

WITH serving AS (
  SELECT
    served_from,
    as_of,
    verified_cut
  FROM ops.serving
  WHERE
    domain = @domain_name
), served AS (
  SELECT
    @EACH(@grain, g -> g),
    @EACH(@state, m -> m)
  FROM live.@{domain}
  WHERE
    (
      SELECT
        served_from
      FROM serving
    ) = 'live'
  UNION ALL
  SELECT
    @EACH(@grain, g -> g),
    @EACH(@state, m -> m)
  FROM verified.@{domain}
  WHERE
    (
      SELECT
        served_from
      FROM serving
    ) = 'rebuild'
    AND cut = (
      SELECT
        verified_cut
      FROM serving
    )
)
SELECT
  @EACH(@grain, g -> served.g),
  @served(@measures, @figures, served),
  serving.served_from::TEXT AS served_from, /* live or rebuild */
  serving.as_of::TIMESTAMP AS as_of /* The figures include all changes logged up to then */
FROM served
CROSS JOIN serving
