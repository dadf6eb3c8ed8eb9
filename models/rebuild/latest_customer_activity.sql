/* The latest image of every order that lives at the cut, as its customer sees it. */
MODEL (
  name rebuild.latest_customer_activity,
  kind VIEW,
  owner 'customer-care',
  grain order_id
);

SELECT
  order_id::BIGINT AS order_id, /* Key of the order */
  customer_id::BIGINT AS customer_id, /* Customer who ordered */
  @five_minutes(ordered_at)::TIMESTAMP AS ordered_bucket, /* Five minutes in which the order was placed */
  1::BIGINT AS orders, /* The order itself */
  CASE WHEN status = 'completed' OR @is_called_off(status) THEN 0 ELSE 1 END::BIGINT AS open_orders, /* 1 if it is open */
  CASE WHEN @is_called_off(status) THEN 0 ELSE revenue_cents END::BIGINT AS revenue_cents, /* Amount in cents; 0 if called off */
  CASE WHEN @is_alert_value(revenue_cents) THEN 1 ELSE 0 END::BIGINT AS alert_orders /* 1 if over 10 000.00 */
FROM rebuild.latest_orders
