/* What the mart serves for each domain at this moment, and why. The contract's mode asks, the stored receipts decide: a
   domain in live mode is served live only while its last receipt passed and nothing has stopped a rebuild or an hour since; else
   it is served from its last verified rebuild. */
MODEL (
  name ops.serving,
  kind VIEW,
  grain domain
);

WITH evidence AS (
  SELECT
    receipts.domain,
    ARG_MAX(receipts.verdict, receipts.reconciled_at) AS last_verdict,
    MAX(receipts.reconciled_at) AS last_reconciled_at,
    MAX(
      CASE
        WHEN receipts.verdict = 'passed'
        AND (
          receipts.cells_compared = 0 OR NOT generations.cut IS NULL
        )
        THEN receipts.cut
      END
    ) AS verified_cut /* a run that died after the receipt has not stored its generation yet */
  FROM reconcile.receipts AS receipts
  LEFT JOIN (
    @verified_cuts()
  ) AS generations
    ON generations.domain = receipts.domain AND generations.cut = receipts.cut
  GROUP BY
    receipts.domain
), readable AS (
  SELECT
    contracts.domain,
    MIN(watermark.readable_until) AS readable_until
  FROM seeds.contracts AS contracts
  JOIN changes.watermark AS watermark
    ON watermark.source_table = contracts.source_table
    OR ARRAY_CONTAINS(STR_SPLIT(contracts.joined_tables, ' '), watermark.source_table)
  GROUP BY
    contracts.domain
), decided AS (
  SELECT
    contracts.domain,
    contracts.mode,
    evidence.last_verdict,
    evidence.last_reconciled_at,
    evidence.verified_cut,
    readable.readable_until,
    CASE
      WHEN contracts.mode <> 'live'
      THEN 'the contract''s mode is ' || contracts.mode
      WHEN evidence.last_verdict IS NULL
      THEN 'no receipt yet'
      WHEN evidence.last_verdict <> 'passed'
      THEN 'the receipt of ' || evidence.last_reconciled_at::TEXT || ' ' || evidence.last_verdict
      WHEN (
        SELECT
          MAX(rebuilt_at)
        FROM rebuild.cut
      ) > evidence.last_reconciled_at
      THEN 'an audit stopped the last rebuild before its receipt'
      WHEN (
        SELECT
          SUM(changes) <> MAX(last_position) - MIN(first_position) + 1
        FROM hourly.log
      )
      THEN 'the folded hours of the log have a gap'
    END AS objection
  FROM seeds.contracts AS contracts
  LEFT JOIN evidence
    ON evidence.domain = contracts.domain
  LEFT JOIN readable
    ON readable.domain = contracts.domain
)
SELECT
  domain::TEXT AS domain, /* Domain */
  mode::TEXT AS mode, /* Mode in the contract: batch, shadow or live */
  CASE WHEN objection IS NULL THEN 'live' ELSE 'rebuild' END::TEXT AS served_from, /* live or rebuild */
  CASE WHEN objection IS NULL THEN readable_until ELSE verified_cut END::TIMESTAMP AS as_of, /* Figures include all changes logged up to then */
  verified_cut::TIMESTAMP AS verified_cut, /* Cut of the last verified rebuild */
  COALESCE(objection, 'the receipt of ' || last_reconciled_at::TEXT || ' passed')::TEXT AS reason /* Why it is served from there */
FROM decided
