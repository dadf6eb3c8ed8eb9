/* Each month's deliveries beside the same month of the year before. Daily by design: always from the last verified rebuild. */
MODEL (
  name mart.delivery_year_over_year,
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
)
SELECT
  months.window_month::DATE AS window_month, /* Month in which the promised windows begin */
  months.region::TEXT AS region, /* Delivery region */
  months.shipments::BIGINT AS shipments, /* Shipments */
  before.shipments::BIGINT AS shipments_year_before, /* Shipments of the same month a year before; NULL if the log has none */
  (
    months.shipments / NULLIF(before.shipments, 0) - 1
  )::DOUBLE AS growth, /* Change against that month, as a share of it */
  (
    (
      months.delivered - months.late
    ) / NULLIF(months.delivered, 0)
  )::DOUBLE AS on_time_rate, /* Share of the delivered that came in time */
  (
    (
      before.delivered - before.late
    ) / NULLIF(before.delivered, 0)
  )::DOUBLE AS on_time_rate_year_before, /* The same, a year before */
  'rebuild'::TEXT AS served_from, /* Always the rebuild: this mart is daily */
  months.verified_cut::TIMESTAMP AS as_of /* Cut of that rebuild */
FROM months
LEFT JOIN months AS before
  ON before.region = months.region
  AND before.window_month = months.window_month - INTERVAL '1' YEAR
