/* The rows of a source table without a key, at the cut where the rebuilds read it: the log itself, without what was taken away.
   TRUNCATE takes all rows, and nothing else lands as op d. A resync takes single rows: of equal ones the first. While it has
   taken none, the images are not compared, nor read but for the columns asked for. */
MODEL (
  name source.@{source_table},
  kind VIEW,
  grain _position,
  blueprints @each_source_table('keyless')
);

WITH changes AS NOT MATERIALIZED (
  SELECT
    position,
    committed_at,
    op,
    before,
    after
  FROM changes.@{source_table}
  WHERE
    logged_at < @cut_of_table(@source_table, @readers)
    AND position > COALESCE(
      (
        SELECT
          MAX(position)
        FROM changes.@{source_table}
        WHERE
          op = 'd' AND logged_at < @cut_of_table(@source_table, @readers)
      ),
      0
    )
), taken_away AS (
  SELECT
    before AS image,
    COUNT(*) AS copies
  FROM changes
  WHERE
    op = 'r' AND NOT before IS NULL
  GROUP BY
    before
), gone AS (
  SELECT
    numbered.position
  FROM (
    SELECT
      changes.position,
      taken_away.copies,
      ROW_NUMBER() OVER (PARTITION BY changes.after ORDER BY changes.position) AS number
    FROM changes
    JOIN taken_away
      ON taken_away.image = changes.after
  ) AS numbered
  WHERE
    numbered.number <= numbered.copies
)
SELECT
  @image_columns(@columns, changes.after),
  changes.position::BIGINT AS _position, /* Position of the change that added the row */
  changes.committed_at::TIMESTAMP AS _committed_at, /* The source's commit time of it */
  changes.op::TEXT AS _op /* c, or r where a snapshot or resync read the row */
FROM changes
WHERE
  @is_image(changes.after, @filled)
  AND NOT changes.position IN (
    SELECT
      position
    FROM gone
  )
