/* The figures of customers that need their whole history at once and so cannot be added up from changes. They are as of the cut,
   and the mart says so beside them. Called-off orders do not count. */
MODEL (
  name rebuild.customers_daily,
  kind FULL,
  cron '@daily',
  start @log_eve(),
  owner 'customer-care',
  grain customer_id,
  depends_on (
    chain.orders
  ),
  audits (
    UNIQUE_VALUES(columns := (
      customer_id
    )),
    NOT_NULL(
      columns := (customer_id, lifetime_orders, lifetime_spend_cents, favourite_category)
    )
  )
);

WITH orders AS (
  SELECT
    orders.customer_id,
    orders.ordered_at,
    orders.revenue_cents,
    COALESCE(products.category, 'unknown') AS category
  FROM rebuild.latest_orders AS orders
  LEFT JOIN dims.products AS products
    ON products.product_id = orders.product_id
    AND products.valid_from_at <= orders.ordered_hour
    AND orders.ordered_hour < products.valid_to_at
  WHERE
    NOT @is_called_off(orders.status)
), categories AS (
  SELECT
    customer_id,
    category,
    ROW_NUMBER() OVER (PARTITION BY customer_id ORDER BY COUNT(*) DESC, category) AS place
  FROM orders
  GROUP BY
    customer_id,
    category
), customers AS (
  SELECT
    customer_id,
    COUNT(*) AS lifetime_orders,
    SUM(revenue_cents) AS lifetime_spend_cents,
    MIN(ordered_at) AS first_ordered_at
  FROM orders
  GROUP BY
    customer_id
)
SELECT
  customers.customer_id::BIGINT AS customer_id, /* Customer */
  customers.lifetime_orders::BIGINT AS lifetime_orders, /* Orders that were not called off */
  customers.lifetime_spend_cents::DECIMAL(38, 0) AS lifetime_spend_cents, /* Amount of these orders */
  categories.category::TEXT AS favourite_category, /* Category with the most of these orders; of equals the first by name */
  RANK() OVER (ORDER BY customers.lifetime_spend_cents DESC)::BIGINT AS spend_rank, /* Rank by that amount; equal amounts share one */
  FLOOR(
    (
      EPOCH(@cut_of('customer_activity')) - EPOCH(customers.first_ordered_at)
    ) / 86400
  )::BIGINT AS days_since_first_order /* Whole days from the first of these orders to the cut */
FROM customers
JOIN categories
  ON categories.customer_id = customers.customer_id AND categories.place = 1
