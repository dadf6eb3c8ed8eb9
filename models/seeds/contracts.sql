MODEL (
  name seeds.contracts,
  kind SEED (
    path '../../seeds/contracts.csv'
  ),
  columns (
    domain TEXT,
    owner TEXT,
    mode TEXT,
    source_table TEXT,
    source_key TEXT,
    joined_tables TEXT,
    grain TEXT
  ),
  grain domain,
  description 'One row per domain: its owner, what is served (batch, shadow or live), the source table and key its receipts are explained by, and the grain of a cell'
)
