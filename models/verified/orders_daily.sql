/* The batch measures of orders, of the rebuilds whose receipt passed. */
MODEL (
  name verified.orders_daily,
  kind CUSTOM (
    materialization 'atomic_by_value',
    materialization_properties (key_column = cut, keep = 7, code = @materializations())
  ),
  cron '@daily',
  start @log_eve(),
  owner 'commerce-analytics',
  grain (cut, ordered_date, category, region, status)
);

SELECT
  rebuild_cut.cut::TIMESTAMP AS cut, /* Cut of this generation */
  daily.ordered_date::DATE AS ordered_date, /* Day of the event time */
  daily.category::TEXT AS category, /* Category as of the hour of the order */
  daily.region::TEXT AS region, /* Delivery region */
  daily.status::TEXT AS status, /* Status by the rule of the order's time */
  daily.distinct_customers::BIGINT AS distinct_customers, /* Customers with at least one order */
  daily.median_amount_cents::BIGINT AS median_amount_cents, /* Median amount */
  daily.p95_amount_cents::BIGINT AS p95_amount_cents /* 95th percentile of the amounts */
FROM rebuild.orders_daily AS daily
CROSS JOIN rebuild.cut AS rebuild_cut
WHERE
  rebuild_cut.domain = 'orders'
  AND (
    SELECT
      ARG_MAX(verdict, sequence)
    FROM reconcile.orders_receipts AS receipts
    WHERE
      receipts.cut = rebuild_cut.cut
  ) = 'passed'
