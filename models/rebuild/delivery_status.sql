/* The authority: shipments at the cut, aggregated from the latest image of every key. */
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
  window_hour::TIMESTAMP AS window_hour, /* Hour in which the promised window begins */
  region::TEXT AS region, /* Delivery region */
  status::TEXT AS status, /* created, out_for_delivery, delivered, failed or returned */
  exception_code::TEXT AS exception_code, /* What went wrong; none if nothing did */
  COUNT(*)::BIGINT AS shipments, /* Shipments */
  SUM(delivered)::BIGINT AS delivered, /* Shipments that have been delivered */
  SUM(late)::BIGINT AS late, /* Shipments delivered after their window */
  SUM(minutes_late)::BIGINT AS minutes_late /* Whole minutes past the window, over the late shipments */
FROM rebuild.latest_delivery_status
GROUP BY
  1,
  2,
  3,
  4
