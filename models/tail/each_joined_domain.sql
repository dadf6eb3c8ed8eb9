/* The signed rows of a domain that joins tables which change, since its last folded hour: a part of diffs.<domain>, but found from
   the changes since then, and the tables as they were then. */
MODEL (
  name tail.@{domain},
  kind VIEW,
  owner @owner,
  grain @grain,
  blueprints @each_domain('joined')
);

@tail_rows(@rows, @domain_name)
