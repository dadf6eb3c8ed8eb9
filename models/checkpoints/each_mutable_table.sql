/* The rows of a source table at the cuts of its last checkpoints. Read those of one cut that ops.checkpoints lists; the files of
   the others are then not read. */
MODEL (
  name checkpoints.@{source_table},
  kind VIEW,
  grain @checkpoint_grain,
  blueprints @each_source_table('mutable')
);

SELECT
  @columns_of(@columns, rows),
  rows.__cut::TEXT AS __cut /* The cut, as partition of ops.checkpoints has it */
FROM READ_PARQUET(
  @checkpoint_files(@source_table),
  hive_partitioning = TRUE,
  hive_types_autocast = FALSE
) AS rows
