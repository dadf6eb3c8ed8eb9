/* What each spelling of a status means, and when. A spelling's rule holds for orders placed from `valid_from_at` until
   its next rule, so that old orders keep the meaning of their time and no moment ever has two rules. */
MODEL (
  name dims.order_status_rules,
  kind VIEW,
  cron '@daily',
  owner 'commerce-analytics',
  grain (spelling, valid_from_at),
  audits (
    UNIQUE_COMBINATION_OF_COLUMNS(columns := (spelling, valid_from_at)),
    NOT_NULL(columns := (spelling, status))
  )
);

SELECT
  LOWER(TRIM(spelling))::TEXT AS spelling, /* Spelling in the source, without case and outer spaces */
  status::TEXT AS status, /* Status it means */
  COALESCE(valid_from, '0001-01-01')::TIMESTAMP AS valid_from_at, /* First order time the rule holds for */
  COALESCE(
    LEAD(valid_from) OVER (PARTITION BY LOWER(TRIM(spelling)) ORDER BY COALESCE(valid_from, '')),
    '9999-12-31'
  )::TIMESTAMP AS valid_to_at /* First order time it no longer holds for */
FROM seeds.order_status_rules
