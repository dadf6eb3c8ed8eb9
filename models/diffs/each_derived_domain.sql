/* Signed rows of a domain: minus what a row adds to its cell before each change, plus what it adds after it, so that their sums over
   changes are sums over rows. Derived from rebuild.<domain>, the only query that is written for it: what that adds up, over signed
   rows instead of the rows at a cut, and multiplied by the weight. Of a join it pairs each change with all others that fit it,
   whenever they were: hourly.<domain> and tail.<domain> find those of an interval for less. */
MODEL (
  name diffs.@{domain},
  kind VIEW,
  owner @owner,
  grain (position, diff),
  blueprints @each_derived_domain()
);

@as_query(@rows)
