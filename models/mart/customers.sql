/* Each customer with a running total and what is open, as fresh as `as_of`, beside the figures of the daily batch, which are as
   of `batch_as_of`. A customer who is not known by name yet is here as soon as an order is. */
MODEL (
  name mart.customers,
  kind VIEW,
  owner 'customer-care',
  grain customer_id
);

WITH totals AS (
  SELECT
    customer_id,
    SUM(orders) AS orders,
    SUM(open_orders) AS open_orders,
    SUM(revenue_cents) AS revenue_cents,
    SUM(alert_orders) AS alert_orders,
    SUM(
      CASE
        WHEN ordered_bucket > as_of - INTERVAL '1' HOUR AND ordered_bucket <= as_of
        THEN orders
        ELSE 0
      END
    ) AS orders_last_hour,
    SUM(
      CASE
        WHEN ordered_bucket > as_of - INTERVAL '1' HOUR AND ordered_bucket <= as_of
        THEN revenue_cents
        ELSE 0
      END
    ) AS revenue_last_hour_cents,
    served_from,
    as_of
  FROM mart.customer_activity
  GROUP BY
    customer_id,
    served_from,
    as_of
), serving AS (
  SELECT
    verified_cut
  FROM ops.serving
  WHERE
    domain = 'customer_activity'
), batch AS (
  SELECT
    *
  FROM verified.customers_daily
  WHERE
    cut = (
      SELECT
        verified_cut
      FROM serving
    )
)
SELECT
  @dimension_key('customer', totals.customer_id)::TEXT AS customer_key, /* Hash of the natural key, as in dims.customers */
  totals.customer_id::BIGINT AS customer_id, /* Customer */
  COALESCE(customers.region, 'unknown')::TEXT AS region, /* Region as of as_of; unknown if the customer is */
  totals.orders::BIGINT AS orders, /* Orders */
  totals.open_orders::BIGINT AS open_orders, /* Orders that are neither completed nor called off */
  totals.revenue_cents::DECIMAL(38, 0) AS revenue_cents, /* Amount of the orders that were not called off */
  totals.alert_orders::BIGINT AS alert_orders, /* Orders over 10 000.00 */
  totals.orders_last_hour::BIGINT AS orders_last_hour, /* Orders in the five-minute buckets of the hour before as_of */
  totals.revenue_last_hour_cents::DECIMAL(38, 0) AS revenue_last_hour_cents, /* Their amount, without those called off */
  batch.lifetime_orders::BIGINT AS lifetime_orders, /* Orders that were not called off, as of batch_as_of */
  batch.lifetime_spend_cents::DECIMAL(38, 0) AS lifetime_spend_cents, /* Their amount, as of batch_as_of */
  batch.favourite_category::TEXT AS favourite_category, /* Category with the most of them, as of batch_as_of */
  batch.spend_rank::BIGINT AS spend_rank, /* Rank by their amount, as of batch_as_of */
  batch.days_since_first_order::BIGINT AS days_since_first_order, /* Whole days from the first of them to batch_as_of */
  (
    SELECT
      verified_cut
    FROM serving
  )::TIMESTAMP AS batch_as_of, /* Cut of the rebuild behind the batch measures */
  totals.served_from::TEXT AS served_from, /* live or rebuild: where the sums come from */
  totals.as_of::TIMESTAMP AS as_of /* The sums include all changes logged up to then */
FROM totals
LEFT JOIN batch
  ON batch.customer_id = totals.customer_id
LEFT JOIN dims.customers AS customers
  ON customers.customer_id = totals.customer_id
  AND customers.valid_from_at <= totals.as_of
  AND totals.as_of < customers.valid_to_at
