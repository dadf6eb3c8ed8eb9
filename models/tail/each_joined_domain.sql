/* The signed rows, since its last folded hour, of a domain that joins changing tables: the newest part of diffs.<domain>, computed
   from the changes since that hour and the tables as they were then. Equal rows may occur more than once. */
MODEL (
  name tail.@{domain},
  kind VIEW,
  owner @owner,
  blueprints @each_domain('joined')
);

@tail_rows(@rows, @domain_name)
