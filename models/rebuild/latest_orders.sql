/* The latest image of every order that lives at the cut, with the row-level rules applied: what each order
   contributes to its cell. No arithmetic over changes: a row is here as the source last had it. */
MODEL (
  name rebuild.latest_orders,
  kind VIEW,
  owner 'commerce-analytics',
  grain order_id
);

WITH changes AS (
  SELECT
    after,
    ROW_NUMBER() OVER (
      PARTITION BY COALESCE(STRUCT_EXTRACT(after, 'order_id'), STRUCT_EXTRACT(before, 'order_id'))
      ORDER BY position DESC
    ) AS recency
  FROM changes.orders
  WHERE
    logged_at < @cut_of('orders')
), orders AS (
  SELECT
    STRUCT_EXTRACT(after, 'order_id') AS order_id,
    STRUCT_EXTRACT(after, 'customer_id') AS customer_id,
    STRUCT_EXTRACT(after, 'product_id') AS product_id,
    STRUCT_EXTRACT(after, 'region') AS region,
    STRUCT_EXTRACT(after, 'quantity') AS quantity,
    STRUCT_EXTRACT(after, 'amount_cents') AS amount_cents,
    STRUCT_EXTRACT(after, 'status') AS spelling,
    STRUCT_EXTRACT(after, 'ordered_at') AS ordered_at
  FROM changes
  WHERE
    recency = 1 AND NOT after IS NULL
)
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
FROM orders
LEFT JOIN dims.order_status_rules AS rules
  ON rules.spelling = LOWER(TRIM(orders.spelling))
  AND rules.valid_from_at <= orders.ordered_at
  AND orders.ordered_at < rules.valid_to_at
