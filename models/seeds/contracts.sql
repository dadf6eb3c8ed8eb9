MODEL (
  name seeds.contracts,
  kind SEED (
    path '../../seeds/contracts.csv'
  ),
  cron '@daily',
  columns (
    domain TEXT,
    owner TEXT,
    mode TEXT,
    horizon_minutes BIGINT,
    freshness_seconds BIGINT,
    shadow_days BIGINT,
    passes_to_return BIGINT,
    receipt_hours BIGINT,
    on_bad_event TEXT,
    source_table TEXT,
    source_key TEXT,
    joined_tables TEXT,
    reads_domains TEXT,
    grain TEXT,
    live_where TEXT
  ),
  grain domain,
  description 'One row per domain: what it promises, and what is served (batch, shadow or live). ops.contracts explains the columns'
)
