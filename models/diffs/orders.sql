/* Signed images of orders: each change is minus its before image, plus its after image. Both images pass through the same
   row-level rules, and a rule looks at nothing but the image itself, so that what an image once added is exactly what it
   later subtracts. The measures are already signed: summing them takes no knowledge of updates or deletes. */
MODEL (
  name diffs.orders,
  kind VIEW,
  owner 'commerce-analytics',
  grain (position, diff)
);

SELECT
  orders.__position::BIGINT AS position, /* Position of the change in the log */
  orders.__logged_at::TIMESTAMP AS logged_at, /* logged_at of the change */
  orders.__weight::INT AS diff, /* -1 for the image before the change, +1 for the one after */
  orders.order_id::BIGINT AS order_id, /* Key of the order */
  orders.customer_id::BIGINT AS customer_id, /* Customer who ordered */
  orders.ordered_at::TIMESTAMP AS ordered_at, /* Event time */
  DATE_TRUNC('HOUR', orders.ordered_at)::TIMESTAMP AS ordered_hour, /* Hour of the event time */
  orders.product_id::BIGINT AS product_id, /* Product ordered */
  orders.region::TEXT AS region, /* Delivery region */
  COALESCE(rules.status, 'unknown')::TEXT AS status, /* Status by the rule of the order's time; unknown if no rule knows its spelling */
  orders.__weight::BIGINT AS orders, /* Orders, signed */
  (
    orders.__weight * orders.quantity
  )::BIGINT AS units, /* Units, signed */
  (
    orders.__weight * orders.amount_cents
  )::BIGINT AS revenue_cents, /* Amount in cents, signed */
  CASE WHEN @is_high_value(orders.amount_cents) THEN orders.__weight ELSE 0 END::BIGINT AS high_value_orders /* Orders of high value, signed */
FROM signed.orders AS orders
LEFT JOIN dims.order_status_rules AS rules
  ON rules.spelling = LOWER(TRIM(orders.status))
  AND rules.valid_from_at <= orders.ordered_at
  AND orders.ordered_at < rules.valid_to_at
