/* The rows of a source table at the cut where the rebuilds read it: those of the newest checkpoint that have not changed since, and
   the latest image of each key that has and lives. No arithmetic over changes: a row is here as the source last had it. The latest
   change is found by its position, over the columns of the key alone, so that a scan reads only the other columns that are asked
   for. */
MODEL (
  name source.@{source_table},
  kind VIEW,
  grain @key_columns,
  depends_on (
    chain.@{source_table}
  ),
  blueprints @each_source_table('mutable')
);

WITH changes AS NOT MATERIALIZED (
  SELECT
    position,
    before,
    after
  FROM changes.@{source_table}
  WHERE
    logged_at >= @last_checkpoint(cut, @source_table, @readers)
    AND logged_at < @cut_of_table(@source_table, @readers)
)
SELECT
  @columns_of(@columns, unchanged)
FROM checkpoints.@{source_table} AS unchanged
WHERE
  unchanged.__cut = @last_checkpoint(partition, @source_table, @readers)
  AND NOT @key_of_row(@keys, unchanged) IN (
    SELECT
      @key_of_change(@keys)
    FROM changes
  )
UNION ALL
SELECT
  @image_columns(@columns, changes.after)
FROM changes
WHERE
  @is_image(changes.after, @filled)
  AND changes.position IN (
    SELECT
      MAX(position)
    FROM changes
    GROUP BY
      @EACH(@keys, k -> COALESCE(STRUCT_EXTRACT(after, k), STRUCT_EXTRACT(before, k)))
  )
