/* The rows of a source table that is declared append-only, at the cut where the rebuilds read it: the log itself, without what a
   later change took away, as TRUNCATE does. Few changes of such a table have an image before, so that to look for them costs
   next to nothing. */
MODEL (
  name source.@{source_table},
  kind VIEW,
  grain _position,
  depends_on (
    chain.@{source_table}
  ),
  blueprints @each_source_table('append_only')
);

WITH taken_away AS (
  SELECT
    @key_of_change(@keys) AS key,
    MAX(position) AS position
  FROM changes.@{source_table}
  WHERE
    @is_image(before, @filled) AND logged_at < @cut_of_table(@source_table, @readers)
  GROUP BY
    1
)
SELECT
  @image_columns(@columns, changes.after),
  changes.position::BIGINT AS _position, /* Position of the change that added the row */
  changes.committed_at::TIMESTAMP AS _committed_at, /* The source's commit time of it */
  changes.op::TEXT AS _op /* c, or r where a snapshot or resync read the row */
FROM changes.@{source_table} AS changes
LEFT JOIN taken_away
  ON taken_away.key = @key_of_image(@keys, changes.after)
WHERE
  @is_image(changes.after, @filled)
  AND changes.logged_at < @cut_of_table(@source_table, @readers)
  AND changes.position >= COALESCE(taken_away.position, 0)
