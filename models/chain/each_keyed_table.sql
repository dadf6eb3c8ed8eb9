/* The chain of images of a source table up to the cut, checked: the image before of each change must be the image after of the
   change before it on that key. A change that was lost, doubled, reordered or altered breaks the chain even where every position
   is there; so does a source whose images before are not what it sent last. What is not declared does not count: a
   column that the source adds comes without a change. A resync mends what was broken on a key, by changes that may follow
   anything: they have op r, and one image or the same image twice. The check begins at the newest checkpoint, whose rows are what
   the changes since follow from; it looks their keys up before it reads them. Rebuilds wait for this model, so that none reads a
   table whose chain is broken. */
MODEL (
  name chain.@{source_table},
  kind FULL,
  cron '@daily',
  start @log_eve(),
  grain cut,
  depends_on (
    rebuild.cut
  ),
  audits (NUMBER_OF_ROWS(threshold := 0), image_chain_unbroken),
  blueprints @each_source_table('keyed')
);

WITH since AS NOT MATERIALIZED (
  SELECT
    position,
    op,
    @key_of_change(@keys) AS key,
    @image_digest(@columns, @filled, before) AS before_image,
    @image_digest(@columns, @filled, after) AS after_image
  FROM changes.@{source_table}
  WHERE
    logged_at >= @last_checkpoint(cut, @source_table, @readers)
    AND logged_at < @cut_of_table(@source_table, @readers)
), known AS (
  SELECT
    @key_of_row(@keys, rows) AS key
  FROM checkpoints.@{source_table} AS rows
  WHERE
    rows.__cut = @last_checkpoint(partition, @source_table, @readers)
    AND @key_of_row(@keys, rows) IN (
      SELECT
        key
      FROM since
    )
), changes AS (
  SELECT
    0 AS position,
    'r' AS op,
    @key_of_row(@keys, rows) AS key,
    NULL AS before_image,
    @row_digest(@columns, rows) AS after_image
  FROM checkpoints.@{source_table} AS rows
  WHERE
    rows.__cut = @last_checkpoint(partition, @source_table, @readers)
    AND @key_of_row(@keys, rows) IN (
      SELECT
        key
      FROM known
    )
  UNION ALL
  SELECT
    position,
    op,
    key,
    before_image,
    after_image
  FROM since
), chain AS (
  SELECT
    position,
    key,
    before_image,
    LAG(position) OVER (PARTITION BY key ORDER BY position) AS previous_position,
    LAG(after_image) OVER (PARTITION BY key ORDER BY position) AS previous_image
  FROM changes
), broken AS (
  SELECT
    chain.position,
    chain.key,
    chain.previous_position,
    chain.previous_image
  FROM chain
  WHERE
    chain.before_image IS DISTINCT FROM chain.previous_image
    AND NOT EXISTS(
      SELECT
        1
      FROM changes AS mended
      WHERE
        mended.op = 'r'
        AND COALESCE(mended.before_image = mended.after_image, TRUE)
        AND mended.key = chain.key
        AND mended.position >= chain.position
    )
), findings AS (
  SELECT
    broken.position,
    {'position': broken.position, 'previous_position': NULLIF(broken.previous_position, 0), 'key': broken.key::TEXT, 'found': CASE
      WHEN log.before IS NULL
      THEN 'is an insert of a key that lives'
      WHEN broken.previous_image IS NULL AND log.after IS NULL
      THEN 'is a delete of a key that does not live'
      WHEN broken.previous_image IS NULL
      THEN 'is an update of a key that does not live'
      WHEN @is_bare(@columns, @keys, log.before)
      THEN 'has nothing but the key in its image before'
      ELSE 'has an image before that is not the last one of its key'
    END} AS finding
  FROM broken
  JOIN changes.@{source_table} AS log
    ON log.position = broken.position
)
SELECT
  @cut_of_table(@source_table, @readers)::TIMESTAMP AS cut, /* Up to where the chain was checked */
  @last_checkpoint(cut, @source_table, @readers)::TIMESTAMP AS checked_from, /* From where on: the cut of a checkpoint; the year 1 if there was none */
  (
    SELECT
      COUNT(*)
    FROM since
  )::BIGINT AS changes, /* Changes that were checked */
  COUNT(findings.position)::BIGINT AS broken, /* Changes that do not follow from the one before on their key */
  ARG_MIN(findings.finding, findings.position, 100)::STRUCT(position BIGINT, previous_position BIGINT, key TEXT, found TEXT)[] AS findings /* The first 100 of them */
FROM findings
