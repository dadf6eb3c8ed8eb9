AUDIT (
  name rebuild_equals_increments
);

/* The promise of the whole project: at the cut, the sum of all increments is the rebuild, cell by cell; exactly, but for measures
   whose contract declares a tolerance. Without it two different figures would both be called right, and only their readers
   would notice. */
SELECT
  *
FROM @cells
WHERE
  NOT class IN ('identical', 'tolerated')
