/* The rows of a table as of this second, by the columns that a recomputed domain reads: those of the newest checkpoint, and the signed
   rows since. Equal rows may occur more than once. */
MODEL (
  name state.@{domain}__@{source_table},
  kind VIEW,
  owner @owner,
  blueprints @each_recomputed_table()
);

@as_query(@rows)
