/* Signed rows of a domain: minus what a row was before each change, plus what it is after it, so that their sums over changes are
   sums over rows. Derived from rebuild.latest_<domain>, the only place where the rules of a row are written: the same query over
   signed rows instead of the rows at a cut. Measures are multiplied by the weight. */
MODEL (
  name diffs.@{domain},
  kind VIEW,
  owner @owner,
  grain (position, diff),
  blueprints @each_derived_domain()
);

@as_query(@rows)
