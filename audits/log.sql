AUDIT (
  name hour_is_sealed
);

/* Signals keep unsealed hours away; this stands behind them, for a signal that was removed or a clock that was set back. An hour
   folded while it could still receive changes would be marked as done for ever with part of them. */
SELECT
  *
FROM @this_model
WHERE
  log_hour >= (
    SELECT
      MIN(sealed_until)
    FROM changes.watermark
    WHERE
      source_table IN @tables
  );

AUDIT (
  name hour_is_closed
);

/* As hour_is_sealed, for the log itself: by its clock alone, because a quarantined event keeps its place in the hour. */
SELECT
  *
FROM @this_model
WHERE
  log_hour >= (
    SELECT
      MIN(clock_until)
    FROM changes.watermark
  );

AUDIT (
  name positions_gapless
);

/* Positions are 1, 2, 3, ... over all tables. A missing or doubled one is a change that was lost or landed twice, which no
   other figure would show. */
WITH hours AS (
  SELECT
    log_hour,
    first_position,
    last_position,
    changes,
    LAG(last_position) OVER (ORDER BY log_hour) AS previous_last_position
  FROM @this_model
)
SELECT
  *
FROM hours
WHERE
  changes <> last_position - first_position + 1
  OR first_position <> previous_last_position + 1;

AUDIT (
  name log_is_complete
);

/* The log up to the cut must still be what the hours were folded from. An hour whose changes were lost, doubled or moved
   after it was folded is named here; without this the loss would only show as a divergence, and in no measure that is zero.
   And it must reach the position at which it stood when the cut was made: its last changes have nothing after them that
   would show their loss. */
WITH positions AS (
  SELECT
    DATE_TRUNC('HOUR', logged_at) AS log_hour,
    COUNT(*) AS changes,
    COUNT(DISTINCT position) AS distinct_positions,
    MIN(position) AS first_position,
    MAX(position) AS last_position
  FROM changes.all_positions
  WHERE
    logged_at < (
      SELECT
        MAX(cut)
      FROM @this_model
    )
  GROUP BY
    1
), folded AS (
  SELECT
    *
  FROM hourly.log
  WHERE
    log_hour < (
      SELECT
        MAX(cut)
      FROM @this_model
    )
)
SELECT
  COALESCE(positions.log_hour, folded.log_hour) AS log_hour,
  positions.changes,
  folded.changes AS folded_changes
FROM positions
FULL JOIN folded
  ON positions.log_hour = folded.log_hour
WHERE
  positions.changes IS DISTINCT FROM folded.changes
  OR positions.distinct_positions <> positions.changes
  OR positions.first_position IS DISTINCT FROM folded.first_position
  OR positions.last_position IS DISTINCT FROM folded.last_position
UNION ALL
SELECT
  DATE_TRUNC('HOUR', MAX(logged_at)) AS log_hour,
  MAX(position) AS changes,
  (
    SELECT
      MAX(position)
    FROM @this_model
  ) AS folded_changes
FROM changes.all_positions
WHERE
  position <= (
    SELECT
      MAX(position)
    FROM @this_model
  )
HAVING
  MAX(position) IS DISTINCT FROM (
    SELECT
      MAX(position)
    FROM @this_model
  );

AUDIT (
  name image_chain_unbroken
);

/* A table whose chain of images is broken must not be rebuilt: the log is then no evidence of what its rows were, even where
   every figure agrees. Which changes break it, and how, stands in the model. */
SELECT
  UNNEST(findings) AS finding
FROM @this_model
WHERE
  broken > 0;

AUDIT (
  name source_is_append_only
);

/* Merging by `latest`, `max` or `min` takes nothing back: a ping that was changed or deleted after it was merged would stay in the increments
   for ever. A source that does so needs measures that merge by sum. */
SELECT
  position,
  op
FROM @source_table
WHERE
  (
    NOT op IN ('c', 'r') OR NOT before IS NULL
  ) AND logged_at < @cut_of(@domain)
