/* Signed rows: each change as its images, the one before with weight -1 and the one after with weight +1. Sums over them need to
   know nothing of updates or deletes. The log is read once, so that both images of a change come from the same moment. Each
   column is taken out of both images before the choice between them: a scan reads only the columns that are asked for. The signs
   are joined on which images a change has: a bound that is only known at run time, such as the newest checkpoint's cut, then keeps
   DuckDB from reading older files. It does not push such a bound through a cross product. */
MODEL (
  name signed.@{source_table},
  kind VIEW,
  grain (__position, __weight),
  blueprints @each_source_table()
);

SELECT
  changes.position::BIGINT AS __position, /* Position of the change in the log */
  changes.logged_at::TIMESTAMP AS __logged_at, /* logged_at of the change */
  signs.weight::INT AS __weight, /* -1 for the image before the change, +1 for the one after */
  @signed_columns(@columns, changes.before, changes.after, signs.weight)
FROM changes.@{source_table} AS changes
JOIN (VALUES
  (FALSE, TRUE, 1),
  (TRUE, FALSE, -1),
  (TRUE, TRUE, -1),
  (TRUE, TRUE, 1)) AS signs(has_before, has_after, weight)
  ON signs.has_before = @is_image(changes.before, @filled)
  AND signs.has_after = @is_image(changes.after, @filled)
