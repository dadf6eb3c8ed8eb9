/* Orders of each customer at the cut. The increments and the live figures are derived from this query. */
MODEL (
  name rebuild.customer_activity,
  kind FULL,
  cron '@daily',
  start @log_eve(),
  owner 'customer-care',
  grain (customer_id, ordered_bucket),
  depends_on (rebuild.cut, chain.orders),
  audits (
    UNIQUE_COMBINATION_OF_COLUMNS(columns := (customer_id, ordered_bucket)),
    NOT_NULL(columns := (customer_id, ordered_bucket))
  )
);

SELECT
  customer_id::BIGINT AS customer_id, /* Customer who ordered */
  @five_minutes(ordered_at)::TIMESTAMP AS ordered_bucket, /* Five minutes in which the orders were placed */
  COUNT(*)::BIGINT AS orders, /* Orders */
  SUM(CASE WHEN status <> 'completed' AND NOT @is_called_off(status) THEN 1 ELSE 0 END)::BIGINT AS open_orders, /* Orders that are neither completed nor called off */
  SUM(CASE WHEN @is_called_off(status) THEN 0 ELSE revenue_cents END)::DECIMAL(38, 0) AS revenue_cents, /* Amount of the orders that were not called off */
  SUM(CASE WHEN @is_alert_value(revenue_cents) THEN 1 ELSE 0 END)::BIGINT AS alert_orders /* Orders over 10 000.00 */
FROM rebuild.latest_orders
GROUP BY
  1,
  2
