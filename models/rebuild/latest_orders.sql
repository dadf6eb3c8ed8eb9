/* Every order that lives at the cut, with the rules of a row, which several facts share. A rule looks at nothing but the row itself, so
   that the increments of those facts subtract later exactly what they once added. */
MODEL (
  name rebuild.latest_orders,
  kind VIEW,
  owner 'commerce-analytics',
  grain order_id
);

SELECT
  orders.order_id::BIGINT AS order_id, /* Key of the order */
  orders.customer_id::BIGINT AS customer_id, /* Customer who ordered */
  orders.ordered_at::TIMESTAMP AS ordered_at, /* Event time */
  DATE_TRUNC('HOUR', orders.ordered_at)::TIMESTAMP AS ordered_hour, /* Hour of the event time */
  orders.product_id::BIGINT AS product_id, /* Product ordered */
  orders.region::TEXT AS region, /* Delivery region */
  COALESCE(rules.status, 'unknown')::TEXT AS status, /* Status by the rule of the order's time; unknown if no rule knows its spelling */
  1::BIGINT AS orders, /* The order itself */
  orders.quantity::BIGINT AS units, /* Units ordered */
  orders.amount_cents::BIGINT AS revenue_cents, /* Amount in cents */
  CASE WHEN @is_high_value(orders.amount_cents) THEN 1 ELSE 0 END::BIGINT AS high_value_orders /* 1 if over 1 000.00 */
FROM source.orders AS orders
LEFT JOIN dims.order_status_rules AS rules
  ON rules.spelling = LOWER(TRIM(orders.status))
  AND rules.valid_from_at <= orders.ordered_at
  AND orders.ordered_at < rules.valid_to_at
