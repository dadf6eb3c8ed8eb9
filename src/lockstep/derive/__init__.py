"""From one batch query: what to maintain of it, how it changes with its tables, and how to read the answer out of that.

    derivation = derive("SELECT region, SUM(amount) AS revenue FROM source.orders GROUP BY region", catalog)
    derivation.cores  # what is maintained: cells, by keys, with sums
    derivation.finish  # the query over the cells, with the rows of the query as written

Rows are Z-sets: a row has a weight, +1 where it came and -1 where it went (Budiu et al., DBSP, VLDB 2023). A core is
linear in each of its tables, so the cells of a union of rows are the sum of the cells, and the change of a product is
the sum of the products with one factor replaced by its change (Gupta, Mumick, Subrahmanian, SIGMOD 1993). All that is
not linear stays in the finish, over cells that keep the columns which it reads.

Nothing here knows SQLMesh, or where rows and cells are stored.
"""

from lockstep.derive.catalog import Catalog, Table
from lockstep.derive.compiler import Derivation, derive
from lockstep.derive.cores import Core
from lockstep.derive.refusals import Refused
from lockstep.derive.signed import SignedRows, as_core, require_rows

__all__ = ["Catalog", "Core", "Derivation", "Refused", "SignedRows", "Table", "as_core", "derive", "require_rows"]
