"""The increments of a domain in a file of their own, for tests that need to change one path alone."""

from __future__ import annotations

from pathlib import Path

from lockstep import derived
from lockstep.contracts import load
from lockstep.derive import SignedRows
from projects import in_full

ROOT = Path(__file__).parents[1]
LIVE_WHERE = "\"_op = 'r' OR @is_timely(recorded_at, _committed_at)\""
POSITIONS = """/* Pings. */
MODEL (name diffs.vehicle_positions, kind VIEW, grain position);
WITH pings AS (
  SELECT
    position,
    logged_at,
    committed_at,
    op,
    STRUCT_EXTRACT(after, 'ping_id') AS ping_id,
    STRUCT_EXTRACT(after, 'driver_id') AS driver_id,
    STRUCT_EXTRACT(after, 'latitude') AS latitude,
    STRUCT_EXTRACT(after, 'longitude') AS longitude,
    STRUCT_EXTRACT(after, 'speed_kmh') AS speed_kmh,
    STRUCT_EXTRACT(after, 'recorded_at') AS recorded_at
  FROM changes.gps_pings
  WHERE
    NOT STRUCT_EXTRACT(after, 'ping_id') IS NULL
)
SELECT
  position::BIGINT AS position,
  logged_at::TIMESTAMP AS logged_at,
  1::INT AS diff,
  ping_id::BIGINT AS ping_id,
  driver_id::BIGINT AS driver_id,
  LEAST(recorded_at, committed_at)::TIMESTAMP AS latest_at,
  position::BIGINT AS latest_position,
  latitude::DOUBLE AS latitude,
  longitude::DOUBLE AS longitude,
  speed_kmh::DOUBLE AS speed_kmh,
  recorded_at::TIMESTAMP AS recorded_at
FROM pings
WHERE
  op = 'r' OR @is_timely(recorded_at, committed_at)
"""


def write_diffs(project: Path, domain: str) -> Path:
    """Write `models/diffs/<domain>.sql` by the rules of the domain, row by row if there is a model for these.

    Return its path. The contract then has no `live_where`: what the live path leaves out stands in the file.
    """
    path = project / "models" / "diffs" / f"{domain}.sql"
    if "grain" not in (project / "seeds" / "contracts.csv").read_text(encoding="utf-8"):
        in_full(project)
    if domain == "vehicle_positions":
        path.write_text(POSITIONS, encoding="utf-8")
        contracts = project / "seeds" / "contracts.csv"
        text = contracts.read_text(encoding="utf-8")
        assert text.count(LIVE_WHERE) == 1
        contracts.write_text(text.replace(LIVE_WHERE, ""), encoding="utf-8")
        return path
    rebuild = ROOT / "models" / "rebuild"
    by_row = rebuild / f"latest_{domain}.sql"
    query = derived._over_tables(derived._query(by_row if by_row.exists() else rebuild / f"{domain}.sql"))
    rows = SignedRows(query, derived._catalog(query), {m.name: m.type for m in load()[domain].merged})
    path.write_text(
        f"/* Signed rows. */\nMODEL (name diffs.{domain}, kind VIEW, grain (position, diff));\n"
        f"{rows.all().sql('duckdb', pretty=True, comments=False)}\n",
        encoding="utf-8",
    )
    return path
