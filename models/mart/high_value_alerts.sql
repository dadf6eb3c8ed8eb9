/* Orders that went over 10 000.00, one row per change that took an order there, as soon as it lands, whatever serves the figures: an
   alert is an event and no figure. From the beginning of the day before the log's clock on. */
MODEL (
  name mart.high_value_alerts,
  kind VIEW,
  owner 'customer-care',
  grain position
);

WITH readable AS (
  SELECT
    readable_until,
    readable_position
  FROM changes.watermark
  WHERE
    source_table = 'orders'
)
SELECT
  position::BIGINT AS position, /* Position of the change in the log */
  logged_at::TIMESTAMP AS logged_at, /* When it was logged */
  STRUCT_EXTRACT(after, 'order_id')::BIGINT AS order_id, /* Order */
  STRUCT_EXTRACT(after, 'customer_id')::BIGINT AS customer_id, /* Customer who ordered */
  STRUCT_EXTRACT(after, 'region')::TEXT AS region, /* Delivery region */
  STRUCT_EXTRACT(after, 'amount_cents')::BIGINT AS amount_cents, /* Amount in cents after the change */
  STRUCT_EXTRACT(before, 'amount_cents')::BIGINT AS previous_amount_cents, /* Amount before it; NULL for a new order */
  'live'::TEXT AS served_from, /* Always live */
  (
    SELECT
      readable_until
    FROM readable
  )::TIMESTAMP AS as_of /* All alerts logged up to then are here */
FROM changes.orders
WHERE
  op IN ('c', 'u')
  AND @is_alert_value(STRUCT_EXTRACT(after, 'amount_cents'))
  AND NOT COALESCE(@is_alert_value(STRUCT_EXTRACT(before, 'amount_cents')), FALSE)
  AND position <= (
    SELECT
      readable_position
    FROM readable
  )
  AND logged_at >= (
    SELECT
      DATE_TRUNC('DAY', readable_until) - INTERVAL '1' DAY
    FROM readable
  )
