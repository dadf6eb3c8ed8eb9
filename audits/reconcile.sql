AUDIT (
  name rebuild_equals_increments
);

/* The promise of the whole project, with no tolerance: at the cut, the sum of all increments is the rebuild, cell by cell. Without it
   two different figures would both be called right, and only their readers would notice. */
SELECT
  *
FROM @cells
WHERE
  class <> 'identical'
