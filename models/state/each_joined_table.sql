/* A table as of the last folded hour of a domain that joins it to other changing tables: signed rows that add up to its rows. */
MODEL (
  name state.@{domain}__@{source_table},
  kind VIEW,
  owner @owner,
  blueprints @each_joined_table()
);

WITH folded AS (
  SELECT
    COALESCE(MAX(log_hour) + INTERVAL '1' HOUR, '0001-01-01'::TIMESTAMP) AS folded_until
  FROM hourly.@{domain}
)
SELECT
  @columns_of(@columns, rows),
  rows.__position::BIGINT AS __position, /* Position of the change; 0 of a row of the checkpoint */
  rows.__logged_at::TIMESTAMP AS __logged_at, /* logged_at of the change; the year 1 of a row of the checkpoint */
  rows.__weight::INT AS __weight /* -1 for the image before a change, +1 for the one after, and for a row of the checkpoint */
FROM (
  @state_at(@source_name, @is_checkpointed, @columns, (
    SELECT
      folded_until
    FROM folded
  ))
) AS rows
