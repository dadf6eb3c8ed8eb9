/* What the mart serves for each domain at this moment, and why. The contract's mode asks, the stored receipts decide: a domain in
   live mode is served live only while its last receipt passed, is recent and compared what is in use, nothing has stopped a
   rebuild or an hour since, and every domain it reads is served live as well; after a failed receipt it returns by itself once
   enough cuts have passed. A live receipt stands in for a receipt that had nothing to compare yet, and stops what it has found
   wrong. So does a sum that is too large to be a figure. Else a domain is served from its last verified rebuild. */
MODEL (
  name ops.serving,
  kind VIEW,
  grain domain
);

WITH generations AS (
  @verified_cuts()
), receipts AS (
  SELECT
    receipts.domain,
    receipts.sequence,
    receipts.cut,
    receipts.reconciled_at,
    receipts.verdict,
    receipts.mode,
    receipts.position,
    COALESCE(receipts.evidence_digest, '') = COALESCE(in_use.evidence_digest, '') AS is_of_what_is_in_use,
    receipts.verdict <> 'failed'
    AND (
      receipts.cells_compared = 0 OR NOT generations.cut IS NULL
    ) AS is_stored, /* a run that died after the receipt has not stored its generation yet; nothing is all there is to store of nothing */
    MAX(CASE WHEN receipts.verdict = 'failed' THEN receipts.sequence END) OVER (PARTITION BY receipts.domain) AS last_failed,
    MAX(CASE WHEN receipts.verdict = 'failed' THEN receipts.cut END) OVER (PARTITION BY receipts.domain) AS last_failed_cut
  FROM reconcile.receipts AS receipts
  LEFT JOIN reconcile.in_use AS in_use
    ON in_use.domain = receipts.domain
  LEFT JOIN generations
    ON generations.domain = receipts.domain AND generations.cut = receipts.cut
), promotions AS (
  SELECT
    domain,
    ARG_MAX(mode, changed_at) AS mode,
    MAX(position) AS position
  FROM seeds.promotions
  GROUP BY
    domain
), evidence AS (
  SELECT
    receipts.domain,
    ARG_MAX(receipts.verdict, receipts.sequence) AS last_verdict,
    ARG_MAX(receipts.reconciled_at, receipts.sequence) AS last_reconciled_at,
    ARG_MAX(receipts.is_of_what_is_in_use, receipts.sequence) AS is_of_what_is_in_use,
    ARG_MAX(receipts.reconciled_at, receipts.sequence) FILTER(WHERE
      receipts.cut = rebuild_cut.cut) AS cut_reconciled_at,
    MAX(
      CASE
        WHEN receipts.verdict = 'passed' AND receipts.is_of_what_is_in_use
        THEN receipts.cut
      END
    ) AS last_passed_cut,
    MAX(
      CASE WHEN receipts.sequence = receipts.last_failed THEN receipts.reconciled_at END
    ) AS last_failed_at,
    COUNT(
      DISTINCT CASE
        WHEN receipts.verdict = 'passed'
        AND receipts.mode <> 'batch'
        AND receipts.cut = DATE_TRUNC('DAY', receipts.cut)
        AND receipts.sequence > COALESCE(receipts.last_failed, -1)
        AND receipts.position > COALESCE(promotions.position, -1)
        THEN receipts.cut
      END
    ) AS days_passed, /* daily cuts in shadow or live mode, since the last failure and the last demotion */
    COUNT(
      DISTINCT CASE
        WHEN receipts.verdict = 'passed'
        AND receipts.sequence > COALESCE(receipts.last_failed, -1)
        AND receipts.cut >= COALESCE(receipts.last_failed_cut, '0001-01-01'::TIMESTAMP) /* an earlier hour proves nothing about it */
        THEN receipts.cut
      END
    ) AS cuts_passed
  FROM receipts
  LEFT JOIN rebuild.cut AS rebuild_cut
    ON rebuild_cut.domain = receipts.domain
  LEFT JOIN promotions
    ON promotions.domain = receipts.domain
  GROUP BY
    receipts.domain
), live_evidence AS (
  SELECT
    live_receipts.domain,
    ARG_MAX(live_receipts.verdict, live_receipts.sequence) AS verdict,
    ARG_MAX(live_receipts.reconciled_at, live_receipts.sequence) AS reconciled_at
  FROM reconcile.live_receipts AS live_receipts
  JOIN reconcile.in_use AS in_use
    ON in_use.domain = live_receipts.domain
    AND COALESCE(in_use.evidence_digest, '') = COALESCE(live_receipts.evidence_digest, '')
  GROUP BY
    live_receipts.domain
), too_large AS (
  SELECT
    domain,
    MIN(figure) AS figure
  FROM ops.too_large
  GROUP BY
    domain
), bases AS (
  SELECT
    generations.domain,
    ARG_MAX(
      COALESCE(generations.evidence_digest, '') = COALESCE(in_use.evidence_digest, ''),
      generations.cut
    ) AS is_of_what_is_in_use /* the generation that live figures stand on */
  FROM generations
  LEFT JOIN reconcile.in_use AS in_use
    ON in_use.domain = generations.domain
  GROUP BY
    generations.domain
), needs AS (
  SELECT
    domain,
    domain AS needed
  FROM ops.contracts
  UNION
  SELECT
    domain,
    UNNEST(STR_SPLIT(reads_domains, ' ')) AS needed
  FROM ops.contracts
  WHERE
    reads_domains <> ''
), shared_cuts AS (
  SELECT
    needs.domain,
    receipts.cut
  FROM needs
  JOIN receipts
    ON receipts.domain = needs.needed AND receipts.is_stored
  GROUP BY
    needs.domain,
    receipts.cut
  HAVING
    COUNT(DISTINCT needs.needed) = (
      SELECT
        COUNT(*)
      FROM needs AS all_needs
      WHERE
        all_needs.domain = needs.domain
    )
), verified_cuts AS (
  SELECT
    domain,
    MAX(cut) AS verified_cut
  FROM shared_cuts
  GROUP BY
    domain
), readable AS (
  SELECT
    needs.domain,
    MIN(watermark.readable_until) AS readable_until,
    'held since ' || MIN(watermark.held_since)::TEXT || ' by ' || ARG_MIN(watermark.held_by, watermark.readable_position) AS held
  FROM needs
  JOIN ops.contracts AS contracts
    ON contracts.domain = needs.needed
  JOIN changes.watermark AS watermark
    ON watermark.source_table = contracts.source_table
    OR ARRAY_CONTAINS(STR_SPLIT(contracts.joined_tables, ' '), watermark.source_table)
  GROUP BY
    needs.domain
), decided AS (
  SELECT
    contracts.domain,
    contracts.mode,
    CASE
      WHEN evidence.last_verdict = 'passed'
      THEN 'the receipt of ' || evidence.last_reconciled_at::TEXT
      ELSE 'the live receipt of ' || live_evidence.reconciled_at::TEXT
    END AS proof,
    verified_cuts.verified_cut,
    readable.readable_until,
    readable.held,
    CASE
      WHEN contracts.mode <> 'live'
      THEN 'the contract''s mode is ' || contracts.mode
      WHEN COALESCE(promotions.mode, '') <> 'live'
      AND COALESCE(evidence.days_passed, 0) < contracts.shadow_days
      THEN 'served as shadow: its mode was set to live without `lockstep promote`, and ' || COALESCE(evidence.days_passed, 0)::TEXT || ' of ' || contracts.shadow_days::TEXT || ' daily cuts have passed'
      WHEN NOT too_large.figure IS NULL
      THEN too_large.figure
      WHEN live_evidence.verdict = 'failed'
      THEN 'the live receipt of ' || live_evidence.reconciled_at::TEXT || ' failed'
      WHEN evidence.last_verdict IS NULL
      THEN 'not yet proven: there is no receipt'
      WHEN evidence.last_verdict = 'failed'
      THEN 'the receipt of ' || evidence.last_reconciled_at::TEXT || ' failed'
      WHEN NOT evidence.is_of_what_is_in_use
      THEN 'no receipt yet of what is in use since the last plan'
      WHEN evidence.last_verdict = 'empty' AND live_evidence.verdict = 'passed'
      THEN NULL
      WHEN evidence.last_verdict = 'empty'
      THEN 'not yet proven: the receipt of ' || evidence.last_reconciled_at::TEXT || ' had nothing to compare'
      WHEN NOT COALESCE(bases.is_of_what_is_in_use, TRUE)
      THEN 'no verified rebuild yet of what is in use since the last plan'
      WHEN evidence.cut_reconciled_at IS NULL
      OR (
        SELECT
          MAX(rebuild_cut.rebuilt_at)
        FROM rebuild.cut AS rebuild_cut
        WHERE
          rebuild_cut.domain = contracts.domain
      ) > evidence.cut_reconciled_at
      THEN CASE
        WHEN readable.held IS NULL
        THEN 'an audit stopped the last rebuild before its receipt'
        ELSE 'no receipt since the last rebuild: `lockstep run` takes it while quarantine holds a table'
      END
      WHEN (
        SELECT
          SUM(changes) <> MAX(last_position) - MIN(first_position) + 1
        FROM hourly.log
      )
      THEN 'the folded hours of the log have a gap'
      WHEN NOT evidence.last_failed_at IS NULL
      AND evidence.cuts_passed < contracts.passes_to_return
      THEN evidence.cuts_passed::TEXT || ' of ' || contracts.passes_to_return::TEXT || ' cuts have passed since the receipt of ' || evidence.last_failed_at::TEXT || ' failed'
      WHEN readable.readable_until > evidence.last_passed_cut + INTERVAL '1' HOUR * contracts.receipt_hours
      THEN 'the log is more than ' || contracts.receipt_hours::TEXT || ' hours ahead of the last cut that passed, ' || evidence.last_passed_cut::TEXT
    END AS objection
  FROM ops.contracts AS contracts
  LEFT JOIN evidence
    ON evidence.domain = contracts.domain
  LEFT JOIN live_evidence
    ON live_evidence.domain = contracts.domain
  LEFT JOIN promotions
    ON promotions.domain = contracts.domain
  LEFT JOIN too_large
    ON too_large.domain = contracts.domain
  LEFT JOIN bases
    ON bases.domain = contracts.domain
  LEFT JOIN verified_cuts
    ON verified_cuts.domain = contracts.domain
  LEFT JOIN readable
    ON readable.domain = contracts.domain
), objections AS (
  SELECT
    needs.domain,
    ARG_MIN(
      CASE
        WHEN needs.domain = decided.domain
        THEN decided.objection
        ELSE decided.domain || ', which it reads, is served from the rebuild: ' || decided.objection
      END,
      CASE WHEN needs.domain = decided.domain THEN '' ELSE decided.domain END
    ) AS objection /* its own first */
  FROM needs
  JOIN decided
    ON decided.domain = needs.needed AND NOT decided.objection IS NULL
  GROUP BY
    needs.domain
)
SELECT
  decided.domain::TEXT AS domain, /* Domain */
  decided.mode::TEXT AS mode, /* Mode in the contract: batch, shadow or live */
  CASE WHEN objections.objection IS NULL THEN 'live' ELSE 'rebuild' END::TEXT AS served_from, /* live or rebuild */
  CASE
    WHEN objections.objection IS NULL
    THEN decided.readable_until
    ELSE decided.verified_cut
  END::TIMESTAMP AS as_of, /* Figures include all changes logged up to then */
  decided.verified_cut::TIMESTAMP AS verified_cut, /* Cut of the last rebuild that is verified, for it and all it reads */
  COALESCE(objections.objection, decided.proof || ' passed')::TEXT || COALESCE('; ' || decided.held, '') AS reason, /* Why it is served from there, and what holds it */
  decided.held::TEXT AS held /* Since when and by which quarantined events its live figures stand still; NULL if none does */
FROM decided
LEFT JOIN objections
  ON objections.domain = decided.domain
