/* Every event that ever broke the landing contract, whole, with the position kept for it. It is open until a change
   or a discarded event fills that position. */
MODEL (
  name changes.quarantined,
  kind VIEW,
  grain position
);

SELECT
  position::BIGINT AS position, /* Position kept for the event */
  logged_at::TIMESTAMP AS logged_at, /* logged_at of that position */
  "table"::TEXT AS source_table, /* Table of the event; * if it could not be told */
  reason::TEXT AS reason, /* How the event broke the contract */
  event::TEXT AS event /* The event as it came */
FROM READ_JSON(
  'quarantine/*.jsonl',
  format = 'newline_delimited',
  columns = {'position': 'BIGINT', 'logged_at': 'TIMESTAMP', 'table': 'TEXT', 'reason': 'TEXT', 'event': 'TEXT'}
)
WHERE
  position <= (
    SELECT
      MAX(position)
    FROM changes.watermark
  )
