/* Delivery performance over the twelve months that end with each month. Daily by design: always from the last verified rebuild. */
MODEL (
  name mart.delivery_rolling_year,
  kind VIEW,
  owner 'fleet-operations',
  grain (window_month, region)
);

WITH serving AS (
  SELECT
    verified_cut
  FROM ops.serving
  WHERE
    domain = 'delivery_status'
), months AS (
  SELECT
    DATE_TRUNC('MONTH', cells.window_hour)::DATE AS window_month,
    cells.region,
    SUM(cells.shipments) AS shipments,
    SUM(cells.delivered) AS delivered,
    SUM(cells.late) AS late,
    serving.verified_cut
  FROM verified.delivery_status AS cells
  JOIN serving
    ON serving.verified_cut = cells.cut
  GROUP BY
    1,
    cells.region,
    serving.verified_cut
), rolled AS (
  SELECT
    window_month,
    region,
    SUM(shipments) OVER twelve_months AS shipments,
    SUM(delivered) OVER twelve_months AS delivered,
    SUM(late) OVER twelve_months AS late,
    COUNT(*) OVER twelve_months AS months,
    verified_cut
  FROM months
  WINDOW twelve_months AS (
    PARTITION BY region
    ORDER BY window_month
    RANGE BETWEEN INTERVAL '11' MONTH PRECEDING AND CURRENT ROW
  )
)
SELECT
  window_month::DATE AS window_month, /* Month in which the promised windows begin; the last of the twelve */
  region::TEXT AS region, /* Delivery region */
  months::BIGINT AS months, /* Months of the twelve that have shipments */
  shipments::BIGINT AS shipments, /* Shipments of the twelve months */
  delivered::BIGINT AS delivered, /* Delivered ones */
  late::BIGINT AS late, /* Delivered after their window */
  (
    (
      delivered - late
    ) / NULLIF(delivered, 0)
  )::DOUBLE AS on_time_rate, /* Share of the delivered that came in time */
  'rebuild'::TEXT AS served_from, /* Always the rebuild: this mart is daily */
  verified_cut::TIMESTAMP AS as_of /* Cut of that rebuild */
FROM rolled
