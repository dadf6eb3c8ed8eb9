/* Orders by the day on which they were placed. Sums are as fresh as `as_of`; the batch measures need every order of the day
   at once, come from the last verified rebuild and are as of `batch_as_of`. A cell that did not exist then has none yet. */
MODEL (
  name mart.orders_daily,
  kind VIEW,
  owner 'commerce-analytics',
  grain (ordered_date, category, region, status)
);

WITH days AS (
  SELECT
    ordered_hour::DATE AS ordered_date,
    category,
    region,
    status,
    SUM(orders) AS orders,
    SUM(units) AS units,
    SUM(revenue_cents) AS revenue_cents,
    SUM(high_value_orders) AS high_value_orders,
    served_from,
    as_of
  FROM mart.orders_hourly
  GROUP BY
    1,
    2,
    3,
    4,
    served_from,
    as_of
), batch AS (
  SELECT
    *
  FROM verified.orders_daily
  WHERE
    cut = (
      SELECT
        verified_cut
      FROM ops.serving
      WHERE
        domain = 'orders'
    )
)
SELECT
  days.ordered_date::DATE AS ordered_date, /* Day of the event time, UTC */
  days.category::TEXT AS category, /* Category as of the hour of the order; unknown if the product is */
  days.region::TEXT AS region, /* Delivery region */
  days.status::TEXT AS status, /* created, paid, shipped, completed, cancelled, failed, returned or unknown */
  days.orders::BIGINT AS orders, /* Orders */
  days.units::BIGINT AS units, /* Units ordered */
  days.revenue_cents::DECIMAL(38, 0) AS revenue_cents, /* Amount in cents, whatever the status */
  days.high_value_orders::BIGINT AS high_value_orders, /* Orders over 1 000.00 */
  batch.distinct_customers::BIGINT AS distinct_customers, /* Customers with at least one order, as of batch_as_of */
  batch.median_amount_cents::BIGINT AS median_amount_cents, /* Median amount of an order, as of batch_as_of */
  batch.p95_amount_cents::BIGINT AS p95_amount_cents, /* 95th percentile of the amounts, as of batch_as_of */
  (
    SELECT
      verified_cut
    FROM ops.serving
    WHERE
      domain = 'orders'
  )::TIMESTAMP AS batch_as_of, /* Cut of the rebuild behind the batch measures */
  days.served_from::TEXT AS served_from, /* live or rebuild: where the sums come from */
  days.as_of::TIMESTAMP AS as_of /* The sums include all changes logged up to then */
FROM days
LEFT JOIN batch
  ON batch.ordered_date = days.ordered_date
  AND batch.category = days.category
  AND batch.region = days.region
  AND batch.status = days.status
