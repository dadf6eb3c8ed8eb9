/* How deliveries go by the hour in which their promised window begins. Rates are derived here from sums, never summed themselves. */
MODEL (
  name mart.delivery_hourly,
  kind VIEW,
  owner 'fleet-operations',
  grain (window_hour, region)
);

SELECT
  window_hour::TIMESTAMP AS window_hour, /* Hour in which the promised window begins, UTC */
  region::TEXT AS region, /* Delivery region */
  SUM(shipments)::BIGINT AS shipments, /* Shipments */
  SUM(CASE WHEN status = 'out_for_delivery' THEN shipments ELSE 0 END)::BIGINT AS out_for_delivery, /* Shipments on their way */
  SUM(CASE WHEN exception_code <> 'none' THEN shipments ELSE 0 END)::BIGINT AS exceptions, /* Shipments with which something went wrong */
  SUM(delivered)::BIGINT AS delivered, /* Delivered shipments */
  SUM(late)::BIGINT AS late, /* Delivered after their window */
  SUM(minutes_late)::DECIMAL(38, 0) AS minutes_late, /* Whole minutes past the window, over the late ones */
  (
    (
      SUM(delivered) - SUM(late)
    ) / NULLIF(SUM(delivered), 0)
  )::DOUBLE AS on_time_rate, /* Share of the delivered that came in time; NULL before the first */
  served_from::TEXT AS served_from, /* live or rebuild */
  as_of::TIMESTAMP AS as_of /* The figures include all changes logged up to then */
FROM mart.delivery_status
GROUP BY
  window_hour,
  region,
  served_from,
  as_of
