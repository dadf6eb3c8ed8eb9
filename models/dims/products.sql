/* Versions of the products, from the same log, by the time at which the source changed them. A product's first known version
   holds for all time before it, so that an order placed before the log began finds its product. Facts join it as of event
   time, at the end: a version that arrives late changes no increment. */
MODEL (
  name dims.products,
  kind VIEW,
  owner 'commerce-analytics',
  grain (product_id, valid_from_at)
);

WITH images AS (
  SELECT
    STRUCT_EXTRACT(after, 'product_id') AS product_id,
    STRUCT_EXTRACT(after, 'name') AS name,
    STRUCT_EXTRACT(after, 'category') AS category,
    STRUCT_EXTRACT(after, 'price_cents') AS price_cents,
    STRUCT_EXTRACT(after, 'updated_at') AS updated_at,
    position
  FROM changes.products
  WHERE
    NOT after IS NULL
), last_of_each_moment AS (
  SELECT
    *,
    ROW_NUMBER() OVER (PARTITION BY product_id, updated_at ORDER BY position DESC) AS recency
  FROM images
)
SELECT
  @dimension_key('product', product_id)::TEXT AS product_key, /* Hash of the natural key: any fact can compute it */
  product_id::BIGINT AS product_id, /* Natural key */
  name::TEXT AS name, /* Name of the product */
  category::TEXT AS category, /* Category in this version */
  price_cents::BIGINT AS price_cents, /* Price in cents */
  CASE
    WHEN LAG(updated_at) OVER (PARTITION BY product_id ORDER BY updated_at) IS NULL
    THEN '0001-01-01'::TIMESTAMP
    ELSE updated_at
  END::TIMESTAMP AS valid_from_at, /* First instant of the version */
  COALESCE(
    LEAD(updated_at) OVER (PARTITION BY product_id ORDER BY updated_at),
    '9999-12-31'::TIMESTAMP
  )::TIMESTAMP AS valid_to_at /* First instant of the next one */
FROM last_of_each_moment
WHERE
  recency = 1
