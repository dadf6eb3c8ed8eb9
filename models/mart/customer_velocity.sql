/* How fast each customer orders: in every five minutes with an order, what the customer ordered in the hour that ends with them. */
MODEL (
  name mart.customer_velocity,
  kind VIEW,
  owner 'customer-care',
  grain (customer_id, ordered_bucket)
);

SELECT
  customer_id::BIGINT AS customer_id, /* Customer */
  ordered_bucket::TIMESTAMP AS ordered_bucket, /* Beginning of the five minutes, event time, UTC */
  orders::BIGINT AS orders, /* Orders in these five minutes */
  revenue_cents::DECIMAL(38, 0) AS revenue_cents, /* Their amount, without those called off */
  SUM(orders) OVER last_hour::BIGINT AS orders_in_hour, /* Orders in the hour that ends with these five minutes */
  SUM(revenue_cents) OVER last_hour::DECIMAL(38, 0) AS revenue_in_hour_cents, /* Their amount, without those called off */
  served_from::TEXT AS served_from, /* live or rebuild */
  as_of::TIMESTAMP AS as_of /* The figures include all changes logged up to then */
FROM mart.customer_activity
WINDOW last_hour AS (
  PARTITION BY customer_id
  ORDER BY ordered_bucket
  RANGE BETWEEN INTERVAL '55' MINUTE PRECEDING AND CURRENT ROW
)
