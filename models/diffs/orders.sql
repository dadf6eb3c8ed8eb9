/* Signed images of orders: each change is minus its before image, plus its after image. Both images pass through the same
   row-level rules, and a rule looks at nothing but the image itself, so that what an image once added is exactly what it
   later subtracts. The measures are already signed: whoever sums them needs to know nothing of updates or deletes.
   The log is read once, so that both images of a change come from the same moment. */
MODEL (
  name diffs.orders,
  kind VIEW,
  owner 'commerce-analytics',
  grain (position, diff)
);

WITH orders AS (
  SELECT
    position,
    logged_at,
    signs.diff,
    @image(order_id) AS order_id,
    @image(customer_id) AS customer_id,
    @image(product_id) AS product_id,
    @image(region) AS region,
    @image(quantity) AS quantity,
    @image(amount_cents) AS amount_cents,
    @image(status) AS spelling,
    @image(ordered_at) AS ordered_at
  FROM changes.orders
  CROSS JOIN (VALUES
    (-1),
    (1)) AS signs(diff)
  WHERE
    NOT @image(order_id) IS NULL
)
SELECT
  orders.position::BIGINT AS position, /* Position of the change in the log */
  orders.logged_at::TIMESTAMP AS logged_at, /* logged_at of the change */
  orders.diff::INT AS diff, /* -1 for the image before the change, +1 for the one after */
  orders.order_id::BIGINT AS order_id, /* Key of the order */
  orders.customer_id::BIGINT AS customer_id, /* Customer who ordered */
  orders.ordered_at::TIMESTAMP AS ordered_at, /* Event time */
  DATE_TRUNC('HOUR', orders.ordered_at)::TIMESTAMP AS ordered_hour, /* Hour of the event time */
  orders.product_id::BIGINT AS product_id, /* Product ordered */
  orders.region::TEXT AS region, /* Delivery region */
  COALESCE(rules.status, 'unknown')::TEXT AS status, /* Status by the rule of the order's time; unknown if no rule knows its spelling */
  orders.diff::BIGINT AS orders, /* Orders, signed */
  (
    orders.diff * orders.quantity
  )::BIGINT AS units, /* Units, signed */
  (
    orders.diff * orders.amount_cents
  )::BIGINT AS revenue_cents, /* Amount in cents, signed */
  CASE WHEN @is_high_value(orders.amount_cents) THEN orders.diff ELSE 0 END::BIGINT AS high_value_orders /* Orders of high value, signed */
FROM orders
LEFT JOIN dims.order_status_rules AS rules
  ON rules.spelling = LOWER(TRIM(orders.spelling))
  AND rules.valid_from_at <= orders.ordered_at
  AND orders.ordered_at < rules.valid_to_at
