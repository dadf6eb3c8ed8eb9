/* Orders at the cut. The increments and the live figures are derived from this query. */
MODEL (
  name rebuild.orders,
  kind FULL,
  cron '@daily',
  start @log_eve(),
  owner 'commerce-analytics',
  grain (ordered_hour, product_id, region, status),
  depends_on (rebuild.cut, chain.orders),
  audits (
    UNIQUE_COMBINATION_OF_COLUMNS(columns := (ordered_hour, product_id, region, status)),
    NOT_NULL(
      columns := (ordered_hour, product_id, region, status, orders, units, revenue_cents)
    )
  )
);

SELECT
  ordered_hour::TIMESTAMP AS ordered_hour, /* Hour of the event time */
  product_id::BIGINT AS product_id, /* Product ordered */
  region::TEXT AS region, /* Delivery region */
  status::TEXT AS status, /* Status by the rule of the order's time */
  COUNT(*)::BIGINT AS orders, /* Orders */
  SUM(units)::BIGINT AS units, /* Units ordered */
  SUM(revenue_cents)::DECIMAL(38, 0) AS revenue_cents, /* Amount in cents over all statuses */
  SUM(high_value_orders)::BIGINT AS high_value_orders /* Orders over 1 000.00 */
FROM rebuild.latest_orders
GROUP BY
  1,
  2,
  3,
  4
