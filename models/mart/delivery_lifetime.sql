/* Shipments ever, by region and status. Daily by design: nobody acts on a lifetime within hours, so it is always served from the last
   verified rebuild, whatever mode the domain is in. */
MODEL (
  name mart.delivery_lifetime,
  kind VIEW,
  owner 'fleet-operations',
  grain (region, status)
);

WITH serving AS (
  SELECT
    verified_cut
  FROM ops.serving
  WHERE
    domain = 'delivery_status'
)
SELECT
  cells.region::TEXT AS region, /* Delivery region */
  cells.status::TEXT AS status, /* created, out_for_delivery, delivered, failed or returned */
  SUM(cells.shipments)::BIGINT AS shipments, /* Shipments ever */
  SUM(cells.late)::BIGINT AS late, /* Delivered after their window */
  'rebuild'::TEXT AS served_from, /* Always the rebuild: this mart is daily */
  serving.verified_cut::TIMESTAMP AS as_of /* Cut of that rebuild */
FROM verified.delivery_status AS cells
JOIN serving
  ON serving.verified_cut = cells.cut
GROUP BY
  cells.region,
  cells.status,
  serving.verified_cut
