/* Which checkpoints count: one row per source table and cut. A checkpoint has the rows of a table at a cut; it is taken after the
   nightly audit of the table's chain passed. Of an append-only table the log itself is the checkpoint, and only the cut is noted. */
MODEL (
  name ops.checkpoints,
  kind VIEW,
  grain (source_table, cut)
);

WITH listed AS (
  SELECT
    UNNEST(checkpoints) AS checkpoint
  FROM READ_JSON(
    'changelog/checkpoints.json',
    columns = {'checkpoints': 'STRUCT(source_table TEXT, cut TIMESTAMP, "partition" TEXT, "position" BIGINT, "rows" BIGINT)[]'}
  )
)
SELECT
  STRUCT_EXTRACT(checkpoint, 'source_table')::TEXT AS source_table, /* Table of the source */
  STRUCT_EXTRACT(checkpoint, 'cut')::TIMESTAMP AS cut, /* First instant of logged_at that is not in it */
  STRUCT_EXTRACT(checkpoint, 'partition')::TEXT AS partition, /* The cut as the directory's name has it */
  STRUCT_EXTRACT(checkpoint, 'position')::BIGINT AS position, /* Last position of the log before the cut */
  STRUCT_EXTRACT(checkpoint, 'rows')::BIGINT AS rows /* Rows in it; 0 of an append-only table */
FROM listed
