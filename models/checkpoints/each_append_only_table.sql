/* The rows of a source table that is declared append-only at the cuts up to which its chain was checked: the log itself, without
   what was taken away later. */
MODEL (
  name checkpoints.@{source_table},
  kind VIEW,
  grain @checkpoint_grain,
  blueprints @each_source_table('append_only')
);

WITH taken_away AS (
  SELECT
    checkpoints.cut,
    @key_of_change(@keys) AS key,
    MAX(changes.position) AS position
  FROM changes.@{source_table} AS changes
  JOIN ops.checkpoints AS checkpoints
    ON checkpoints.source_table = @source_name AND changes.logged_at < checkpoints.cut
  WHERE
    @is_image(changes.before, @filled)
  GROUP BY
    1,
    2
)
SELECT
  @image_columns(@columns, changes.after),
  checkpoints.partition::TEXT AS __cut /* The cut, as partition of ops.checkpoints has it */
FROM changes.@{source_table} AS changes
JOIN ops.checkpoints AS checkpoints
  ON checkpoints.source_table = @source_name AND changes.logged_at < checkpoints.cut
LEFT JOIN taken_away
  ON taken_away.key = @key_of_image(@keys, changes.after)
  AND taken_away.cut = checkpoints.cut
WHERE
  @is_image(changes.after, @filled)
  AND changes.position >= COALESCE(taken_away.position, 0)
