/* Signed images of shipments: each change is minus its before image, plus its after image, both through the same rules. */
MODEL (
  name diffs.delivery_status,
  kind VIEW,
  owner 'fleet-operations',
  grain (position, diff)
);

SELECT
  __position::BIGINT AS position, /* Position of the change in the log */
  __logged_at::TIMESTAMP AS logged_at, /* logged_at of the change */
  __weight::INT AS diff, /* -1 for the image before the change, +1 for the one after */
  shipment_id::BIGINT AS shipment_id, /* Key of the shipment */
  DATE_TRUNC('HOUR', window_from_at)::TIMESTAMP AS window_hour, /* Hour in which the promised window begins */
  region::TEXT AS region, /* Delivery region */
  status::TEXT AS status, /* created, out_for_delivery, delivered, failed or returned */
  COALESCE(exception_code, 'none')::TEXT AS exception_code, /* What went wrong; none if nothing did */
  __weight::BIGINT AS shipments, /* Shipments, signed */
  CASE WHEN NOT delivered_at IS NULL THEN __weight ELSE 0 END::BIGINT AS delivered, /* Delivered shipments, signed */
  CASE WHEN delivered_at > window_to_at THEN __weight ELSE 0 END::BIGINT AS late, /* Late ones of them, signed */
  CASE
    WHEN delivered_at > window_to_at
    THEN __weight * (
      (
        EPOCH_US(delivered_at) - EPOCH_US(window_to_at)
      ) // 60000000
    )
    ELSE 0
  END::BIGINT AS minutes_late /* Whole minutes past the window, signed */
FROM signed.shipments
