MODEL (
  name seeds.promotions,
  kind SEED (
    path '../../seeds/promotions.csv'
  ),
  cron '@daily',
  columns (
    domain TEXT,
    mode TEXT,
    changed_at TEXT,
    position BIGINT,
    evidence TEXT
  ),
  grain (domain, changed_at),
  description 'One row per promotion to live and per demotion from it, as lockstep promote and demote wrote them: what a domain in live mode needs to be served live'
)
