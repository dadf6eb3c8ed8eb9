MODEL (
  name seeds.order_status_rules,
  kind SEED (
    path '../../seeds/order_status_rules.csv'
  ),
  cron '@daily',
  columns (
    spelling TEXT,
    status TEXT,
    valid_from TEXT
  ),
  owner 'commerce-analytics',
  grain (spelling, valid_from),
  description 'Which status a spelling means, from which order time on; the rule without valid_from holds from the beginning'
)
