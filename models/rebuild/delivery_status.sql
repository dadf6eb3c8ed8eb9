/* Shipments at the cut, by the hour of the promised window. The increments and the live figures are derived from this query. */
MODEL (
  name rebuild.delivery_status,
  kind FULL,
  cron '@daily',
  start @log_eve(),
  owner 'fleet-operations',
  grain (window_hour, region, status, exception_code),
  depends_on (rebuild.cut, chain.shipments),
  audits (
    UNIQUE_COMBINATION_OF_COLUMNS(columns := (window_hour, region, status, exception_code)),
    NOT_NULL(columns := (window_hour, region, status, exception_code))
  )
);

SELECT
  DATE_TRUNC('HOUR', window_from_at)::TIMESTAMP AS window_hour, /* Hour in which the promised window begins */
  region::TEXT AS region, /* Delivery region */
  status::TEXT AS status, /* created, out_for_delivery, delivered, failed or returned */
  COALESCE(exception_code, 'none')::TEXT AS exception_code, /* What went wrong; none if nothing did */
  COUNT(*)::BIGINT AS shipments, /* Shipments */
  COUNT(delivered_at)::BIGINT AS delivered, /* Shipments that have been delivered */
  SUM(CASE WHEN delivered_at > window_to_at THEN 1 ELSE 0 END)::BIGINT AS late, /* Shipments delivered after their window */
  SUM(
    CASE
      WHEN delivered_at > window_to_at
      THEN (
        EPOCH_US(delivered_at) - EPOCH_US(window_to_at)
      ) // 60000000
      ELSE 0
    END
  )::DECIMAL(38, 0) AS minutes_late /* Whole minutes past the window, over the late shipments */
FROM source.shipments
GROUP BY
  1,
  2,
  3,
  4
