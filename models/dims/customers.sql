/* Versions of the customers, from the same log, by the time at which the source changed them, without personal data. A customer's first
   known version holds for all time before it. Facts join it as of event time, at the end. */
MODEL (
  name dims.customers,
  kind VIEW,
  owner 'customer-care',
  grain (customer_id, valid_from_at)
);

WITH images AS (
  SELECT
    STRUCT_EXTRACT(after, 'customer_id') AS customer_id,
    STRUCT_EXTRACT(after, 'region') AS region,
    STRUCT_EXTRACT(after, 'created_at') AS created_at,
    STRUCT_EXTRACT(after, 'updated_at') AS updated_at,
    position
  FROM changes.customers
  WHERE
    NOT after IS NULL
), last_of_each_moment AS (
  SELECT
    *,
    ROW_NUMBER() OVER (PARTITION BY customer_id, updated_at ORDER BY position DESC) AS recency
  FROM images
)
SELECT
  @dimension_key('customer', customer_id)::TEXT AS customer_key, /* Hash of the natural key: any fact can compute it */
  customer_id::BIGINT AS customer_id, /* Natural key */
  region::TEXT AS region, /* Region of the customer in this version */
  created_at::TIMESTAMP AS created_at, /* When the customer was made known */
  CASE
    WHEN LAG(updated_at) OVER (PARTITION BY customer_id ORDER BY updated_at) IS NULL
    THEN '0001-01-01'::TIMESTAMP
    ELSE updated_at
  END::TIMESTAMP AS valid_from_at, /* First instant of the version */
  COALESCE(
    LEAD(updated_at) OVER (PARTITION BY customer_id ORDER BY updated_at),
    '9999-12-31'::TIMESTAMP
  )::TIMESTAMP AS valid_to_at /* First instant of the next one */
FROM last_of_each_moment
WHERE
  recency = 1
