/* The authority: orders of each customer at the cut, from the latest image of every order. */
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
  ordered_bucket::TIMESTAMP AS ordered_bucket, /* Five minutes in which the orders were placed */
  COUNT(*)::BIGINT AS orders, /* Orders */
  SUM(open_orders)::BIGINT AS open_orders, /* Orders that are neither completed nor called off */
  SUM(revenue_cents)::BIGINT AS revenue_cents, /* Amount of the orders that were not called off */
  SUM(alert_orders)::BIGINT AS alert_orders /* Orders over 10 000.00 */
FROM rebuild.latest_customer_activity
GROUP BY
  1,
  2
