/* Every shipment that lives at the cut, with the row-level rules applied. */
MODEL (
  name rebuild.latest_delivery_status,
  kind VIEW,
  owner 'fleet-operations',
  grain shipment_id
);

SELECT
  shipment_id::BIGINT AS shipment_id, /* Key of the shipment */
  DATE_TRUNC('HOUR', window_from_at)::TIMESTAMP AS window_hour, /* Hour in which the promised window begins */
  region::TEXT AS region, /* Delivery region */
  status::TEXT AS status, /* created, out_for_delivery, delivered, failed or returned */
  COALESCE(exception_code, 'none')::TEXT AS exception_code, /* What went wrong; none if nothing did */
  1::BIGINT AS shipments, /* The shipment itself */
  CASE WHEN NOT delivered_at IS NULL THEN 1 ELSE 0 END::BIGINT AS delivered, /* 1 if it has been delivered */
  CASE WHEN delivered_at > window_to_at THEN 1 ELSE 0 END::BIGINT AS late, /* 1 if that was after its window */
  CASE
    WHEN delivered_at > window_to_at
    THEN (
      EPOCH_US(delivered_at) - EPOCH_US(window_to_at)
    ) // 60000000
    ELSE 0
  END::BIGINT AS minutes_late /* Whole minutes past the window */
FROM source.shipments
