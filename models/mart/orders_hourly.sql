/* Orders by the hour in which they were placed. The category is the one in effect at the beginning of that hour. Every cell has an
   order; HAVING says so in sums, for a publication that keeps these and adds up only what changed (decision 14). */
MODEL (
  name mart.orders_hourly,
  kind VIEW,
  owner 'commerce-analytics',
  grain (ordered_hour, category, region, status)
);

SELECT
  orders.ordered_hour::TIMESTAMP AS ordered_hour, /* Hour of the event time, UTC */
  COALESCE(products.category, 'unknown')::TEXT AS category, /* Category as of that hour; unknown if the product is */
  orders.region::TEXT AS region, /* Delivery region */
  orders.status::TEXT AS status, /* created, paid, shipped, completed, cancelled, failed, returned or unknown */
  SUM(orders.orders)::BIGINT AS orders, /* Orders */
  SUM(orders.units)::BIGINT AS units, /* Units ordered */
  SUM(orders.revenue_cents)::DECIMAL(38, 0) AS revenue_cents, /* Amount in cents, whatever the status */
  SUM(orders.high_value_orders)::BIGINT AS high_value_orders, /* Orders over 1 000.00 */
  orders.served_from::TEXT AS served_from, /* live or rebuild */
  orders.as_of::TIMESTAMP AS as_of /* The figures include all changes logged up to then */
FROM mart.orders AS orders
LEFT JOIN dims.products AS products
  ON products.product_id = orders.product_id
  AND products.valid_from_at <= orders.ordered_hour
  AND orders.ordered_hour < products.valid_to_at
GROUP BY
  1,
  2,
  3,
  4,
  orders.served_from,
  orders.as_of
HAVING
  SUM(orders.orders) <> 0
