/* The contract of each domain, as the project's files and its query have it: who owns it, how soon somebody acts on it, how fresh it must be, and
   what has to hold before and while it is served live. */
MODEL (
  name ops.contracts,
  kind VIEW,
  grain domain,
  blueprints @contract_rows()
);

SELECT
  domain::TEXT AS domain, /* Domain */
  owner::TEXT AS owner, /* Who answers for it */
  mode::TEXT AS mode, /* batch, shadow or live */
  horizon_minutes::BIGINT AS horizon_minutes, /* How soon somebody acts on the figures */
  freshness_seconds::BIGINT AS freshness_seconds, /* How old live figures may be */
  shadow_days::BIGINT AS shadow_days, /* Daily receipts that must pass in shadow before it may be live */
  passes_to_return::BIGINT AS passes_to_return, /* Cuts that must pass after a failed receipt until live is served again */
  receipt_hours::BIGINT AS receipt_hours, /* How far the log may be ahead of the last receipt's cut while live is served */
  on_bad_event::TEXT AS on_bad_event, /* hold: an event in quarantine keeps hours from sealing; skip: it is passed over */
  source_table::TEXT AS source_table, /* Table whose changes explain a divergence */
  source_key::TEXT AS source_key, /* Its key */
  joined_tables::TEXT AS joined_tables, /* Other tables that the numbers need */
  reads_domains::TEXT AS reads_domains, /* Domains whose figures its mart joins */
  grain::TEXT AS grain, /* Columns of a cell */
  live_where::TEXT AS live_where /* Condition on the rows that the live path takes; the rebuild takes all */
FROM (
  @as_query(@rows)
) AS contracts
