/* Signed images of orders as their customers see them: what diffs.orders makes of each image, by customer and five minutes. */
MODEL (
  name diffs.customer_activity,
  kind VIEW,
  owner 'customer-care',
  grain (position, diff)
);

SELECT
  position::BIGINT AS position, /* Position of the change in the log */
  logged_at::TIMESTAMP AS logged_at, /* logged_at of the change */
  diff::INT AS diff, /* -1 for the image before the change, +1 for the one after */
  order_id::BIGINT AS order_id, /* Key of the order */
  customer_id::BIGINT AS customer_id, /* Customer who ordered */
  @five_minutes(ordered_at)::TIMESTAMP AS ordered_bucket, /* Five minutes in which the order was placed */
  diff::BIGINT AS orders, /* Orders, signed */
  CASE WHEN status = 'completed' OR @is_called_off(status) THEN 0 ELSE diff END::BIGINT AS open_orders, /* Open orders, signed */
  CASE WHEN @is_called_off(status) THEN 0 ELSE revenue_cents END::BIGINT AS revenue_cents, /* Amount in cents, signed */
  CASE WHEN @is_alert_value(diff * revenue_cents) THEN diff ELSE 0 END::BIGINT AS alert_orders /* Orders over 10 000.00, signed */
FROM diffs.orders
