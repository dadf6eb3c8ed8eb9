/* The measures of orders that need every order of a day at once and so cannot be added up from changes. They are as of the
   cut, and the mart says so beside each of them. */
MODEL (
  name rebuild.orders_daily,
  kind FULL,
  cron '@daily',
  start @log_eve(),
  owner 'commerce-analytics',
  grain (ordered_date, category, region, status),
  depends_on (rebuild.cut, chain.orders),
  audits (
    UNIQUE_COMBINATION_OF_COLUMNS(columns := (ordered_date, category, region, status)),
    NOT_NULL(columns := (ordered_date, category, region, status, distinct_customers))
  )
);

SELECT
  orders.ordered_hour::DATE AS ordered_date, /* Day of the event time */
  COALESCE(products.category, 'unknown')::TEXT AS category, /* Category as of the hour of the order */
  orders.region::TEXT AS region, /* Delivery region */
  orders.status::TEXT AS status, /* Status by the rule of the order's time */
  COUNT(DISTINCT orders.customer_id)::BIGINT AS distinct_customers, /* Customers with at least one order */
  QUANTILE_DISC(orders.revenue_cents, 0.5)::BIGINT AS median_amount_cents, /* Median amount, one that occurs */
  QUANTILE_DISC(orders.revenue_cents, 0.95)::BIGINT AS p95_amount_cents /* 95th percentile of the amounts, one that occurs */
FROM rebuild.latest_orders AS orders
LEFT JOIN dims.products AS products
  ON products.product_id = orders.product_id
  AND products.valid_from_at <= orders.ordered_hour
  AND orders.ordered_hour < products.valid_to_at
GROUP BY
  1,
  2,
  3,
  4
