"""What is promised and which tests try it: `make guarantees` writes the table of docs/guarantees.md from this list.

A test is named by its file, or by `file::name`, under tests/; SQLMesh's tests by their YAML file. A name that nothing
matches ends the command, so that no promise outlives its tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlmesh.utils.yaml import load as load_yaml

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "guarantees.md"
BEGIN, END = "<!-- made by `make guarantees` -->", "<!-- end -->"


@dataclass(frozen=True)
class Guarantee:
    """A promise, what goes wrong in its tests, and their names."""

    promise: str
    tried: str
    tests: tuple[str, ...]


GUARANTEES = [
    Guarantee(
        "Hourly, rebuilt and live figures are the same, to the cent",
        "random histories and awkward cases, each figure compared with an oracle in plain Python",
        (
            "warehouse/test_properties.py",
            "warehouse/test_awkward_cases.py",
            "warehouse/test_joined_facts.py",
            "warehouse/test_finished_facts.py",
            "warehouse/test_recomputed_facts.py",
            "warehouse/test_odd_marts.py",
            "unit/test_derive_tpch.py",
            "unit/test_generated_queries.py",
            "warehouse/test_generated_logs.py",
            "unit/test_signed_rows.py",
            "unit/test_broken_algebra.py",
            "unit/test_last_rows.py",
            "unit/test_mirror.py",
            "test_rebuild.yaml",
            "test_source.yaml",
            "test_signed.yaml",
            "test_diffs.yaml",
            "test_hourly.yaml",
            "test_live.yaml",
        ),
    ),
    Guarantee(
        "A wrong figure stops the run and is not served",
        "changes lost, doubled, reordered and altered; tables and rules tampered with; every audit, row by row",
        (
            "warehouse/test_planted_faults.py",
            "warehouse/test_audits.py",
            "warehouse/test_live_receipts.py",
            "test_chain.yaml",
            "test_reconcile.yaml",
            "test_verified.yaml",
            "unit/test_macros.py",
        ),
    ),
    Guarantee(
        "A table that contradicts itself is held before its changes are folded or published",
        "changes lost, doubled and altered at the source or in a file, found beside a dictionary that finds them too",
        ("unit/test_breaks.py", "warehouse/test_broken_chains.py"),
    ),
    Guarantee(
        "What is served is what the contract's mode and the receipts allow",
        "failed, missing, old and repeated receipts; promotion and the way back",
        (
            "test_ops.yaml",
            "warehouse/test_evidence.py",
            "test_mart.yaml",
            "warehouse/test_migration.py",
            "unit/test_contracts.py",
        ),
    ),
    Guarantee(
        "Every change lands once, in one order, or stays in quarantine",
        "landings killed and failing at every step, repeated deliveries, full disks, two writers",
        ("unit/test_changelog.py", "unit/test_growing.py", "unit/test_compact.py", "unit/test_sequence.py"),
    ),
    Guarantee(
        "Nothing durable is deleted, and a log that is not as it landed is named",
        "watermarks lost and moved, files changed, cut, doubled and lost; what the messages advise is done",
        ("unit/test_log_defends_itself.py",),
    ),
    Guarantee(
        "The models read what landed, and nothing beyond the watermark",
        "every column of every table, hours sealed and held",
        (
            "warehouse/test_changes.py",
            "warehouse/test_watermark_model.py",
            "test_changes.yaml",
            "warehouse/test_signals.py",
        ),
    ),
    Guarantee(
        "A refresh replaces its interval, wholly or not at all",
        "both edges of the interval, queries that fail, processes that stop in between",
        ("warehouse/test_materializations.py",),
    ),
    Guarantee(
        "A status means what the company says at the time of the order",
        "every spelling, before and after each change of meaning, without reading the seed",
        ("warehouse/test_order_status_rules.py", "test_dims.yaml"),
    ),
    Guarantee(
        "No killed capture or connector loses or doubles a change",
        "`kill -9` of capture, connector and server under load, then a count of every change",
        ("kill/test_capture_kill.py", "kill/test_kafka_kill.py"),
    ),
    Guarantee(
        "After any kill the next command works, and no change is lost or doubled",
        "`kill -9` of every command at random moments on one home, its workers too, then a recount by plain DuckDB",
        ("kill/test_kills.py", "kill/test_kills_of_joins.py", "warehouse/test_no_forks.py"),
    ),
    Guarantee(
        "A lost, damaged, full or read-only home says so, and nothing in it is deleted",
        "files lost, cut, overwritten and restored from older backups; a disk full at every write",
        (
            "warehouse/test_lost_files.py",
            "warehouse/test_checkpoints.py",
            "unit/test_pairing.py",
            "unit/test_odd_homes.py",
            "unit/test_disk_full.py",
        ),
    ),
    Guarantee(
        "The log is the source, whichever way the changes came",
        "snapshots, streams, Debezium and Kafka against the rows of the source",
        (
            "sources/test_capture.py",
            "sources/test_capture_refusals.py",
            "sources/test_capture_tables.py",
            "sources/test_capture_names.py",
            "sources/test_resync.py",
            "sources/test_schema_moves.py",
            "sources/test_types.py",
            "sources/strangers/test_pgbench.py",
            "sources/strangers/test_rental.py",
            "sources/strangers/test_tpch.py",
            "sources/test_kafka.py",
            "sources/test_same_rows.py",
            "sources/test_verify_source.py",
        ),
    ),
    Guarantee(
        "What an event says is landed as it says it, or quarantined with the reason",
        "events of every type, malformed, truncated and out of range",
        (
            "unit/test_ingest.py",
            "unit/test_ingest_values.py",
            "unit/test_ingest_schemas.py",
            "unit/test_ingest_moves.py",
            "unit/test_ingest_recording.py",
            "unit/test_differences.py",
            "unit/test_moves.py",
            "unit/test_ingest_keyless.py",
            "unit/test_ingest_other_sources.py",
            "unit/test_plain.py",
            "unit/test_kinds.py",
            "unit/test_pgoutput.py",
        ),
    ),
    Guarantee(
        "A quarantined event holds its table where it stands, and everything else goes on",
        "events of known and unknown tables, decided about in every way",
        ("unit/test_holds.py", "unit/test_quarantine.py"),
    ),
    Guarantee(
        "A wrong clock moves no figure",
        "commit times and keep-alives from the future and the past",
        ("unit/test_clocks.py", "unit/test_reclock.py", "warehouse/test_poisoned_clock.py"),
    ),
    Guarantee(
        "Readers meet no lock, no error and no torn read",
        "readers without pause beside landing, runs, publications and compactions",
        ("warehouse/test_publish.py", "warehouse/test_soak.py", "warehouse/test_onewriter.py"),
    ),
]


def table() -> str:
    """The table in Markdown: a function of the tests alone, whatever is installed beside them."""
    tries = _collected({name.split("::")[0] for g in GUARANTEES for name in g.tests if not name.endswith(".yaml")})
    tries |= {f"{path.name}::{test}": 1 for path in TESTS.glob("test_*.yaml") for test in load_yaml(path)}
    rows = []
    for guarantee in GUARANTEES:
        found = {}
        for name in guarantee.tests:
            matching = {
                case: n for case, n in tries.items() if case == name or case.startswith((f"{name}::", f"{name}["))
            }
            if not matching:
                raise SystemExit(f"tests/guarantees.py: no test matches {name}")
            found |= matching
        names = ", ".join(f"`{name}`" for name in guarantee.tests)
        counts = f"{len(found)} | {sum(found.values())}"
        rows.append(f"| {guarantee.promise} | {guarantee.tried} | {names} | {counts} | nothing |")
    head = ["| promise | what is tried | in `tests/` | cases | tries | lost |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *rows])


def _collected(files: set[str]) -> dict[str, int]:
    """The ids of all cases of these files, relative to tests/, and how often each tries its promise."""
    command = [sys.executable, __file__, "--collect", *sorted(files)]
    found = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True)
    if found.returncode:
        said = found.stdout[-2000:] + found.stderr
        raise SystemExit(f"tests/guarantees.py: pytest could not collect the tests.\n{said}")
    [collected] = [line for line in found.stdout.splitlines() if line.startswith("{")]
    return json.loads(collected)


class _Collector:
    """A plugin of pytest that prints what was collected.

    A case tries its promise n times if it is marked `pytest.mark.tries(n)` or has a parameter `kills` of n, else once.
    """

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        tries = {}
        for item in session.items:
            marks = [mark.args[0] for mark in item.iter_markers("tries")]
            kills = getattr(item, "callspec", None) and item.callspec.params.get("kills")
            tries[item.nodeid.removeprefix("tests/")] = max(marks, default=kills or 1)
        print(f"\n{json.dumps(tries)}")


def page() -> str:
    """The page with the table as it should be."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--collect"]:
        files = [str(TESTS / name) for name in sys.argv[2:]]
        sys.exit(
            pytest.main(
                ["--collect-only", "-qqq", "-p", "no:cacheprovider", "-p", "no:warnings", *files], [_Collector()]
            )
        )
    PAGE.write_text(page())
