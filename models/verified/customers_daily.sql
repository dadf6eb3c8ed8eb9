/* The batch measures of customers, of the rebuilds whose receipt passed. */
MODEL (
  name verified.customers_daily,
  kind CUSTOM (
    materialization 'atomic_by_value',
    materialization_properties (key_column = cut, keep = 7, code = @materializations())
  ),
  cron '@daily',
  start @log_eve(),
  owner 'customer-care',
  grain (cut, customer_id)
);

SELECT
  rebuild_cut.cut::TIMESTAMP AS cut, /* Cut of this generation */
  daily.customer_id::BIGINT AS customer_id, /* Customer */
  daily.lifetime_orders::BIGINT AS lifetime_orders, /* Orders that were not called off */
  daily.lifetime_spend_cents::DECIMAL(38, 0) AS lifetime_spend_cents, /* Amount of these orders */
  daily.favourite_category::TEXT AS favourite_category, /* Category with the most of these orders */
  daily.spend_rank::BIGINT AS spend_rank, /* Rank by that amount */
  daily.days_since_first_order::BIGINT AS days_since_first_order /* Whole days from the first of these orders to the cut */
FROM rebuild.customers_daily AS daily
CROSS JOIN rebuild.cut AS rebuild_cut
WHERE
  rebuild_cut.domain = 'customer_activity'
  AND (
    SELECT
      ARG_MAX(verdict, sequence)
    FROM reconcile.customer_activity_receipts AS receipts
    WHERE
      receipts.cut = rebuild_cut.cut
  ) = 'passed'
