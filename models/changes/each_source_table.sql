/* The typed change log of one source table up to the watermark, one row per change. `before` and `after` are whole images
   of the source row; columns that the log's schema does not name travel in their `extra` as JSON. The cast changes nothing: it
   makes the declaration part of this model, so that a plan after a change of it makes the view again. */
MODEL (
  name changes.@{source_table},
  kind VIEW,
  grain position,
  blueprints @each_source_table()
);

SELECT
  position::BIGINT AS position, /* Place in the one total order over all tables; gapless over all of them together */
  logged_at::TIMESTAMP AS logged_at, /* Running maximum of committed_at in position order: the clock that cuts */
  committed_at::TIMESTAMP AS committed_at, /* The source's commit time; not monotone, never used to cut */
  op::TEXT AS op, /* c, u, d or r, as Debezium has them */
  @typed(before, @image_type) AS before, /* Image before the change; NULL for an insert */
  @typed(after, @image_type) AS after, /* Image after the change; NULL for a delete */
  tx_id::BIGINT AS tx_id, /* The source's transaction */
  lsn::BIGINT AS lsn /* The source's log sequence number of the change */
FROM READ_PARQUET(@log_files(@source_table), hive_partitioning = FALSE)
WHERE
  position <= (
    SELECT
      MAX(position)
    FROM changes.watermark
  )
