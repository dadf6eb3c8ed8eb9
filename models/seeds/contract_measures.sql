MODEL (
  name seeds.contract_measures,
  kind SEED (
    path '../../seeds/contract_measures.csv'
  ),
  cron '@daily',
  columns (
    domain TEXT,
    measure TEXT,
    merge TEXT,
    unit TEXT,
    tolerance_absolute DOUBLE,
    tolerance_relative DOUBLE,
    tolerance_median DOUBLE,
    tolerance_cells DOUBLE,
    description TEXT
  ),
  grain (domain, measure),
  description 'One row per measure of a domain: how it merges, its unit, and how far the two paths may lie apart'
)
