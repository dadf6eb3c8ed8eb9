/* Signed rows of a domain: minus what a row adds to its cell before each change, plus what it adds after it, so that their sums over
   changes are sums over rows. Derived from rebuild.<domain>, the only query that is written for it: what that adds up, over signed
   rows instead of the rows at a cut, and multiplied by the weight. A join pairs each change with all others that match it,
   whenever they were made, so that several rows may have one position; hourly.<domain> and tail.<domain> compute those of an interval
   for less. */
MODEL (
  name diffs.@{domain},
  kind VIEW,
  owner @owner,
  grain (position, diff),
  blueprints @each_derived_domain()
);

@as_query(@rows)
